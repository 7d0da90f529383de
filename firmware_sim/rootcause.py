"""Build root cause data sets from the state record and the event log, and keep them in
non-volatile memory until they are acknowledged.

A set is one NVRAM item: a CBOR list [entry, blob]. NVRAM writes are atomic, so an interrupted
store leaves no listed set; one damaged later is listed as incomplete.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import cbor2
import zstandard

from freezeframe.harness.wire.control import MAX_SET_BYTES, MAX_SETS, SetKind
from freezeframe.harness.wire.rootcause import FORMAT, HEADER_KEYS, SET_KEYS, STATE_KEYS

ZSTD_LEVEL: Final = 3
KEPT_SETS: Final = 16
"""Maximum number of sets. A warmstart then replaces the oldest; a state save is refused."""
_PREFIX: Final = "set-"
_COUNTER: Final = "sets.next"
MAX_ITEM_BYTES: Final = MAX_SET_BYTES + (1 << 16)
assert KEPT_SETS <= MAX_SETS


class NoSpace(Exception):
    """No room for another set, and no set that may be replaced."""


class Nvram(Protocol):
    """Small non-volatile items by name. ``write`` is atomic, even at a power loss."""

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...
    def names(self) -> list[str]: ...


class MemoryNvram:
    """NVRAM in memory, for virtual time: it outlives the controller object."""

    def __init__(self) -> None:
        self.items: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self.items.get(name)

    def write(self, name: str, data: bytes) -> None:
        self.items[name] = data

    def delete(self, name: str) -> None:
        self.items.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self.items)


class FileNvram:
    """NVRAM with one file per item in a directory; items are written by renaming."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for half in directory.glob("*.new"):
            half.unlink()

    def read(self, name: str) -> bytes | None:
        path = self._directory / name
        try:
            if path.stat().st_size > MAX_ITEM_BYTES:
                return None
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        half = self._directory / f"{name}.new"
        with half.open("wb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        half.replace(self._directory / name)

    def delete(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return sorted(path.name for path in self._directory.iterdir() if path.suffix != ".new")


@dataclass(frozen=True, slots=True)
class Entry:
    """One set as listed by LIST_SETS."""

    set_id: int
    kind: int
    complete: bool
    reason: int
    incident_id: bytes
    raw_bytes: int
    stored_bytes: int
    boot_epoch: int
    sha256: bytes


def build(
    header: Mapping[str, object], state: Mapping[str, object], events: bytes
) -> tuple[int, bytes]:
    """A set's raw length and its stored (compressed) bytes."""
    assert tuple(header) == HEADER_KEYS and tuple(state) == STATE_KEYS
    raw = cbor2.dumps(dict(zip(SET_KEYS, (FORMAT, dict(header), dict(state), events), strict=True)))
    return len(raw), zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True).compress(
        raw
    )


class SetStore:
    """The sets of one controller. Entries are held in memory; the blobs are read from NVRAM when
    asked for."""

    def __init__(self, nvram: Nvram) -> None:
        self._nvram = nvram
        self._entries: dict[int, Entry] = {}
        for name in nvram.names():
            if name.startswith(_PREFIX):
                entry = self._load(name)
                if entry is not None:
                    self._entries[entry.set_id] = entry
        counter = nvram.read(_COUNTER) or b""
        self._next_id = max(
            [int.from_bytes(counter[:4], "big"), 1, *(key + 1 for key in self._entries)]
        )

    def _load(self, name: str) -> Entry | None:
        item = self._open(name)
        if item is None:
            return None
        entry, blob = item
        whole = hashlib.sha256(blob).digest() == entry.sha256 and len(blob) == entry.stored_bytes
        return replace(entry, complete=whole)

    def _open(self, name: str) -> tuple[Entry, bytes] | None:
        """Return entry and blob of the item; None: it does not even contain an entry."""
        data = self._nvram.read(name)
        if data is None:
            return None
        try:
            fields, blob = cbor2.loads(data)
            return Entry(**fields), bytes(blob)
        except (cbor2.CBORDecodeError, TypeError, ValueError):
            return None

    @property
    def next_id(self) -> int:
        return self._next_id

    def add(self, header: Mapping[str, Any], state: Mapping[str, object], events: bytes) -> Entry:
        """Store a set under ``header["set_id"]`` (= ``next_id``). Raises NoSpace for a state save
        when full."""
        if len(self._entries) >= KEPT_SETS:
            if header["kind"] != SetKind.WARMSTART:
                raise NoSpace(f"{KEPT_SETS} sets wait to be acknowledged")
            self.free(min(self._entries))
        raw_bytes, blob = build(header, state, events)
        entry = Entry(
            set_id=header["set_id"],
            kind=header["kind"],
            complete=True,
            reason=header["reason"],
            incident_id=header["incident_id"],
            raw_bytes=raw_bytes,
            stored_bytes=len(blob),
            boot_epoch=header["boot_epoch"],
            sha256=hashlib.sha256(blob).digest(),
        )
        self._next_id = entry.set_id + 1
        self._nvram.write(_COUNTER, self._next_id.to_bytes(4, "big"))
        self._nvram.write(_name(entry.set_id), cbor2.dumps([asdict(entry), blob]))
        self._entries[entry.set_id] = entry
        return entry

    def entries(self) -> list[Entry]:
        return [self._entries[set_id] for set_id in sorted(self._entries)]

    def entry(self, set_id: int) -> Entry | None:
        return self._entries.get(set_id)

    def read(self, set_id: int) -> bytes | None:
        """Return the stored bytes of a set."""
        if set_id not in self._entries:
            return None
        item = self._open(_name(set_id))
        return item[1] if item else None

    def free(self, set_id: int) -> None:
        del self._entries[set_id]
        self._nvram.delete(_name(set_id))


def _name(set_id: int) -> str:
    return f"{_PREFIX}{set_id:08x}"
