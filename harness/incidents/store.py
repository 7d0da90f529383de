"""Incidents as a reader finds them: finished, still open, or left by a killed run. Nothing here
writes.

All reads are bounded, and nothing that stands in an incident is believed to be a path or fit for a
terminal.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, get_args

from freezeframe.harness.core import timeline
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.record import IncidentRecord
from freezeframe.harness.edge.capture_ring import kept_runs
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.record import Raw, parsed, read_record

Outcome = Literal["pass", "fail", "inconclusive", "rig-trouble", "interrupted", "drill"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
OPEN: Final = "open"
"""Outcome of an incident whose run still lives; a dead run's is shown as "interrupted"."""
RECORD, TIMELINE, LINK, SUMS, LOCK = (
    "incident.json",
    "timeline.jsonl",
    "link.pcapng",
    "SHA256SUMS",
    ".lock",
)
CONSOLE, TIMES, SET, STATE, EVENTS = (
    "console.log",
    "console.times",
    "set.zst",
    "state.json",
    "events.log",
)
SAVE: Final = "save.zst"
BLOCK: Final = "block.bin"
"""The failing block as a side's volume held it."""
JOURNAL: Final = "host.journal"
"""Every host write's intent and acknowledgement, the host's side of the evidence."""
RESULTS: Final = "host.results.json"
"""Counters of a workload without a journal."""
REMARKS: Final = "remarks.jsonl"
"""What people wrote on the incident, after it was closed too: its checksums do not cover it."""
HEALTHY: Final = "healthy.cbor"
"""A side's state record as it was when the bench was armed."""
BENCH: Final = "bench.toml"
RULES: Final = "rules"
"""Copies of the bench file and of the rule files, without secrets."""
MAX_RECORD_BYTES: Final = 16 << 20
MAX_TIMELINE_BYTES: Final = 256 << 20
"""No reader believes files longer than these; the writer stays far below."""
LAST: Final = "last"
_OUR_NAME: Final = re.compile(r"(\d{8}T\d{6}Z)-([0-9a-f]{8})")
"""The second of its begin, and the first 8 digits of its id."""
MAX_INTEGER: Final = (1 << 63) - 1
"""Larger numbers of a file, which we never write, are read as this one."""
MAX_SUMS_BYTES: Final = 1 << 20
MAX_NAMED: Final = 5
"""So many incidents are named when a prefix fits several."""


def _bounded(digits: str) -> int:
    """An integer of a file that no calculation with floats or 64 bits can fail on."""
    return min(max(int(digits), -MAX_INTEGER), MAX_INTEGER)


@contextlib.contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Errors of the file system name the path; what was written before stays valid."""
    try:
        yield
    except OSError as error:
        raise RigError(
            f"{path}: {error.strerror or error}; the incident up to here is kept"
        ) from error


def link_runs(folder: Path) -> Iterator[Run]:
    """The capture of an incident, also of one that was killed before its segments were made one
    file."""
    return kept_runs(folder / LINK, lambda name: open_inside(folder, name))


def open_inside(folder: Path, name: str) -> BinaryIO:
    """Open ``name``, one of an incident's files, for reading. An incident may come from anywhere: a
    link, a device or a pipe in the place of a file is not followed or waited for, but reported.
    FileNotFoundError when there is nothing, RigError for everything else."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    fd = -1
    try:
        fd = os.open(folder, flags | os.O_DIRECTORY)
        *parents, last = name.split("/")
        for parent in parents:
            inner = os.open(parent, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        inner = os.open(last, flags | os.O_NOFOLLOW, dir_fd=fd)
        os.close(fd)
        fd = inner
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.fdopen(fd, "rb")
    except FileNotFoundError:
        if fd >= 0:
            os.close(fd)
        raise
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise RigError(
            f"{folder / name}: {error.strerror or error}; an incident is made of plain files"
        ) from error


@dataclass(frozen=True, kw_only=True)
class StoredIncident:
    """An incident as a reader finds it: finished, still open, or left by a killed run."""

    path: Path
    record: IncidentRecord
    """incident.json; of defaults when the run was killed before it was first written, or when it is not
    ours."""
    raw: Raw
    """The same as it stands in the file, unchecked: to be shown, not to be acted on."""
    outcome: str
    """One of OUTCOMES, or "open" while its run lives."""
    problems: tuple[str, ...] = ()
    """What could not be read, in words."""

    @classmethod
    def open(cls, path: Path) -> "StoredIncident":
        path = Path(path)
        if path.is_file() and path.name == RECORD:
            path = path.parent
        if not (
            (path / RECORD).is_file() or (path / TIMELINE).is_file() or (path / LOCK).is_file()
        ):
            raise UsageError(f"{path}: no incident here: neither {RECORD} nor {TIMELINE} is in it")
        raw, record, problems = _read_record(path)
        outcome = record.outcome
        if outcome not in OUTCOMES:
            outcome = OPEN if _is_alive(path) else "interrupted"
        return cls(path=path, record=record, raw=raw, outcome=outcome, problems=tuple(problems))

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def id_hex(self) -> str:
        """The 16-byte id, or as much of it as the folder's name holds."""
        return self.record.incident_id_hex or self.id.rpartition("-")[2]

    @property
    def started_ns(self) -> int:
        """Wall time of its start; 0 when that is not known."""
        return self.record.clock.wall_ns if self.record.clock is not None else 0

    def part(self, name: str, max_bytes: int) -> bytes:
        """The first ``max_bytes`` of one of its files; b"" when there is none. RigError when it is
        no plain file."""
        try:
            with open_inside(self.path, name) as file, naming_errors(self.path / name):
                return file.read(max_bytes)
        except FileNotFoundError:
            return b""

    def timeline(self) -> list[Row]:
        """All whole rows by time; the half row that a killed run may leave, and one without a time, is skipped."""
        rows = []
        for line in self.part(TIMELINE, MAX_TIMELINE_BYTES).splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line, parse_int=_bounded)
                if isinstance(row, dict) and type(row.get("t_ns")) is int:
                    rows.append(row | {"t_ns": max(row["t_ns"], 0)})
        return timeline.merged(rows)

    def altered(self) -> list[str]:
        """What is not as it was when the incident was closed, a sentence each; [] also of one that never was."""
        sums = self.part(SUMS, MAX_SUMS_BYTES).decode(errors="replace")
        if not sums:
            if self.record.outcome in OUTCOMES:
                return [f"there is no {SUMS}: whether the evidence was altered is not known"]
            return []
        found, known = [], set()
        for digest, name in (line.split("  ", 1) for line in sums.splitlines() if "  " in line):
            known.add(name)
            if (why := self._changed(name, digest)) is not None:
                found.append(f"{escape(name)} {why}")
        there = {str(one.relative_to(self.path)) for one in self.path.rglob("*") if one.is_file()}
        added = sorted(there - known - {SUMS, LOCK, REMARKS})
        return [
            *found,
            *(f"{escape(name)} was added since the incident was closed" for name in added),
        ]

    def _changed(self, name: str, digest: str) -> str | None:
        try:
            if ".." in Path(name).parts or Path(name).is_absolute():
                return "is in no folder of the incident"
            with open_inside(self.path, name) as file:
                is_same = hashlib.file_digest(file, "sha256").hexdigest() == digest  # type: ignore[arg-type]
        except FileNotFoundError:
            return "is gone since the incident was closed"
        except (RigError, OSError, ValueError):
            return "cannot be read"
        return None if is_same else "was altered since the incident was closed"


