"""What people write on an incident: lines in a file of its folder, which its checksums do not cover.

The file is only ever appended to. What stands in it may come from anywhere: it is read in bounds, and
escaped where it is shown.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.wholefile import path_error
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents.store import REMARKS, StoredIncident

MAX_CHARS: Final = 2000
MAX_FILE_BYTES: Final = 1 << 20
MAX_REMARKS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One of them. Texts are escaped."""

    written: str
    """ISO 8601, UTC."""
    text: str


def add_remark(stored: StoredIncident, text: str) -> Remark:
    """Append ``text``. Raises UsageError: empty, too long, or the incident cannot be written."""
    text = text.strip()
    if not text or len(text) > MAX_CHARS:
        raise UsageError(f"remark: a text of 1 to {MAX_CHARS} characters is needed")
    written = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    line = json.dumps({"written": written, "text": text}) + "\n"
    path = stored.path / REMARKS
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(line.encode())
    except OSError as error:
        raise path_error(path, error) from error
    return Remark(written=written, text=escape(text))


def remarks_of(stored: StoredIncident) -> list[Remark]:
    """Return them in their order; a line that is none is passed over. Raises RigError if the file is
    no plain file."""
    found: list[Remark] = []
    for line in stored.part(REMARKS, MAX_FILE_BYTES).splitlines()[:MAX_REMARKS]:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("text"), str):
                written = escape(str(row.get("written", ""))[:40])
                found.append(Remark(written=written, text=escape(row["text"][:MAX_CHARS])))
    return found
