"""What the stamped writer writes, and when: pure, time is an argument. ``writer.py`` is the process
around it."""

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
"""Unacknowledged data is kept for sending it again."""


class WriterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line on the writer's standard input, as JSON."""

    uri: str
    """The primary's host port."""
    journal_path: str
    """Where the journal goes; must not exist yet."""
    results_path: str = ""
    """Where a workload that keeps no journal leaves what it measured, as JSON."""
    bytes_total: int
    """How much to write in all; a multiple of write_bytes."""
    write_bytes: int = 64 << 10
    """Length of each write; a multiple of 512."""
    queue_depth: int = 16
    seed: int = 1
    volume: int = 0
    start_offset_bytes: int = 0
    span_bytes: int = 0
    """The range that is written, again and again when bytes_total is larger; 0 = up to the volume's
    end."""
    pattern: Literal["sequential", "random"] = "sequential"
    rate_limit_bytes_s: int = 0
    """0 = as fast as the controller answers."""
    event_fd: int = 1
    reconnect_limit_s: float = 30.0
    """How long a lost host port may stay away."""
    stop_limit_s: float = 10.0
    """How long unacknowledged writes may take after Stop."""


@dataclass(slots=True)
class InFlight:
    """A write without its answer."""

    write: Write
    data: bytes
    sent_ns: Ns
    """When it was sent first: a resend does not make a hold shorter."""


class WriteGenerator:
    """Decides each next write; deterministic from the seed but for the stamps' times. UsageError on
    a wrong config."""

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
        """Set to send nothing more."""
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
        """Longest wait for an answer, those included that still wait."""
        waiting = (now_ns - flight.sent_ns for flight in self.in_flight.values())
        return max([self._longest_hold_ns, *waiting])

    def next_deadline(self, now_ns: Ns) -> Ns | None:
        """When the rate limit allows the next write; None when it is not what we wait for."""
        waits = not self.all_sent and len(self.in_flight) < self.config.queue_depth
        return self._not_before_ns if waits and self._not_before_ns > now_ns else None

    def next_write(self, now_ns: Ns) -> InFlight | None:
        """The write to send now; None when there is none: all sent, queue full, rate limit, or its
        place is still being written (two writes of one place in flight could end in either
        order)."""
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
            # What was not used in time is not made up for: a held host is not followed by a burst.
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
        """The answer to ``write_id`` has come."""
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
