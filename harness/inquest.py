"""An incident's folder -> its evidence -> the verdict. What is missing or damaged is said, not raised.

The run that recorded the incident and ``replay``, years later and without a bench, come through here: the same files
give the same verdict, byte for byte.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from harness.core import rootcause
from harness.core.events import SIDES, Ns, Side
from harness.core.evidence import Evidence, gather
from harness.core.rootcause import RootCauseSet, decode_cbor
from harness.core.verdict import judge
from harness.edge.clock import read_wall_clock
from harness.edge.pcapng import read_frames
from harness.errors import HarnessError, WireError
from harness.incident import Incident
from harness.store import CONSOLE, HEALTHY, JOURNAL, LINK, MAX_RECORD_BYTES, RECORD, SET, TIMES

MAX_SET_BYTES: Final = 64 << 20
MAX_CONSOLE_BYTES: Final = 64 << 20
MAX_JOURNAL_BYTES: Final = 1 << 30
MAX_FRAMES: Final = 20_000_000
_TIMES: Final = struct.Struct("<QQ")
"""One entry of console.times a read: t_ns, offset_bytes of its first byte."""


def verdict_of(path: Path, record: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The verdict on the incident in the folder ``path``; ``record`` is its incident.json when that is read already."""
    return judge(evidence_of(path, _record(path) if record is None else record))


def conclude(incident: Incident) -> None:
    """Give a recorded incident its verdict; all else that goes into incident.json but its outcome is in it by now."""
    incident.update(clock_end=asdict(read_wall_clock()))
    try:
        incident.update(verdict=verdict_of(incident.path))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with our understanding, the evidence is kept
        incident.note(f"no verdict: {type(error).__name__}: {error}")


def evidence_of(path: Path, record: Mapping[str, Any]) -> Evidence:
    sets: dict[Side, RootCauseSet | None] = {}
    problems: dict[Side, str] = {}
    for side in SIDES:
        sets[side], problems[side] = _set(path / side / SET, record, side)
    link = _Frames(path / LINK, record)
    evidence = gather(
        record,
        sets=sets,
        set_problems=problems,
        healthy={side: _healthy(path / side / HEALTHY) for side in SIDES},
        consoles={side: _console(path / side) for side in SIDES},
        journal=_bytes(path / JOURNAL, MAX_JOURNAL_BYTES),
        frames=link,
    )
    if link.problem:
        evidence.problems.append(link.problem)
    return evidence


class _Frames:
    """The capture's frames on the monotonic clock; ends early, and says why, where the file is damaged."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self._path = path
        clock = record.get("clock") or {}
        self._wall_minus_monotonic_ns = clock.get("wall_ns", 0) - clock.get("monotonic_ns", 0)
        self.problem = ""

    def __iter__(self) -> Iterator[tuple[Ns, bytes]]:
        try:
            for number, frame in enumerate(read_frames(self._path)):
                if number >= MAX_FRAMES:
                    self.problem = f"{LINK}: only its first {MAX_FRAMES} frames are read"
                    return
                yield frame.t_ns - self._wall_minus_monotonic_ns, frame.data
        except HarnessError as error:
            self.problem = f"{LINK}: {error}"


def _bytes(path: Path, limit: int) -> bytes | None:
    """At most ``limit`` bytes of a file; None when there is none."""
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return None


def _record(path: Path) -> dict[str, Any]:
    data = _bytes(path / RECORD, MAX_RECORD_BYTES)
    try:
        read = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _set(path: Path, record: Mapping[str, Any], side: Side) -> tuple[RootCauseSet | None, str]:
    """(the set, why there is none)"""
    told = (record.get("sets") or {}).get(side) or {}
    stored = _bytes(path, MAX_SET_BYTES)
    if stored is None:
        return None, told.get("reason") or "it was not pulled"
    try:
        return rootcause.decode(stored, told.get("sha256") if told.get("complete") else None), ""
    except WireError as error:
        return None, str(error)


def _healthy(path: Path) -> Mapping[str, Any] | None:
    data = _bytes(path, MAX_SET_BYTES)
    try:
        state = decode_cbor(data) if data else None
    except WireError:
        return None
    return state if isinstance(state, dict) else None


def _console(folder: Path) -> tuple[bytes, list[tuple[Ns, int]]]:
    times = _bytes(folder / TIMES, MAX_CONSOLE_BYTES) or b""
    whole = len(times) // _TIMES.size * _TIMES.size
    return _bytes(folder / CONSOLE, MAX_CONSOLE_BYTES) or b"", list(_TIMES.iter_unpack(times[:whole]))
