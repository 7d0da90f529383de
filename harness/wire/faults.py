"""Table of the faults that a scenario can arm. A fault is data: the same plan and seed give the
same run.

A plan is a list of maps with the keys of ``FAULT_KEYS``; it reaches the simulated firmware by
SET_FAULTS as CBOR ``{"seed": int, "faults": [...]}``, each side getting its own entries. All are
off by default.
"""

from enum import StrEnum
from typing import Final


class FaultKind(StrEnum):
    BIT_FLIP_SENDER = "bit_flip_sender"
    """Primary: one bit of the data flips after its digest was computed."""
    BIT_FLIP_RECEIVER = "bit_flip_receiver"
    """Secondary: one bit of the received data flips before its digest is checked."""
    BIT_FLIP_STORE = "bit_flip_store"
    """Secondary: one bit of the stored block flips after the write was acknowledged."""
    NEG_ACK = "neg_ack"
    """Secondary: answers NEG_ACK and does not store."""
    LOST_ACK = "lost_ack"
    LATE_ACK = "late_ack"
    """Secondary: the ack leaves ``delay_ms`` late."""
    REPEATED_ACK = "repeated_ack"
    WRONG_BARRIER_COUNT = "wrong_barrier_count"
    """Secondary: BARRIER_ACK's set_size is one too large."""
    LOST_WRITE = "lost_write"
    """Secondary: acknowledges and does not store."""
    MISDIRECTED_WRITE = "misdirected_write"
    """Secondary: acknowledges, and stores at another sector."""
    STALL = "stall"
    """Secondary: neither reads nor answers the data socket for ``delay_ms``."""
    CONSOLE_GARBLE = "console_garble"
    """Secondary: bytes of its next console output are overwritten with noise."""
    HUNG_WARMSTART = "hung_warmstart"
    """The controller stores its set, then does not come back from a warmstart until its power is
    cycled."""


FAULT_KEYS: Final = ("kind", "side", "at_write", "count", "delay_ms")
"""kind: FaultKind. side: primary | secondary. at_write: fires at the n-th replicated write seen
after arming (from 1; CONSOLE_GARBLE: at the n-th replicated write too; HUNG_WARMSTART: not used).
count: how often (default 1). delay_ms: LATE_ACK and STALL only."""
FAULT_SIDE: Final[dict[FaultKind, str]] = {
    kind: "primary"
    if kind is FaultKind.BIT_FLIP_SENDER or kind is FaultKind.HUNG_WARMSTART
    else "secondary"
    for kind in FaultKind
}
MAX_FAULTS: Final = 64
