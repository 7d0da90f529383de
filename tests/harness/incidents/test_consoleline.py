"""The line that a trigger was found in, read while its console is still written."""

from pathlib import Path

from freezeframe.harness.core.events import Trigger
from freezeframe.harness.incidents.consoleline import line_of

LOG = b"before\r\ndrbd0: Out of sync: start=8, size=8\nafter"


def trigger(end: int, source: str = "console") -> Trigger:
    return Trigger(
        t_ns=1, rule="r", source=source, side="primary", offset_bytes=end, t_arrival_ns=1, t_match_ns=1
    )  # type: ignore[arg-type] # fmt: skip


def test_the_whole_line_around_the_match_as_far_as_it_has_come(tmp_path: Path) -> None:
    (tmp_path / "primary").mkdir()
    log = tmp_path / "primary" / "console.log"
    match = LOG.index(b"start=") + len(b"start=")
    log.write_bytes(LOG)
    assert line_of(tmp_path, trigger(match)) == b"drbd0: Out of sync: start=8, size=8"
    log.write_bytes(LOG[:match])
    assert line_of(tmp_path, trigger(match)) == b"drbd0: Out of sync: start="
    log.unlink()
    assert line_of(tmp_path, trigger(match)) == b""
    assert line_of(tmp_path, trigger(4, "link")) == b""
