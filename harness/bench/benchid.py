"""What tells two benches of one name apart: the lines to their controllers, as the bench file writes them.

The same bench file gives the same id after each restart and at another path, whatever else is changed in it. Lines
with ``{run}`` are made anew by each command and tell nothing: there the path of the bench file counts, too.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RUN: Final = "{run}"
DIGEST_CHARS: Final = 12


def bench_id(name: str, lines: Sequence[str | None], path: Path) -> str:
    """Return the id of a bench, ``NAME-DIGEST``: a name of files. ``lines``: console and control line of the
    primary, then of the secondary; ``path``: of the bench file."""
    where = str(path.resolve()) if _is_made_anew(lines) else ""
    return _id(name, lines, where)


def pair_id(name: str, lines: Sequence[str | None]) -> str:
    """Return the id of the controllers that these lines reach; "": they are not made yet."""
    return "" if _is_made_anew(lines) else _id(name, lines, "")


def name_of(bench_id: str) -> str:
    """Return the name of the bench with this id."""
    return bench_id.rpartition("-")[0]


def another_of_that_name(how: str, holders: Sequence[str]) -> str:
    """Return the end of an error, "" without holders: another bench has the name that was looked for. ``how``:
    recorded, watched; ``holders``: by whom."""
    if not holders:
        return ""
    return f". Another bench of that name is {how} by {', '.join(holders)}: give its bench file with --bench"


def _is_made_anew(lines: Sequence[str | None]) -> bool:
    return any(RUN in line for line in lines if line is not None)


def _id(name: str, lines: Sequence[str | None], where: str) -> str:
    digest = hashlib.sha256(json.dumps([name, *lines, where]).encode()).hexdigest()
    return f"{name}-{digest[:DIGEST_CHARS]}"
