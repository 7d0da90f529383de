"""Which keys of an incident.json the typed record passes over."""

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from freezeframe.harness.core.verdict.record import IncidentRecord


def unread(raw: Any, kind: Any = IncidentRecord, where: str = "") -> Iterator[str]:
    """Each key, with the way to it, that no field of the record has."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (kind,) = [one for one in inner if one is not type(None)][:1]
        yield from unread(raw, kind, where)
    elif origin is tuple and isinstance(raw, list):
        for one in raw:
            yield from unread(one, inner[0], f"{where}[]")
    elif origin is dict and isinstance(raw, dict):
        for key, one in raw.items():
            yield from unread(one, inner[1], f"{where}.{key}")
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(raw, dict):
        names = {one.encode_name: one.name for one in msgspec.structs.fields(kind)}
        hints = get_type_hints(kind)
        for key, one in raw.items():
            if key in names:
                yield from unread(one, hints[names[key]], f"{where}.{key}")
            else:
                yield f"{where}.{key}"