def _read_record(path: Path) -> tuple[Raw, IncidentRecord, list[str]]:
    """(as it stands there, as it can be used, what is wrong with it)"""
    try:
        with open_inside(path, RECORD) as file:
            data = file.read(MAX_RECORD_BYTES + 1)
    except (OSError, RigError) as error:
        return {}, IncidentRecord(), [f"{RECORD}: {escape(str(error))}"]
    raw, problem = parsed(data, _bounded)
    if problem:
        return {}, IncidentRecord(), [f"{RECORD}: {problem}"]
    record, damage = read_record(raw)
    return raw, record, [f"{RECORD}: {one}" for one in damage]


def _is_alive(path: Path) -> bool:
    """Whether a process holds the incident's lock; the kernel lets go of it with the process."""
    try:
        fd = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the incidents of one folder ----------------------------------------------------------------------------
def incidents(out_dir: Path) -> list[StoredIncident]:
    """All incidents under ``out_dir``, oldest first; other folders are passed over."""
    return _opened(_folder_names(out_dir), out_dir)


def _folder_names(out_dir: Path) -> list[str]:
    if not out_dir.is_dir():
        return []
    with naming_errors(out_dir), os.scandir(out_dir) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _opened(names: Iterable[str], out_dir: Path) -> list[StoredIncident]:
    found = []
    for name in names:
        with contextlib.suppress(UsageError):
            found.append(StoredIncident.open(out_dir / name))
    return sorted(found, key=lambda one: (one.started_ns, one.id))


def _candidates(what: str, names: Sequence[str]) -> list[str]:
    """Return the folders that ``what`` may name, told by their names alone: of thousands of
    incidents only these are read. A folder of another name than ours may always be meant."""
    ours = {name: match for name in names if (match := _OUR_NAME.fullmatch(name)) is not None}
    if what == LAST:
        # The name has the second of the begin; copies of older incidents keep theirs.
        newest = max((match[1] for match in ours.values()), default="")
        return [name for name in names if name not in ours or ours[name][1] == newest]
    low = what.lower()
    return [
        name
        for name in names
        if name not in ours
        or name.startswith(what)
        or ours[name][2].startswith(low)
        or low.startswith(ours[name][2])
    ]


def _ended(found: Sequence[StoredIncident]) -> StoredIncident | None:
    """The newest of them that has ended: a watch always has one more under way."""
    return next((one for one in reversed(found) if one.outcome != OPEN), None)


def find(what: str, out_dir: Path) -> StoredIncident:
    """The incident that ``what`` names: a path, "last" (the newest that has ended; only where none has, the one
    under way), the start of its folder's name or of its id in hex.

    UsageError says what is there when none or several fit.
    """
    if what != LAST and (os.sep in what or Path(what).is_dir()):
        return StoredIncident.open(Path(what))
    names = _folder_names(out_dir)
    near = _opened(_candidates(what, names), out_dir)
    if what == LAST and near:
        return _ended(near) or _ended(_opened(names, out_dir)) or near[-1]
    fitting = [
        one for one in near if one.id.startswith(what) or one.id_hex.startswith(what.lower())
    ]
    if len(fitting) == 1:
        return fitting[0]
    known = fitting or incidents(out_dir)
    if not known:
        raise UsageError(f"{out_dir}: no incidents here")
    named = ", ".join(one.id for one in known[-MAX_NAMED:])
    if fitting:
        raise UsageError(f"{what}: fits {len(fitting)} incidents, among them {named}")
    raise UsageError(f"{what}: no such incident in {out_dir}; the newest there: {named}")
