"""``incident.json`` -> ``IncidentRecord``. The file may come from anywhere, and from an older version: what it says is
checked value by value, and what is not as it must be becomes None or is left out, and a sentence says so.
"""

import json
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.comparisonrecord import RecordPart
from freezeframe.harness.core.verdict.record import FORMAT, IncidentRecord

Damage = list[str]
"""What could not be read, a sentence each."""
Raw = Mapping[str, object]
"""JSON as it was read: nothing of it is believed."""
MAX_ITEMS: Final = 100_000
"""Of one list or map."""
MAX_PROBLEMS: Final = 100
MAX_SHOWN_CHARS: Final = 120
MAX_SENTENCE_CHARS: Final = 400
OLDEST: Final = "freezeframe-incident/1"
_BAD: Final = object()
S = TypeVar("S", bound=RecordPart)


def read_record(raw: object) -> tuple[IncidentRecord, tuple[str, ...]]:
    """(the record, what of it could not be read). ``raw``: the JSON value of the whole file."""
    damage: Damage = []
    if not isinstance(raw, Mapping):
        return IncidentRecord(), ("not a JSON object",)
    made = _struct(IncidentRecord, _converted(raw, damage), "", damage)
    return made if isinstance(made, IncidentRecord) else IncidentRecord(), tuple(damage)


def parsed(data: bytes, parse_int: Callable[[str], int]) -> tuple[Raw, str]:
    """(the JSON object, what is wrong with it)"""
    try:
        read = json.loads(data, parse_int=parse_int)
    except (ValueError, RecursionError) as error:
        return {}, escape(str(error))
    return (read, "") if isinstance(read, dict) else ({}, "not a JSON object")


# --- older formats ------------------------------------------------------------------------------------------
def _from_1(raw: Raw) -> Raw:
    """Format 1 had no frame in the verdict, but in the step of its way on the link; and texts where 2 has nothing."""
    verdict = raw.get("verdict")
    changed = {name: value for name, value in raw.items() if not (name in _MAPS and value is None)}
    if isinstance(verdict, dict) and "packet_no" not in verdict:
        route = verdict.get("route")
        steps = [one for one in route if isinstance(one, dict)] if isinstance(route, list) else []
        frames = [one.get("packet_no") for one in steps if one.get("at") == "link data"]
        changed["verdict"] = verdict | {"packet_no": frames[0] if frames else None}
    return changed


_MAPS: Final = ("capture", "workload", "canaries", "recheck", "counted_hits", "controllers", "sets")
CONVERTERS: Final[Mapping[str, Callable[[Raw], Raw]]] = {OLDEST: _from_1}
"""Format -> what makes the next one of it."""
_NEXT: Final = {OLDEST: FORMAT}


def _converted(raw: Raw, damage: Damage) -> Raw:
    named = raw.get("format", OLDEST)
    version = named if isinstance(named, str) else OLDEST
    if version not in (*CONVERTERS, FORMAT):
        _tell(damage, f"format {version!r} is not known: read as {FORMAT}")
        version = FORMAT
    while version in CONVERTERS:
        raw, version = CONVERTERS[version](raw), _NEXT[version]
    return raw


# --- value by value -----------------------------------------------------------------------------------------
def _tell(damage: Damage, text: str) -> None:
    if len(damage) < MAX_PROBLEMS:
        damage.append(escape(text[:MAX_SENTENCE_CHARS]))


@cache
def _fields(kind: type[RecordPart]) -> tuple[tuple[str, Any, bool], ...]:
    """(name, type, may be left out)"""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (one.encode_name, hints[one.name], not one.required) for one in msgspec.structs.fields(kind)
    )


def _struct(kind: type[S], raw: object, where: str, damage: Damage) -> S | object:
    """``kind`` made of ``raw``; _BAD when a field that must be there is not."""
    if kind.__struct_config__.array_like and isinstance(raw, list | tuple):
        raw = {name: value for (name, _, _), value in zip(_fields(kind), raw, strict=False)}
    if not isinstance(raw, Mapping):
        _tell(damage, f"{where or 'the record'}: not an object")
        return _BAD
    values: dict[str, Any] = {}
    for name, hint, may_lack in _fields(kind):
        place = f"{where}.{name}" if where else name
        value = _value(hint, raw[name], place, damage) if name in raw else _BAD
        if value is not _BAD:
            values[name] = value
        elif not may_lack:
            if name not in raw:
                _tell(damage, f"{place}: missing")
            return _BAD
    return kind(**values)


def _value(hint: Any, raw: object, where: str, damage: Damage) -> object:
    """``raw`` as ``hint`` says; _BAD when it is not."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        inner = [one for one in arguments if one is not type(None)]
        if len(inner) == 1:
            return _value(inner[0], raw, where, damage)
        return _leaf(hint, raw, where, damage)
    if isinstance(hint, type) and issubclass(hint, RecordPart):
        return _struct(hint, raw, where, damage)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _listed(arguments[0], raw, where, damage)
    if origin is dict:
        return _mapped(arguments, raw, where, damage)
    return _leaf(hint, raw, where, damage)


def _listed(hint: Any, raw: object, where: str, damage: Damage) -> object:
    if not isinstance(raw, list | tuple):
        _tell(damage, f"{where}: not a list")
        return _BAD
    if len(raw) > MAX_ITEMS:
        _tell(damage, f"{where}: only the first {MAX_ITEMS} of {len(raw)} are read")
    made = [_value(hint, one, f"{where}[{at}]", damage) for at, one in enumerate(raw[:MAX_ITEMS])]
    return tuple(one for one in made if one is not _BAD)


def _mapped(hints: tuple[Any, ...], raw: object, where: str, damage: Damage) -> object:
    if not isinstance(raw, Mapping):
        _tell(damage, f"{where}: not an object")
        return _BAD
    made = {}
    for key, one in list(raw.items())[:MAX_ITEMS]:
        place = f"{where}.{str(key)[:MAX_SHOWN_CHARS]}"
        name, value = _value(hints[0], key, place, damage), _value(hints[1], one, place, damage)
        if name is not _BAD and value is not _BAD:
            made[name] = value
    return made


def _leaf(hint: Any, raw: object, where: str, damage: Damage) -> object:
    try:
        return msgspec.convert(raw, hint)
    except (msgspec.ValidationError, OverflowError, RecursionError):
        _tell(damage, f"{where}: {_in_words(hint)}, and not {str(raw)[:MAX_SHOWN_CHARS]!r}")
        return _BAD


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    names = {int: "a number", str: "a text", bool: "true or false", float: "a number"}
    base = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    return names.get(base, "a value of its kind")
