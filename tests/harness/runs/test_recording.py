"""The record of a console that waits for its trigger is bounded."""

from pathlib import Path
from typing import cast

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.lineerrors import LineErrors
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.runs.recording import Recording
from freezeframe.harness.runs.view import Silent


def test_a_console_that_has_grown_is_set_aside_and_the_half_before_is_removed(
    tmp_path: Path,
) -> None:
    recording = Recording(Incident.create(tmp_path, bench="b", seed=0), Silent())
    log = recording.incident.console_path("primary")
    times = recording.incident.console_times_path("primary")
    log.write_bytes(b"first")
    times.write_bytes(b"-")
    assert recording.rotate(10) == [] and not recording.is_rotated
    log.write_bytes(b"first" * 2)
    assert recording.rotate(10) == ["primary"] and recording.is_rotated
    log.write_bytes(b"second" * 2)
    times.write_bytes(b"-")
    assert recording.rotate(10) == ["primary"]
    assert (log.parent / "console.old.log").read_bytes() == b"second" * 2
    assert not log.exists() and not times.exists(), "their writer makes new ones"
    assert (log.parent / "console.old.times").read_bytes() == b"-"
    assert any("console.old.log" in note for note in recording.incident.record["notes"])


class CountedBench:
    """Its serial drivers have counted this."""

    def __init__(self, **counted: LineErrors) -> None:
        self._counted = {name.replace("_", " "): one for name, one in counted.items()}

    def count_line_errors(self) -> dict[str, LineErrors]:
        return self._counted


def test_what_the_serial_drivers_counted_is_kept_and_losses_are_noted(tmp_path: Path) -> None:
    recording = Recording(Incident.create(tmp_path, bench="b", seed=0), Silent())
    counted = CountedBench(
        primary_console=LineErrors(breaks=1), secondary_console=LineErrors(overruns=2)
    )
    recording.count_lines(cast(OpenBench, counted))
    recording.incident.finish("fail")
    record = Incident.open(recording.incident.path).record
    assert record.line_errors == {
        "primary console": LineErrors(breaks=1), "secondary console": LineErrors(overruns=2),
    }  # fmt: skip
    assert record.notes == ("secondary console: its serial driver counted 2 overruns",)
