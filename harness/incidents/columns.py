"""The columns of ``freezeframe list``: one row of ``COLUMNS`` per column.

A row gives the heading, the key in ``--json``, where the value comes from, and when it is left out.
The index stores what ``read`` returns, and is built again when the rows change.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from freezeframe.harness.core.verdict.assurance import data_equal
from freezeframe.harness.core.verdict.record import IncidentRecord

Value = str | int | bool | None
MAX_VALUE_CHARS: Final = 300


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One incident of the list. Texts are escaped."""

    name: str
    folder: Path
    outcome: str
    kind: str
    seen: int
    """Number of incidents of this kind."""
    stored: Mapping[str, Value]
    """Values of ``Column.read``, by key."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. It has either ``read`` or ``value``."""

    key: str
    """Its key in ``--json``."""
    title: str = ""
    """Its heading; "": only in ``--json``."""
    read: Callable[[IncidentRecord], Value] | None = None
    """Value from the record, read once per incident and stored in the index."""
    value: Callable[[Entry], Value] | None = None
    """Value that is known only when the list is made."""
    shown: Callable[[Value], str] = str
    """Text of a value in the table."""
    is_whole: bool = False
    """Never divided, however narrow the terminal, so that it can be copied."""
    leaves: int = 0
    """Where the terminal is too narrow for all columns: the one with the highest number is left out
    first. 0: never."""

    def of(self, entry: Entry) -> Value:
        """Return the value of this column."""
        return self.value(entry) if self.value is not None else entry.stored.get(self.key)


def _rule(record: IncidentRecord) -> Value:
    return record.trigger.rule or None if record.trigger is not None else None


def _or(absent: str) -> Callable[[Value], str]:
    return lambda value: absent if value in (None, "") else str(value)


def _reaction_ns(record: IncidentRecord) -> Value:
    trigger = record.trigger
    if trigger is None or not trigger.t_frame_done_ns or not trigger.t_arrival_ns:
        return None
    return trigger.t_frame_done_ns - trigger.t_arrival_ns


_EQUAL: Final[Mapping[Value, str]] = {True: "yes", False: "NO", None: "-"}
COLUMNS: Final = (
    Column(key="id", title="incident", value=lambda one: one.name, is_whole=True),
    Column(key="incident", value=lambda one: str((one.folder / one.name).absolute())),
    Column(key="outcome", title="outcome", value=lambda one: one.outcome, is_whole=True),
    Column(key="scenario", title="scenario", read=lambda one: one.scenario, shown=_or("watch"), leaves=1),
    Column(key="bench", read=lambda one: one.bench),
    Column(key="seed", read=lambda one: one.seed),
    Column(key="side", read=lambda one: one.trigger.side if one.trigger is not None else None),
    Column(key="reaction_ns", read=_reaction_ns),
    Column(key="rule", title="trigger", read=_rule, shown=_or("-")),
    Column(key="kind", title="kind", value=lambda one: one.kind, is_whole=True, leaves=2),
    Column(key="seen", title="seen", value=lambda one: one.seen, leaves=3),
    Column(
        key="data_equal", title="data equal", read=data_equal, shown=_EQUAL.__getitem__, leaves=4
    ),
)  # fmt: skip


def stored_version(columns: tuple[Column, ...]) -> int:
    """Number of the set of stored columns: an index with another number is built again."""
    keys = ",".join(one.key for one in columns if one.read is not None)
    return zlib.crc32(keys.encode()) & 0x7FFF
