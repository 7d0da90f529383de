"""Two controllers' state records against each other: fields that must agree and do not, beside the
last healthy ones; and all fields side by side, in words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from freezeframe.harness.core.rootcause import RootCauseSet, StateRecord, jsonable
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.record import StateDifference
from freezeframe.harness.wire import control, drbdnames

UUID_PRIMARY_BIT: Final = 1
"""Lowest bit of the current UUID: set on the primary, and no difference of generations."""
MAX_WRITES_LISTED: Final = 16


def _current(state: StateRecord) -> object:
    uuids = state.get("uuids")
    first = uuids[0] if isinstance(uuids, list) and uuids else None
    return f"{first & ~UUID_PRIMARY_BIT:016X}" if type(first) is int else None


def _name(names: Mapping[int, str], key: str) -> Callable[[StateRecord], object]:
    def value_of(state: StateRecord) -> object:
        value = state.get(key)
        return names.get(value, value) if type(value) is int else value

    return value_of


_PAIR_STATE: Final = _name(control.PAIR_STATE_NAMES, "pair_state")
_CONN: Final = _name(drbdnames.CONN_NAMES, "conn")
_DISK, _PEER_DISK = _name(drbdnames.DISK_NAMES, "disk"), _name(drbdnames.DISK_NAMES, "peer_disk")
_PAIRS: Final[
    Sequence[tuple[str, Callable[[StateRecord], object], Callable[[StateRecord], object]]]
] = (
    ("pair state", _PAIR_STATE, _PAIR_STATE),
    ("connection", _CONN, _CONN),
    ("protocol version", lambda p: p.get("protocol_version"), lambda s: s.get("protocol_version")),
    ("data generation (current UUID)", _current, _current),
    ("primary's disk, as it and as its peer say", _DISK, _PEER_DISK),
    ("secondary's disk, as its peer and as it say", _PEER_DISK, _DISK),
    ("blocks out of sync", lambda p: p.get("dirty_blocks"), lambda s: s.get("dirty_blocks")),
)
"""Name, and what of each record must be equal."""


def differences(
    primary: StateRecord | None,
    secondary: StateRecord | None,
    healthy: Mapping[str, StateRecord | None],
) -> tuple[StateDifference, ...]:
    """A row a field that differs: field, primary, secondary, and what both said when the bench was
    armed."""
    if primary is None or secondary is None:
        return ()
    rows = []
    healthy_primary, healthy_secondary = healthy.get("primary"), healthy.get("secondary")
    for name, of_primary, of_secondary in _PAIRS:
        one, other = of_primary(primary), of_secondary(secondary)
        if one != other:
            rows.append(
                StateDifference(
                    field=name,
                    primary=jsonable(one),
                    secondary=jsonable(other),
                    healthy_primary=jsonable(of_primary(healthy_primary)) if healthy_primary else None,
                    healthy_secondary=jsonable(of_secondary(healthy_secondary)) if healthy_secondary else None,
                )
            )  # fmt: skip
    return (*rows, *_writes(primary, secondary))


def _writes(primary: StateRecord, secondary: StateRecord) -> list[StateDifference]:
    """Writes that both remember, by their block_id, with other data."""
    theirs = _by_block_id(secondary)
    rows: list[StateDifference] = []
    for block_id, own in _by_block_id(primary).items():
        other = theirs.get(block_id)
        if other is not None and other != own and len(rows) < MAX_WRITES_LISTED:
            field = f"write {block_id.hex()} (sector, bytes, CRC-32C)"
            rows.append(StateDifference(field=field, primary=list(own), secondary=list(other)))
    return rows


def _by_block_id(state: StateRecord) -> dict[bytes, tuple[int, int, int]]:
    rows = state.get("last_writes")
    return {
        row[4]: (row[1], row[2], row[3])
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, list) and len(row) >= 7 and isinstance(row[4], bytes)
    }


# --- all fields, for a person --------------------------------------------------------------------------------
MAX_ROWS: Final = 200
_NAMES: Final[dict[str, Mapping[int, str]]] = {
    "role": drbdnames.ROLE_NAMES,
    "conn": drbdnames.CONN_NAMES,
    "disk": drbdnames.DISK_NAMES,
    "peer_disk": drbdnames.DISK_NAMES,
    "pair_state": control.PAIR_STATE_NAMES,
}
_LISTED_APART: Final = frozenset({"last_writes"})


@dataclass(frozen=True)
class FieldRow:
    name: str
    primary: str
    secondary: str
    differs: bool


def field_rows(primary: RootCauseSet | None, secondary: RootCauseSet | None) -> list[FieldRow]:
    """Every field of header and state; those that differ first."""
    both = [dict(_flat(one)) if one is not None else {} for one in (primary, secondary)]
    rows = []
    for name in dict.fromkeys([*both[0], *both[1]]):
        left, right = (one.get(name, "-") for one in both)
        rows.append(FieldRow(name, left, right, left != right))
    return sorted(rows[: 10 * MAX_ROWS], key=lambda row: not row.differs)[:MAX_ROWS]


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
    if name in _NAMES and type(value) is int:
        return escape(_NAMES[name].get(value, str(value)))
    if name == "uuids" and isinstance(value, list):
        return " ".join(
            f"{one:016X}" if type(one) is int else escape(str(one)) for one in value[:4]
        )
    return escape(str(value))[:200]
