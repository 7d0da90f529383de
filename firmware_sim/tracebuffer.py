"""The continuous event log: a ring of fixed-size binary records (``wire.rootcause.RECORD``) in
memory.

The buffer belongs to the memory of the controller, not to its boot: a warmstart keeps it, and the
sequence numbers continue. A power loss ends it; what must survive is stored in a root cause data
set (``rootcause.py``).
"""

from typing import Final

from freezeframe.harness.wire.control import TraceLevel
from freezeframe.harness.wire.rootcause import RECORD, RING_RECORDS, EventCode

_U64: Final = (1 << 64) - 1

ERROR_EVENTS: Final = frozenset(
    {
        EventCode.CONTROL_REFUSED, EventCode.REPL_NEG_ACK, EventCode.REPL_DIGEST_FAILED, EventCode.REPL_PROTOCOL_ERROR,
        EventCode.REPL_TIMEOUT, EventCode.REPL_UNKNOWN_ACK, EventCode.SCRUB_MISMATCH,
    }
)  # fmt: skip
DEBUG_EVENTS: Final = frozenset({EventCode.CONTROL_FRAME, EventCode.DESTAGE, EventCode.HOST_FLUSH})
LEVELS: Final = bytes(
    TraceLevel.ERROR
    if code in ERROR_EVENTS
    else TraceLevel.DEBUG
    if code in DEBUG_EVENTS
    else TraceLevel.INFO
    for code in range(max(EventCode) + 1)
)
"""Level by code. A record is kept if its level is not above ``TraceBuffer.level``."""
_pack_into: Final = RECORD.pack_into
_RECORD_BYTES: Final = RECORD.size


class TraceBuffer:
    """The controller sets ``uptime_ns`` once per step, so that tracing a write costs one call and
    one pack."""

    def __init__(self, records: int = RING_RECORDS) -> None:
        self.capacity: Final = records
        self.level: int = TraceLevel.INFO
        self.uptime_ns = 0
        self.next_seq = 0
        """Number of records since the cold boot: the sequence number of the next one."""
        self._ring = bytearray(records * RECORD.size)

    def add(self, event: EventCode, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> None:
        """Log one record. Arguments are taken modulo 2**64."""
        level = LEVELS[event]
        if level > self.level:
            return
        seq = self.next_seq
        _pack_into(
            self._ring,
            seq % self.capacity * _RECORD_BYTES,
            seq,
            self.uptime_ns,
            event,
            level,
            0,
            a & _U64,
            b & _U64,
            c & _U64,
            d & _U64,
        )
        self.next_seq = seq + 1

    @property
    def first_seq(self) -> int:
        """Return the sequence number of the oldest record in the ring."""
        return max(0, self.next_seq - self.capacity)

    def linear(self) -> bytes:
        """Return the records in the ring, oldest first."""
        if self.next_seq <= self.capacity:
            return bytes(self._ring[: self.next_seq * RECORD.size])
        cut = self.next_seq % self.capacity * RECORD.size
        return bytes(self._ring[cut:] + self._ring[:cut])
