"""What each method of a role returns: in words, and as a check of the value.

``bench/boundary.py`` holds drivers to it while a bench is open; ``freezeframe.testing`` does so before.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import islice
from typing import Final, get_type_hints

from freezeframe.harness.core import rootcause
from freezeframe.harness.roles import (
    Acknowledging,
    BlockReading,
    BreakingIn,
    Controller,
    FaultArming,
    HostPort,
    Identity,
    PowerRail,
    Preparable,
    Printing,
    Rehearsing,
    Reply,
    SelfMonitoring,
    SetEntry,
    Tracing,
)
from freezeframe.harness.wire import control

MAX_FRAME_BYTES: Final = 64 << 10
MAX_LISTED_SETS: Final = 4096


class BrokenPromiseError(Exception):
    """A returned value is not what was promised; the text continues "NAME() ..."."""


@dataclass(frozen=True)
class Promise:
    """What a method returns: in words, and how the value is checked and made whole. ``take`` raises
    BrokenPromiseError."""

    expected: str
    take: Callable[[object], object]


def shown(value: object) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{type(value).__name__} ({text})"


def _a(kind: type, *, optional: bool = False) -> Callable[[object], object]:
    """Check a value, and each field of a dataclass, for its type."""

    def take(value: object) -> object:
        if value is None and optional:
            return None
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise BrokenPromiseError(f"returned {shown(value)}")
        if is_dataclass(value):
            _check_fields(value)
        return value

    return take


def _check_fields(value: object) -> None:
    hints = get_type_hints(type(value))
    for field in fields(value):  # type: ignore[arg-type]
        hint, found = hints[field.name], getattr(value, field.name)
        wrong = not isinstance(found, hint) or (hint is int and isinstance(found, bool))
        if isinstance(hint, type) and wrong:
            raise BrokenPromiseError(
                f"returned {type(value).__name__} with {field.name}={shown(found)}, which is not {hint.__name__}"
            )


def _identity(value: object) -> object:
    found = _a(Identity)(value)
    assert isinstance(found, Identity)
    if found.pair_state not in control.PAIR_STATE_NAMES.values():
        allowed = ", ".join(control.PAIR_STATE_NAMES.values())
        raise BrokenPromiseError(f"returned pair_state {found.pair_state!r}; allowed: {allowed}")
    return found


def _reply(value: object) -> object:
    found = _a(Reply)(value)
    assert isinstance(found, Reply)
    return found if found.t_received_ns else replace(found, t_received_ns=time.monotonic_ns())


def _frame(value: object) -> object:
    found = _a(bytes)(value)
    assert isinstance(found, bytes)
    if not 0 < len(found) <= MAX_FRAME_BYTES:
        raise BrokenPromiseError(f"returned {len(found)} bytes; allowed: 1 to {MAX_FRAME_BYTES}")
    return found


def _listed(value: object) -> object:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise BrokenPromiseError(f"returned {shown(value)}")
    found = list(islice(value, MAX_LISTED_SETS + 1))
    if len(found) > MAX_LISTED_SETS:
        raise BrokenPromiseError(f"lists more than {MAX_LISTED_SETS} sets")
    for one in found:
        _a(SetEntry)(one)
        if len(one.incident_id) != control.INCIDENT_ID_BYTES and one.incident_id:
            raise BrokenPromiseError(
                f"lists set {one.set_id} with an incident_id of {len(one.incident_id)} bytes, it has "
                f"{control.INCIDENT_ID_BYTES}, or none for a set of no incident"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", one.sha256):
            raise BrokenPromiseError(
                f"lists set {one.set_id} with a sha256 that is not 64 digits 0-9a-f"
            )
        if one.stored_bytes < 0 or one.stored_bytes > control.MAX_SET_BYTES:
            raise BrokenPromiseError(f"lists set {one.set_id} with {one.stored_bytes} bytes stored")
    return found


def _state(value: object) -> object:
    if not isinstance(value, Mapping):
        raise BrokenPromiseError(f"returned {shown(value)}")
    return dict(value)


def pulled_set(value: object) -> object:
    wrong = rootcause.wrong_with(value)
    if wrong:
        raise BrokenPromiseError(f"returned what cannot be judged: {wrong}")
    return value


def _measured(value: object) -> object:
    if not isinstance(value, tuple) or len(value) != 2:
        raise BrokenPromiseError(f"returned {shown(value)}")
    for one in value:
        if not isinstance(one, int | float) or isinstance(one, bool) or one != one:
            raise BrokenPromiseError(f"returned {shown(value)}")
    return value


def _anything(value: object) -> object:
    return value


_REPLY: Final = Promise("a Reply", _reply)
PROMISES: Final[Mapping[type, Mapping[str, Promise]]] = {
    Controller: {
        "identify": Promise("an Identity, or RigError or WireError", _identity),
        "freeze_frame": Promise("bytes, without asking the device", _frame),
        "freeze_reply": Promise(
            "a Reply, or None when none came by the deadline",
            lambda value: None if value is None else _reply(value),
        ),
        "state": Promise("a dict with the keys of STATE_KEYS", _state),
        "sets": Promise("a list of SetEntry", _listed),
        "pull": Promise(
            "a RootCauseSet, after each new stored byte was passed to progress", pulled_set
        ),
    },
    Printing: {"print_line": _REPLY},
    Preparable: {"prepare": Promise("nothing, or RigError", _anything)},
    Rehearsing: {"rehearse": _REPLY},
    SelfMonitoring: {"monitor": Promise("nothing, once it watches, or RigError", _anything)},
    BlockReading: {"read_blocks": Promise("as many bytes as were asked for", _a(bytes))},
    BreakingIn: {"break_in": Promise("nothing, once the BREAK is sent, or RigError", _anything)},
    Acknowledging: {"acknowledge": _REPLY},
    FaultArming: {"set_faults": _REPLY},
    Tracing: {"set_trace_level": _REPLY},
    HostPort: {
        "read": Promise("as many bytes as were asked for", _a(bytes)),
        "write": Promise("nothing, once the data are accepted", _anything),
        "flush": Promise("nothing, once all is stored", _anything),
        "trim": Promise("nothing", _anything),
        "close": Promise("nothing", _anything),
    },
    PowerRail: {
        "set_output": Promise("nothing", _anything),
        "output": Promise("True or False", _a(bool)),
        "measure": Promise("(volts, amperes), two numbers", _measured),
        "identify": Promise("a text", _a(str)),
        "close": Promise("nothing", _anything),
    },
}
"""Role -> method -> what it promises. The optional roles of a controller stand beside Controller."""
OPTIONAL: Final = (
    Printing, Preparable, Rehearsing, SelfMonitoring, BlockReading, BreakingIn, Acknowledging, FaultArming, Tracing,
)  # fmt: skip
