"""The record of a console that waits for its trigger is bounded, what frames went out for is what the
reflex says, and a full disk ends no watch."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
from full_disk import full_disk
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import SIDES, FrameFailed, FrameSent, Note, Side, Trigger
from freezeframe.harness.core.lineerrors import LineErrors
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.runs.intake import Decider, Intake
from freezeframe.harness.runs.recording import Recording, not_made
from freezeframe.harness.runs.selfcheck import Canaries
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


class NoDialogue:
    """Nothing has been asked."""

    def __init__(self) -> None:
        self.canaries = Canaries()


class CountingStation:
    """What an intake needs of one."""

    def __init__(self, opened: OpenBench) -> None:
        self.opened, self.dialogue = opened, NoDialogue()

    def step(self, event: object) -> None:
        raise AssertionError(event)


def test_a_resumed_incident_gets_nothing_of_what_was_counted_and_heard_since(
    tmp_path: Path,
) -> None:
    """Seen: it was given the losses of the recording that had begun meanwhile, which lacked them; and its
    canaries."""
    opened = OpenBench.__new__(OpenBench)
    opened.bench = load_bench("sim")
    opened.controllers, opened.consoles = {}, {}
    losses = {"primary console": LineErrors(overruns=2)}
    opened._line_errors = dict(losses)
    resumed, now = (
        Recording(Incident.create(tmp_path, bench="b", seed=seed), Silent()) for seed in (0, 1)
    )
    resumed.canary("primary", heard := {"seen": True})
    intake = Intake(cast(Decider, CountingStation(opened)), Silent(), now)
    intake.cut(resumed, is_resumed=True)
    assert opened._line_errors == losses and not resumed.incident.record.get("line_errors")
    closed = intake.close("pass")
    assert [one.recording for one in closed] == [resumed, now]
    for one in (resumed, now):
        one.incident.finish("fail")
    assert Incident.open(resumed.incident.path).record.line_errors == {}
    assert Incident.open(now.incident.path).record.line_errors == losses
    assert resumed.incident.record["canaries"] == {"primary": heard}
    assert set(now.incident.record["canaries"]) == set(SIDES)


HITS = st.lists(
    st.tuples(
        st.sampled_from(["one", "two", "three"]),
        st.sampled_from(SIDES),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@given(HITS, HITS, st.data())
def test_frames_go_out_for_the_hit_that_the_reflex_names_and_for_no_other(
    before: list[tuple[str, Side, bool, bool]],
    hits: list[tuple[str, Side, bool, bool]],
    data: st.DataObject,
) -> None:
    """Seen: a muted hit of the same read took the blame."""
    struck = data.draw(st.integers(-1, len(hits) - 1))
    with TemporaryDirectory() as folder:
        recording = Recording(Incident.create(Path(folder), bench="b", seed=0), Silent())
        reads = [(7, before, -1), (9, hits, struck)]
        reported: list[Trigger] = []
        for t_ns, read, at in reads:
            reported = [
                Trigger(
                    t_ns=t_ns, t_match_ns=t_ns, t_arrival_ns=t_ns, rule=rule, source="console",
                    side=side, offset_bytes=number, instruct=[*SIDES] if instructs else [],
                    struck=at + 1, is_cause=number == at,
                )
                for number, (rule, side, instructs, _) in enumerate(read)
            ]  # fmt: skip
            for one, (_, _, _, is_wanted) in zip(reported, read, strict=True):
                recording.is_counted_only(one, is_needed=one.is_cause)
                if is_wanted and not one.is_cause:
                    recording.leave_out(one)
        assert recording.struck_for() is (reported[struck] if struck >= 0 else None)
        others = [
            one
            for one, (_, _, _, is_wanted) in zip(reported, hits, strict=True)
            if not one.is_cause and not is_wanted
        ]
        assert recording.causes == [*(one for one in reported if one.is_cause), *others]
        recording.incident.discard()


def hit(at: int) -> Trigger:
    return Trigger(
        t_ns=at, t_match_ns=at, t_arrival_ns=at, rule="r", source="console", side="primary",
        offset_bytes=at, instruct=["primary"],
    )  # fmt: skip


REPORTS: dict[str, Callable[[Recording], None]] = {
    "a hit": lambda one: one.keep(hit(1)),
    "a hit too many": lambda one: (
        [one.is_counted_only(hit(2), is_needed=False) for _ in range(1001)] and None
    ),
    "what is acted on": lambda one: one.acts_on(hit(3)),
    "a frame": lambda one: one.incident.acted(
        FrameSent(t_ns=4, side="primary", seq=1, t_done_ns=5, frame=b"frame")
    ),
    "a frame that failed": lambda one: one.incident.acted(
        FrameFailed(t_ns=4, side="secondary", error="full")
    ),
    "an event": lambda one: one.incident.append_event(Note(t_ns=6, source="x", text="y"), "reflex"),
    "a step": lambda one: one.incident.step(7, "primary", "up"),
    "a reply": lambda one: one.incident.replied("primary", None, 8),
    "a set that is missing": lambda one: one.incident.missing_set("primary", "no room"),
    "a key": lambda one: one.incident.update(controllers={}),
}


@pytest.mark.parametrize("room_bytes", [0, 30])
@pytest.mark.parametrize("what", list(REPORTS))
def test_what_cannot_be_recorded_is_reported_once_and_ends_nothing(
    what: str, room_bytes: int, tmp_path: Path
) -> None:
    """Seen: a full disk ended the watch at the next hit."""
    lost: list[str] = []
    recording = Recording(Incident.create(tmp_path, bench="b", seed=0), Silent(), lost.append)
    with full_disk(room_bytes):
        for _ in range(2):
            REPORTS[what](recording)
    assert lost == recording.lost_evidence and 1 <= len(lost) <= 2 and len(set(lost)) == len(lost)
    assert all(f"{recording.incident.path}/" in one and "too large" in one for one in lost)
    # There is room again: the next report is written, behind whole rows, and all that is in memory.
    recording.incident.step(9, "secondary", "up")
    recording.incident.finish("fail")
    stored = StoredIncident.open(recording.incident.path)
    assert stored.problems == () and stored.altered() == [] and stored.outcome == "fail"
    assert stored.timeline()[-1]["t_ns"] == 9 and set(lost) <= set(stored.record.notes)
    # For whoever wants no loss it is an error.
    strict = Recording(Incident.create(tmp_path / "strict", bench="b", seed=0), Silent())
    with full_disk(room_bytes), pytest.raises(RigError, match="too large"):
        REPORTS[what](strict)


def test_an_incident_that_cannot_be_closed_is_not_taken_for_closed(tmp_path: Path) -> None:
    incident = Incident.create(tmp_path, bench="b", seed=0)
    incident.on_loss = lambda _text: None
    with full_disk(), pytest.raises(RigError, match=r"incident\.json: File too large"):
        incident.finish("pass")
    assert not (incident.path / "SHA256SUMS").exists()
    assert StoredIncident.open(incident.path).outcome == "open"


def test_a_folder_that_cannot_be_made_whole_leaves_nothing(tmp_path: Path) -> None:
    """It is tried again, after pauses of 0.5 to 5 s; each time fails in the same words."""
    Incident.create(tmp_path, bench="b", seed=0)

    def there() -> tuple[int, list[Path]]:
        links = (os.path.realpath(one) for one in Path("/proc/self/fd").iterdir())
        return sum(one.startswith(f"{tmp_path}/") for one in links), list(tmp_path.iterdir())

    before, said = there(), set()
    for _ in range(3):
        with full_disk(), pytest.raises(RigError, match="too large") as found:
            Incident.create(tmp_path, bench="b", seed=0)
        said.add(not_made(tmp_path, found.value))
    assert there() == before
    assert said == {f"{tmp_path}: no folder of an incident can be made: File too large"}
