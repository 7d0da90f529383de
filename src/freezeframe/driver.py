"""Public: what the author of a driver needs.

A driver is a class that plays one role (``Controller``, ``HostPort``, ``HostWorkload``,
``PowerRail``). A package registers it in the entry-point group ``freezeframe.drivers``, and a bench
file then names it. ``freezeframe.testing`` checks a driver against its role.
"""

from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.core.rootcause import (
    ALL_EVENTS,
    RootCauseSet,
    required_arguments,
    set_header,
    state_record,
)
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.errors import (
    DriverError,
    HarnessError,
    RigError,
    UsageError,
    WireError,
    WrongDeviceError,
)
from freezeframe.harness.roles import (
    Acknowledging,
    BlockReading,
    BreakingIn,
    BreakLine,
    ByteLink,
    Clock,
    Controller,
    FaultArming,
    HostPort,
    HostWorkload,
    Identity,
    PowerRail,
    Preparable,
    Printing,
    Rehearsing,
    Reply,
    Secret,
    SelfMonitoring,
    Serviceable,
    SetEntry,
    SetReader,
    Tracing,
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
    "ALL_EVENTS",
    "Acknowledging",
    "BlockReading",
    "BreakLine",
    "BreakingIn",
    "ByteLink",
    "Clock",
    "Controller",
    "DriverError",
    "EVENT_ARGUMENTS",
    "EventCode",
    "FaultArming",
    "HEADER_KEYS",
    "HarnessError",
    "HostPort",
    "HostWorkload",
    "Identity",
    "MonotonicClock",
    "Ns",
    "PAIR_STATE_NAMES",
    "PairState",
    "PowerRail",
    "Preparable",
    "Printing",
    "Rehearsing",
    "Reply",
    "RigError",
    "Role",
    "RootCauseSet",
    "SIDES",
    "STATE_KEYS",
    "Secret",
    "SelfMonitoring",
    "Serviceable",
    "SetEntry",
    "SetReader",
    "Side",
    "Tracing",
    "UsageError",
    "WireError",
    "WriteStage",
    "WrongDeviceError",
    "required_arguments",
    "set_header",
    "state_record",
]
