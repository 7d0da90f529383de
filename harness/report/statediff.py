"""Two state records side by side: which of their fields differ. For a person; the verdict judges for itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from harness.core.rootcause import RootCauseSet, jsonable
from harness.core.text import escape
from harness.core.writepath import number
from harness.wire import control, drbd
from harness.wire.rootcause import WriteStage

MAX_ROWS: Final = 200
MAX_WRITES: Final = 40
_NAMES: Final[dict[str, Mapping[int, str]]] = {
    "role": drbd.ROLE_NAMES,
    "conn": drbd.CONN_NAMES,
    "disk": drbd.DISK_NAMES,
    "peer_disk": drbd.DISK_NAMES,
    "pair_state": control.PAIR_STATE_NAMES,
}
_LISTED_APART: Final = frozenset({"last_writes"})


@dataclass(frozen=True)
class FieldRow:
    name: str
    primary: str
    secondary: str
    differs: bool


@dataclass(frozen=True)
class WriteRow:
    """A write that the two controllers tell differently."""

    sector: str
    primary: str
    secondary: str


def field_rows(primary: RootCauseSet | None, secondary: RootCauseSet | None) -> list[FieldRow]:
    """Every field of header and state; those that differ first."""
    both = [dict(_flat(one)) if one is not None else {} for one in (primary, secondary)]
    rows = []
    for name in dict.fromkeys([*both[0], *both[1]]):
        left, right = (one.get(name, "-") for one in both)
        rows.append(FieldRow(name, left, right, left != right))
    return sorted(rows[: 10 * MAX_ROWS], key=lambda row: not row.differs)[:MAX_ROWS]


def write_rows(primary: RootCauseSet | None, secondary: RootCauseSet | None) -> list[WriteRow]:
    """Of the last writes of both, those whose checksum or stage is not the same; the newest last."""
    if primary is None or secondary is None:
        return []
    left, right = _last_writes(primary), _last_writes(secondary)
    rows = [
        WriteRow(str(sector), _told(left.get(sector)), _told(right.get(sector)))
        for sector in dict.fromkeys([*left, *right])
        if left.get(sector) != right.get(sector)
    ]
    return rows[-MAX_WRITES:]


def _flat(one: RootCauseSet) -> Iterator[tuple[str, str]]:
    for part, content in (("", one.state), ("set: ", one.header)):
        for name, value in jsonable(content).items():
            if name in _LISTED_APART:
                continue
            if isinstance(value, Mapping) and value:
                for inner, deeper in list(value.items())[:50]:
                    yield escape(f"{part}{name}.{inner}")[:80], escape(str(deeper))[:200]
            else:
                yield escape(part + name)[:80], _shown(name, value)


def _shown(name: str, value: Any) -> str:
    if name in _NAMES and number(value) is not None:
        return escape(_NAMES[name].get(value, str(value)))
    if name == "uuids" and isinstance(value, list):
        return " ".join(f"{one:016X}" if number(one) is not None else escape(str(one)) for one in value[:4])
    return escape(str(value))[:200]


def _last_writes(one: RootCauseSet) -> dict[int, tuple[int, int, str]]:
    """Sector -> (bytes, CRC-32C, stage) of the newest write to it."""
    found = {}
    writes = one.state.get("last_writes")
    for write in writes if isinstance(writes, list) else []:
        if (
            isinstance(write, list)
            and len(write) == 7
            and all(number(write[at]) is not None for at in (1, 2, 3, 6))
        ):
            found[write[1]] = (write[2], write[3], _stage(write[6]))
    return found


def _stage(value: int) -> str:
    kind: type[IntEnum] = WriteStage
    try:
        return kind(value).name.lower()
    except ValueError:
        return str(value)


def _told(write: tuple[int, int, str] | None) -> str:
    return (
        "not among its last writes"
        if write is None
        else f"{write[2]}, {write[0]} bytes, CRC-32C {write[1]:08x}"
    )
