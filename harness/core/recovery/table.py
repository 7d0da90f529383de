"""The recovery's state table: the steps of one side, and which signal leads from one to the next."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final


class SideStep(IntEnum):
    """Progress of one side. The side with the lowest step is served first: both are asked for
    their reply before either restart is waited for."""

    INSTRUCTED = 0
    RESTARTING = 1
    BREAKING = 2
    POWER_CYCLING = 3
    PULLING = 4
    ARMED = 5
    SETTLED = 6


class Signal(StrEnum):
    """Meaning of an event for a side in its present step."""

    OUT = "frame out"
    NOT_OUT = "frame not out"
    ACKNOWLEDGED = "acknowledged"
    SAVED = "saved"
    REFUSED = "refused"
    STALE = "restarted since it was armed"
    AGAIN = "no answer, written again"
    SILENT = "no answer"
    UP = "up"
    DID_NOT_RESTART = "did not restart"
    BREAKABLE = "hung, a BREAK can be sent"
    BROKEN_IN = "BREAK sent"
    HUNG = "hung, power can be cycled"
    LOST = "hung, power cannot be cycled"
    UNREACHABLE = "control line gone"
    """Whether it came back is not known: nobody could ask."""
    CYCLED = "power cycled"
    NOT_CYCLED = "power not cycled"
    PULLED = "set pulled"
    BROKE_OFF = "pull broke off"
    GAVE_UP = "pull given up"


TABLE: Final[Mapping[SideStep, Mapping[Signal, SideStep]]] = {
    SideStep.ARMED: {Signal.OUT: SideStep.INSTRUCTED, Signal.NOT_OUT: SideStep.SETTLED},
    SideStep.INSTRUCTED: {
        Signal.ACKNOWLEDGED: SideStep.RESTARTING,
        Signal.SILENT: SideStep.RESTARTING,
        Signal.REFUSED: SideStep.SETTLED,
        Signal.STALE: SideStep.RESTARTING,
        Signal.AGAIN: SideStep.INSTRUCTED,
        Signal.SAVED: SideStep.PULLING,
    },
    SideStep.RESTARTING: {
        Signal.UP: SideStep.PULLING,
        Signal.DID_NOT_RESTART: SideStep.SETTLED,
        Signal.BREAKABLE: SideStep.BREAKING,
        Signal.HUNG: SideStep.POWER_CYCLING,
        Signal.LOST: SideStep.SETTLED,
        Signal.UNREACHABLE: SideStep.SETTLED,
    },
    SideStep.BREAKING: {
        Signal.BROKEN_IN: SideStep.RESTARTING,
        Signal.HUNG: SideStep.POWER_CYCLING,
        Signal.LOST: SideStep.SETTLED,
        Signal.UNREACHABLE: SideStep.SETTLED,
    },
    SideStep.POWER_CYCLING: {
        Signal.CYCLED: SideStep.RESTARTING,
        Signal.NOT_CYCLED: SideStep.SETTLED,
    },
    SideStep.PULLING: {
        Signal.PULLED: SideStep.SETTLED,
        Signal.BROKE_OFF: SideStep.PULLING,
        Signal.AGAIN: SideStep.INSTRUCTED,
        Signal.GAVE_UP: SideStep.SETTLED,
    },
    SideStep.SETTLED: {},
}
assert set(TABLE) == set(SideStep)
assert {signal for row in TABLE.values() for signal in row} == set(Signal)
