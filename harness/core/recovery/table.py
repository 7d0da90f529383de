"""The recovery's state table: the steps of one side, and which signal leads from one to the next."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final


class SideStep(IntEnum):
    """Progress of one side. The side with the lowest step is served first: both are asked for
    their reply before either restart is waited for."""

    INSTRUCTED = 0
    MISSED = 1
    """No frame reached it; its first chance to answer, while the other side restarts."""
    RESTARTING = 2
    BREAKING = 3
    POWER_CYCLING = 4
    PULLING = 5
    LAST_CHANCE = 6
    """Still without a set, all else is collected."""
    ARMED = 7
    SETTLED = 8


class Signal(StrEnum):
    """Meaning of an event for a side in its present step."""

    OUT = "frame out"
    NOT_OUT = "frame not out"
    SAVED_LATE = "asked to save now"
    KEPT = "keeps a set of it"
    TOO_LATE = "too late to save"
    NO_ANSWER_YET = "cannot be asked to save"
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
    SideStep.ARMED: {Signal.OUT: SideStep.INSTRUCTED, Signal.NOT_OUT: SideStep.MISSED},
    SideStep.MISSED: {
        Signal.SAVED_LATE: SideStep.INSTRUCTED,
        Signal.KEPT: SideStep.PULLING,
        Signal.TOO_LATE: SideStep.SETTLED,
        Signal.NO_ANSWER_YET: SideStep.LAST_CHANCE,
    },
    SideStep.LAST_CHANCE: {
        Signal.SAVED_LATE: SideStep.INSTRUCTED,
        Signal.KEPT: SideStep.PULLING,
        Signal.TOO_LATE: SideStep.SETTLED,
        Signal.NO_ANSWER_YET: SideStep.SETTLED,
    },
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
        Signal.UNREACHABLE: SideStep.LAST_CHANCE,
    },
    SideStep.BREAKING: {
        Signal.UP: SideStep.PULLING,
        Signal.DID_NOT_RESTART: SideStep.SETTLED,
        Signal.BROKEN_IN: SideStep.RESTARTING,
        Signal.HUNG: SideStep.POWER_CYCLING,
        Signal.LOST: SideStep.SETTLED,
        Signal.UNREACHABLE: SideStep.LAST_CHANCE,
    },
    SideStep.POWER_CYCLING: {
        Signal.UP: SideStep.PULLING,
        Signal.DID_NOT_RESTART: SideStep.SETTLED,
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
