"""Public: what the author of a driver needs.

A driver is a class that plays one role (``Controller``, ``HostPort``, ``HostWorkload``,
``PowerRail``). A package registers it in the entry-point group ``freezeframe.drivers``, and a bench
file then names it. ``freezeframe.testing`` checks a driver against its role.
"""

from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.errors import (
    HarnessError,
    RigError,
    UsageError,
    WireError,
    WrongDeviceError,
)
from freezeframe.harness.roles import (
    ByteLink,
    Clock,
    Controller,
    HostPort,
    HostWorkload,
    Identity,
    PowerRail,
    Preparable,
    Printing,
    Reply,
    Serviceable,
    SetEntry,
    SetReader,
)
from freezeframe.harness.wire.control import PAIR_STATE_NAMES, PairState
from freezeframe.harness.wire.drbd import Role
from freezeframe.harness.wire.rootcause import (
    EVENT_ARGUMENTS,
    HEADER_KEYS,
    STATE_KEYS,
    EventCode,
    WriteStage,
)

__all__ = [
    "EVENT_ARGUMENTS",
    "HEADER_KEYS",
    "PAIR_STATE_NAMES",
    "SIDES",
    "STATE_KEYS",
    "ByteLink",
    "Clock",
    "Controller",
    "EventCode",
    "HarnessError",
    "HostPort",
    "HostWorkload",
    "Identity",
    "Ns",
    "PairState",
    "PowerRail",
    "Preparable",
    "Printing",
    "Reply",
    "RigError",
    "Role",
    "RootCauseSet",
    "Serviceable",
    "SetEntry",
    "SetReader",
    "Side",
    "UsageError",
    "WireError",
    "WriteStage",
    "WrongDeviceError",
]
