"""Rows of an incident timeline, one per event: plain JSON values, with text from devices escaped."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from freezeframe.harness.core.events import Event, Ns, Side, Trigger
from freezeframe.harness.core.text import escape

MAX_TEXT_CHARS: Final = 4096
"""Longer texts are cut. The console log and the capture contain them completely."""
Row = dict[str, Any]
"""Keys: ``t_ns``, ``source``, ``side`` ("" = the pair), ``event``, and the fields of that event."""


def row(t_ns: Ns, source: str, event: str, side: Side | str = "", **fields: Any) -> Row:
    """Make a row. Bytes become hex, text is escaped and cut; other values must be JSON already."""
    made: Row = {"t_ns": t_ns, "source": source, "side": side, "event": event}
    for name, value in fields.items():
        if isinstance(value, bytes | bytearray):
            made[f"{name}_hex"] = value[: MAX_TEXT_CHARS // 2].hex()
        else:
            made[name] = escape(value[:MAX_TEXT_CHARS]) if isinstance(value, str) else value
    return made


def row_of(event: Event, source: str) -> Row:
    """Return the row of an event that ``source`` (reflex, linkwatch, workload, ...) reported."""
    fields = msgspec.structs.asdict(event)
    t_ns, side = fields.pop("t_ns"), fields.pop("side", "")
    if isinstance(event, Trigger):
        fields["text"] = escape(event.excerpt)
        fields["where"] = fields.pop("source")
    fields.pop("source", None)
    return row(t_ns, source, str(type(event).__struct_config__.tag), side, **fields)


def merged(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of all sources sorted by time. Rows with equal times keep their order; a row
    without a time comes first."""
    return sorted(rows, key=lambda one: one["t_ns"] if isinstance(one.get("t_ns"), int) else 0)
