"""Decide what the stamped writer writes, and when. Pure: time is an argument. ``writer.py`` is the
process around it."""

import random
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from freezeframe.harness.core.blocks.blockstamp import MAX_SECTORS, MAX_WRITE_SECTORS, Write, stamp
from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.errors import UsageError
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

MAX_QUEUE_DEPTH: Final = 1024
MAX_IN_FLIGHT_BYTES: Final = 256 << 20
"""Limit of unacknowledged data, which is kept to be sent again."""


class WriterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line on the standard input of the writer, as JSON."""

    uri: str
    """URL of the host port of the primary."""
    journal_path: str
    """Path of the journal; must not exist yet."""
    results_path: str = ""
    """Path for the measurements of a workload without a journal, as JSON."""
    bytes_total: int
    """Total amount to write; a multiple of write_bytes."""
    write_bytes: int = 64 << 10
    """Length of each write; a multiple of 512."""
    queue_depth: int = 16
    seed: int = 1
    volume: int = 0
    start_offset_bytes: int = 0
    span_bytes: int = 0
    """Length of the range to write, repeatedly if bytes_total is larger; 0: to the end of the
    volume."""
    pattern: Literal["sequential", "random"] = "sequential"
    rate_limit_bytes_s: int = 0
    """0: as fast as the controller answers."""
    event_fd: int = 1
    reconnect_limit_s: float = 30.0
    """Time within which a lost host port must return."""
    stop_limit_s: float = 10.0
    """Time allowed for unacknowledged writes after Stop."""


@dataclass(slots=True)
class InFlight:
    """A write in flight."""

    write: Write
    data: bytes
    sent_ns: Ns
    """Time at which it was sent first; sending it again does not shorten its measured delay."""


class WriteGenerator:
    """Generates the writes, deterministic from the seed except for the times in the stamps. Raises
    UsageError on a wrong configuration."""

    def __init__(self, config: WriterConfig, size_bytes: int) -> None:
        span = config.span_bytes or size_bytes - config.start_offset_bytes
        _check(config, span, size_bytes)
        self.config = config
        self.first_lba = config.start_offset_bytes // SECTOR_BYTES
        self.sectors = config.write_bytes // SECTOR_BYTES
        self.slots = span // config.write_bytes
        self.span_sectors = self.slots * self.sectors
        self.in_flight: dict[int, InFlight] = {}
        """Write id -> write, in the order of sending."""
        self.acked = 0
        self.stopped = False
        """Set it to send no more writes."""
        self._longest_hold_ns = 0
        self._total = config.bytes_total // config.write_bytes
        self._next_id = 0
        self._next_slot: int | None = None
        self._not_before_ns = 0
        self._busy_slots: set[int] = set()
        self._random = random.Random(config.seed)

    @property
    def all_sent(self) -> bool:
        return self.stopped or self._next_id >= self._total

    @property
    def bytes_acked(self) -> int:
        return self.acked * self.config.write_bytes

    def longest_hold_ns(self, now_ns: Ns) -> Ns:
        """Return the longest delay of an answer, including writes still in flight."""
        waiting = (now_ns - flight.sent_ns for flight in self.in_flight.values())
        return max([self._longest_hold_ns, *waiting])

    def next_deadline(self, now_ns: Ns) -> Ns | None:
        """Return when the rate limit allows the next write; None: the rate limit is not the reason
        to wait."""
        waits = not self.all_sent and len(self.in_flight) < self.config.queue_depth
        return self._not_before_ns if waits and self._not_before_ns > now_ns else None

    def next_write(self, now_ns: Ns) -> InFlight | None:
        """Return the write to send now. None: all sent, queue full, rate limit, or a write to the
        same range is in flight (two of them could end in either order)."""
        full = len(self.in_flight) >= self.config.queue_depth
        if self.all_sent or full or now_ns < self._not_before_ns:
            return None
        if self._next_slot is None:
            sequential = self.config.pattern == "sequential"
            self._next_slot = (
                self._next_id % self.slots if sequential else self._random.randrange(self.slots)
            )
        slot = self._next_slot
        if slot in self._busy_slots:
            return None
        if self.config.rate_limit_bytes_s:
            # Unused rate is not accumulated: no burst follows after the host was held.
            interval_ns = self.config.write_bytes * NS_PER_S // self.config.rate_limit_bytes_s
            self._not_before_ns = now_ns + interval_ns
        self._next_slot = None
        self._busy_slots.add(slot)
        lba = self.first_lba + slot * self.sectors
        write = Write(self._next_id, lba, self.sectors, now_ns)
        data = stamp(
            self.config.volume, self.config.seed, write.write_id, lba, self.sectors, now_ns
        )
        self._next_id += 1
        flight = self.in_flight[write.write_id] = InFlight(write, data, now_ns)
        return flight

    def acknowledge(self, write_id: int, now_ns: Ns) -> Write:
        """Note the answer to ``write_id``."""
        flight = self.in_flight.pop(write_id)
        self._busy_slots.discard((flight.write.lba - self.first_lba) // self.sectors)
        self._longest_hold_ns = max(self._longest_hold_ns, now_ns - flight.sent_ns)
        self.acked += 1
        return flight.write


def _check(config: WriterConfig, span: int, size_bytes: int) -> None:
    start = config.start_offset_bytes
    rules = (
        (0 < config.write_bytes <= MAX_WRITE_SECTORS * SECTOR_BYTES, "write_bytes: 512 to 32 MiB"),
        (config.write_bytes % SECTOR_BYTES == 0, "write_bytes: a multiple of 512"),
        (start >= 0 and start % SECTOR_BYTES == 0, "start_offset_bytes: a multiple of 512"),
        (
            start + span <= size_bytes,
            f"start_offset_bytes + span_bytes: at most {size_bytes}, the volume's size",
        ),
        (span >= config.write_bytes, "span_bytes: room for one write at least"),
        (span <= MAX_SECTORS * SECTOR_BYTES, "span_bytes: at most 32 GiB"),
        (config.bytes_total >= 0, "bytes_total: not negative"),
        (
            config.write_bytes > 0 and config.bytes_total % config.write_bytes == 0,
            "bytes_total: whole writes",
        ),
        (1 <= config.queue_depth <= MAX_QUEUE_DEPTH, f"queue_depth: 1 to {MAX_QUEUE_DEPTH}"),
        (
            config.queue_depth * config.write_bytes <= MAX_IN_FLIGHT_BYTES,
            "queue_depth * write_bytes: at most 256 MiB",
        ),
        (0 <= config.volume < 1 << 32, "volume: 32 bits"),
        (config.rate_limit_bytes_s >= 0, "rate_limit_bytes_s: not negative"),
        (config.reconnect_limit_s >= 0, "reconnect_limit_s: not negative"),
        (config.stop_limit_s >= 0, "stop_limit_s: not negative"),
    )
    for holds, rule in rules:
        if not holds:
            raise UsageError(f"workload: {rule}")
