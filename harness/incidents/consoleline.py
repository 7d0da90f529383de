"""The console line that a trigger was found in, while the console is still being recorded."""

from pathlib import Path

from freezeframe.harness.core.events import Trigger
from freezeframe.harness.incidents.incident import MAX_LINE_BYTES
from freezeframe.harness.incidents.store import CONSOLE


def line_of(folder: Path, trigger: Trigger) -> bytes:
    """The line in the incident at ``folder``, as far as it has come; b"" for a trigger of the link, and
    when it cannot be read."""
    if trigger.source != "console":
        return b""
    end = trigger.offset_bytes
    try:
        with (folder / trigger.side / CONSOLE).open("rb") as log:
            log.seek(max(0, end - MAX_LINE_BYTES))
            before, behind = log.read(min(end, MAX_LINE_BYTES)), log.read(MAX_LINE_BYTES)
    except OSError:
        return b""
    return before.rpartition(b"\n")[2] + behind.partition(b"\n")[0]
