"""Table of the faults that a scenario can arm. A fault is data: the same plan and seed give the
same run.

A plan is a list of maps with the keys of ``FAULT_KEYS``; it reaches the simulated firmware by
SET_FAULTS as CBOR ``{"seed": int, "faults": [...]}``, each side getting its own entries. All are
off by default.

A new kind is one name and one row here: bench files, `check`, the simulator's plan parser and the
list in docs/bench-files.md read this table. Its effect stands in ``firmware_sim/faults.py``.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class FaultKind(StrEnum):
    """The names; ``FAULTS`` says what each one is."""

    BIT_FLIP_SENDER = "bit_flip_sender"
    BIT_FLIP_RECEIVER = "bit_flip_receiver"
    BIT_FLIP_STORE = "bit_flip_store"
    NEG_ACK = "neg_ack"
    LOST_ACK = "lost_ack"
    LATE_ACK = "late_ack"
    REPEATED_ACK = "repeated_ack"
    WRONG_BARRIER_COUNT = "wrong_barrier_count"
    LOST_WRITE = "lost_write"
    MISDIRECTED_WRITE = "misdirected_write"
    STALL = "stall"
    CONSOLE_GARBLE = "console_garble"
    HUNG_WARMSTART = "hung_warmstart"
    MISPLACED_COPY = "misplaced_copy"
    STALE_COPY = "stale_copy"
    RESYNC_BITS_DROPPED = "resync_bits_dropped"
    RESYNC_DENIED = "resync_denied"
    RESYNC_EMPTY = "resync_empty"


class FaultTraits(NamedTuple):
    """One row of ``FAULTS``."""

    side: str
    """``primary`` or ``secondary``: who has the fault, and the default where both can."""
    effect: str
    """What happens, as one clause."""
    on_write: bool = True
    """It fires at one certain replicated write."""
    has_delay: bool = False
    """It needs ``delay_ms``."""
    either_side: bool = False
    """A plan may name the other side."""


_SENDER: Final = "one bit of the data flips after its digest was computed"
_RECEIVER: Final = "one bit of the received data flips before its digest is checked"
_STORE: Final = "one bit of the stored block flips after the write was acknowledged"
_BARRIER: Final = "BARRIER_ACK's set_size is one too large"
_MISDIRECTED: Final = "acknowledges, and stores at another sector"
_STALL: Final = "neither reads nor answers the data socket for `delay_ms`"
_GARBLE: Final = "bytes of its next console output are overwritten with noise"
_HUNG: Final = (
    "stores its set, then does not come back from a warmstart until a BREAK or a power cycle"
)
_MISPLACED: Final = "sends the copy, with its right digest, to the place of its neighbour"
_STALE: Final = (
    "sends what the place held before, with its right digest, when it is next written over"
)
_DROPPED: Final = "loses some bits of its bitmap before it sends it at the next resync"
_DENIED: Final = "claims at the next handshake that no resync is needed, and forgets its bitmap"
_EMPTY: Final = "begins the next resync as its target with 0 KB to copy, whatever bits are set"
FAULTS: Final[dict[FaultKind, FaultTraits]] = {
    FaultKind.BIT_FLIP_SENDER: FaultTraits("primary", _SENDER),
    FaultKind.BIT_FLIP_RECEIVER: FaultTraits("secondary", _RECEIVER),
    FaultKind.BIT_FLIP_STORE: FaultTraits("secondary", _STORE),
    FaultKind.NEG_ACK: FaultTraits("secondary", "answers NEG_ACK and does not store"),
    FaultKind.LOST_ACK: FaultTraits("secondary", "stores and sends no acknowledgement"),
    FaultKind.LATE_ACK: FaultTraits("secondary", "acknowledges `delay_ms` late", has_delay=True),
    FaultKind.REPEATED_ACK: FaultTraits("secondary", "sends the acknowledgement twice"),
    FaultKind.WRONG_BARRIER_COUNT: FaultTraits("secondary", _BARRIER, on_write=False),
    FaultKind.LOST_WRITE: FaultTraits("secondary", "acknowledges and does not store"),
    FaultKind.MISDIRECTED_WRITE: FaultTraits("secondary", _MISDIRECTED),
    FaultKind.STALL: FaultTraits("secondary", _STALL, has_delay=True),
    FaultKind.CONSOLE_GARBLE: FaultTraits("secondary", _GARBLE),
    FaultKind.HUNG_WARMSTART: FaultTraits("primary", _HUNG, on_write=False, either_side=True),
    FaultKind.MISPLACED_COPY: FaultTraits("primary", _MISPLACED),
    FaultKind.STALE_COPY: FaultTraits("primary", _STALE, on_write=False),
    FaultKind.RESYNC_BITS_DROPPED: FaultTraits("primary", _DROPPED, on_write=False),
    FaultKind.RESYNC_DENIED: FaultTraits("primary", _DENIED, on_write=False),
    FaultKind.RESYNC_EMPTY: FaultTraits("secondary", _EMPTY, on_write=False),
}
assert FAULTS.keys() == set(FaultKind)
FAULT_KEYS: Final = ("kind", "side", "at_write", "count", "delay_ms")
"""kind: FaultKind. side: primary | secondary. at_write: fires at the n-th replicated write seen
after arming (from 1; HUNG_WARMSTART: not used). count: how often (default 1). delay_ms: kinds with
``has_delay`` only."""
MAX_FAULTS: Final = 64
