"""The account of what made two sides equal again after they had been apart. Pure; it knows no
protocol.

For each session of a volume, a ``Rejoin``: the writes that the session before it left unanswered,
what both ends marked as out of sync and said of themselves, what was copied, in which direction and
when, and whether they called themselves equal in the end. Two questions are asked of it:

* ``omitted``: what should have been copied and was not, although an end calls both up to date. The
  two sides differ there, and nobody says so.
* ``unexplained``: what was copied although nothing that is known had made it differ. Either a mark
  was stale, which is harmless, or an older divergence was healed, and hidden.

Neither is answered where the capture has holes: what was not seen proves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.core.link.ledgerevents import WriteRow
from freezeframe.harness.core.link.messages import LinkSession, Resync
from freezeframe.harness.core.link.ranges import Ranges

BLOCK_BYTES: Final = 4096
"""What one mark stands for at least: a copy is of whole blocks."""
EXTENT_BYTES: Final = 4 << 20
"""A node that ended uncleanly marks every extent of this size that was under write."""
MAX_REJOINS: Final = 256
"""Kept; the oldest make room."""
MAX_APART: Final = 64
"""Pairs of nodes and volumes whose unanswered writes are remembered."""
NO_RANGES: Final = Ranges()
JUDGEMENT_NS: Final = 100 * NS_PER_MS
"""After an end has called both equal: copies on the other direction may be captured a little later."""

Place = tuple[tuple[str, str], int, int]
"""The two addresses, the port, the volume."""


@dataclass(eq=False, slots=True)
class Rejoin:
    """One session of one volume, from its handshake to the moment at which its ends are equal."""

    session: int
    addresses: tuple[str, str]
    volume: int
    t_first_ns: Ns
    t_parted_ns: Ns | None = None
    """When the session before it closed; None: that was not captured, and what was written
    meanwhile is not known."""
    owed: Ranges = field(default_factory=Ranges)
    """Writes that the session before it left unanswered ..."""
    refused: Ranges = field(default_factory=Ranges)
    """... and those that were refused: only the writer has marked them."""
    unconfirmed: Ranges = field(default_factory=Ranges)
    """Answered, but the barrier after them was not: the writer copies them again, to be safe."""
    marked: dict[str, Ranges] = field(default_factory=dict)
    """Address -> the bitmap that it sent."""
    noted: Ranges = field(default_factory=Ranges)
    """Marked one by one, on the link, before the two were equal."""
    noted_later: Ranges = field(default_factory=Ranges)
    """Marked after that, by an online verify or while the link was congested: the next rejoin may copy
    them, and no resync was to have copied them."""
    bits: dict[str, int] = field(default_factory=dict)
    """Address -> how many blocks it said that it has marked."""
    crashed: set[str] = field(default_factory=set)
    initial: bool = False
    """An end had never been paired."""
    size_bytes: int = 0
    """Of the volume; 0: not known."""
    plain_packets: int = 0
    compressed_packets: int = 0
    requested: Ranges = field(default_factory=Ranges)
    copied: Ranges = field(default_factory=Ranges)
    found_same: Ranges = field(default_factory=Ranges)
    answered: Ranges = field(default_factory=Ranges)
    """The copies of which the receiver said that it has stored them."""
    copied_bytes: int = 0
    source: str = ""
    """Address of the end that the copies came from."""
    t_copied_first_ns: Ns = 0
    t_copied_last_ns: Ns = 0
    rewritten: Ranges = field(default_factory=Ranges)
    """Replicated and acknowledged meanwhile: equal without a copy."""
    t_equal_ns: Ns = 0
    """When an end called both up to date; 0: none has."""
    equal_packet_no: int = 0
    equal_sender: str = ""
    """Which end."""
    has_hole: bool = False
    """Something of it is not captured, or cannot be read."""

    @property
    def claim(self) -> tuple[str, Ns, int]:
        """Who called both up to date, when, in which frame."""
        return self.equal_sender, self.t_equal_ns, self.equal_packet_no

    def began_after(self, t_ns: Ns) -> tuple[Ns, Ns] | None:
        """(no sooner than, no later than) the moment at which the two began to become equal after
        ``t_ns``; None: they did not."""
        if self.t_first_ns > t_ns:
            return self.t_first_ns, self.t_first_ns
        if self.t_copied_last_ns <= t_ns:
            return None
        # Copied in a session that was there before.
        if self.t_copied_first_ns > t_ns:
            return self.t_copied_first_ns, self.t_copied_first_ns
        return t_ns, self.t_copied_last_ns

    @property
    def is_judged(self) -> bool:
        """What it shows is whole."""
        sets = (
            self.owed, self.noted, self.copied, self.found_same, self.rewritten, *self.marked.values(),
        )  # fmt: skip
        return not self.has_hole and not any(one.is_cut for one in sets)

    @property
    def exchanged(self) -> Ranges:
        """The union of both bitmaps, inside the volume: what the two work on."""
        union = Ranges()
        for one in self.marked.values():
            union |= one
        if self.size_bytes:
            union.remove(self.size_bytes, 1 << 63)
        return union

    @property
    def equal(self) -> Ranges:
        """What became equal, by a copy or by being written again."""
        return self.copied | self.found_same | self.rewritten

    @property
    def blocks_lost(self) -> int:
        """How many blocks an end said that it has marked, and did not mark in the bitmap that it then
        sent: which ones is not known."""
        if not self.t_equal_ns or self.initial or not self.is_judged:
            return 0
        lost = [
            self.bits.get(sender, 0) - one.bytes // BLOCK_BYTES
            for sender, one in self.marked.items()
        ]
        return max(0, *lost) if lost else 0

    def omitted(self, also_owed: Ranges = NO_RANGES) -> Ranges:
        """What should have been copied and was not, although an end calls both equal.

        ``also_owed``: what the host's journal says was written and acknowledged while they were
        apart."""
        if not self.t_equal_ns or not self.is_judged:
            return Ranges()
        due = self.exchanged | self.noted
        if self.t_parted_ns is not None:
            due |= self.owed | also_owed
            if self.marked:
                due |= self.refused  # the writer's bitmap, which the two work on, has them
        return due - self.equal

    def unexplained(self, also_explained: Ranges) -> Ranges:
        """What was copied and had no reason to differ. ``also_explained``: what the host wrote while
        they were apart, and what a side itself found damaged."""
        if self.t_parted_ns is None or self.initial or not self.is_judged:
            return Ranges()
        known = self.owed | self.refused | self.unconfirmed | also_explained
        known = known.rounded(BLOCK_BYTES) | self.noted | self._extents()
        return self.copied - known

    @property
    def rewritten_blindly(self) -> Ranges:
        """What was copied although the receiver had acknowledged it as stored: whether it really was,
        is not known any more."""
        if self.t_parted_ns is None or not self.is_judged:
            return Ranges()
        return (self.copied & (self.unconfirmed | self._extents())) - self.owed - self.refused

    def _extents(self) -> Ranges:
        """The extents that a side has marked as a whole, after it ended uncleanly."""
        whole = Ranges()
        for one in self.marked.values():
            for start, end in one:
                first = -(-start // EXTENT_BYTES) * EXTENT_BYTES
                last = end // EXTENT_BYTES * EXTENT_BYTES
                whole.add(first, end if self.size_bytes and end >= self.size_bytes else last)
        return whole


@dataclass(eq=False, slots=True)
class _Apart:
    """What a session left behind when it closed."""

    t_ns: Ns
    owed: Ranges
    refused: Ranges
    unconfirmed: Ranges


class ResyncAccount:
    """Fed by the ledger. ``tick`` gives the rejoins whose omissions are certain."""

    def __init__(self) -> None:
        self.rejoins: deque[Rejoin] = deque(maxlen=MAX_REJOINS)
        """Of every session that said something of itself, oldest first."""
        self.is_open = False
        """A session is becoming equal, or something was refused: the ledger tells of acknowledged
        writes."""
        self._now: dict[Place, tuple[int, Rejoin]] = {}
        """Place -> its newest session, and that one's rejoin."""
        self._apart: dict[Place, _Apart] = {}
        self._refused: dict[Place, Ranges] = {}
        self._due: deque[tuple[Ns, Rejoin, LinkSession]] = deque()

    def on(self, message: Resync) -> None:
        rejoin = self._rejoin(message)
        if message.tentative:
            rejoin.has_hole = True
            return
        start = message.offset_bytes
        end = start + message.length_bytes
        match message.what:
            case "stated":
                self._stated(rejoin, message)
            case "bitmap":
                self._open_again(rejoin)
                marked = rejoin.marked.setdefault(message.sender, Ranges())
                for first, last in message.ranges:
                    marked.add(first, last)
                rejoin.has_hole |= message.broken
                rejoin.compressed_packets += "COMPRESSED" in message.name
                rejoin.plain_packets += "COMPRESSED" not in message.name
            case "marked":
                (rejoin.noted_later if rejoin.t_equal_ns else rejoin.noted).add(start, end)
            case "request":
                rejoin.requested.add(start, end)
            case "same":
                rejoin.found_same.add(start, end)
            case "data":
                self._copied(rejoin, message, start, end)
            case "answer":
                rejoin.answered.add(start, end)
            case "equal":
                if not rejoin.t_equal_ns:
                    rejoin.t_equal_ns, rejoin.equal_packet_no = message.t_ns, message.packet_no
                    rejoin.equal_sender = message.sender
                    self._due.append((message.t_ns + JUDGEMENT_NS, rejoin, message.session))

    def _stated(self, rejoin: Rejoin, message: Resync) -> None:
        rejoin.size_bytes = message.size_bytes or rejoin.size_bytes
        if message.bits >= 0 and message.sender not in rejoin.marked:
            rejoin.bits[message.sender] = message.bits
        if message.crashed:
            rejoin.crashed.add(message.sender)
        rejoin.initial |= message.initial

    def _copied(self, rejoin: Rejoin, message: Resync, start: int, end: int) -> None:
        rejoin.copied.add(start, end)
        rejoin.copied_bytes += message.length_bytes
        rejoin.source = rejoin.source or message.sender
        rejoin.t_copied_first_ns = rejoin.t_copied_first_ns or message.t_ns
        rejoin.t_copied_last_ns = message.t_ns

    def _open_again(self, rejoin: Rejoin) -> None:
        """A bitmap after an end had called both equal: another resync of the same session."""
        if rejoin.t_equal_ns:
            rejoin.t_equal_ns = 0
            self._due = deque(one for one in self._due if one[1] is not rejoin)
            self.is_open = True

    def _rejoin(self, message: Resync) -> Rejoin:
        session = message.session
        place = (session.addresses, session.port, message.volume)
        known = self._now.get(place)
        if known is not None and known[0] == session.number:
            return known[1]
        made = Rejoin(session.number, session.addresses, message.volume, message.t_ns)
        apart = self._apart.pop(place, None)
        if apart is not None:
            made.t_parted_ns, made.owed = apart.t_ns, apart.owed
            made.refused, made.unconfirmed = apart.refused, apart.unconfirmed
        self._now[place] = (session.number, made)
        while len(self._now) > MAX_APART:
            del self._now[next(iter(self._now))]
        self.rejoins.append(made)
        self.is_open = True
        return made

    # --- what the ledger tells -------------------------------------------------------------------
    def acknowledged(self, row: WriteRow) -> None:
        """A write was acknowledged while a session was becoming equal, or something was refused
        before."""
        session = row.session
        place = (session.addresses, session.port, row.volume)
        start, end = row.offset_bytes, row.offset_bytes + row.length_bytes
        known = self._now.get(place)
        if known is not None and known[0] == session.number:
            known[1].rewritten.add(start, end)
        refused = self._refused.get(place)
        if refused is not None:
            refused.remove(start, end)

    def refused(self, row: WriteRow) -> None:
        session = row.session
        place = (session.addresses, session.port, row.volume)
        refused = self._refused.setdefault(place, Ranges())
        refused.add(row.offset_bytes, row.offset_bytes + row.length_bytes)
        self.is_open = True
        while len(self._refused) > MAX_APART:
            del self._refused[next(iter(self._refused))]

    def parted(
        self,
        session: LinkSession,
        t_ns: Ns,
        open_rows: Sequence[WriteRow],
        unconfirmed: Sequence[WriteRow],
    ) -> None:
        """The session closed; ``open_rows`` were not answered, as far as that is certain, and the
        barrier after those ``unconfirmed`` was not."""
        volumes = {0} | {row.volume for row in open_rows}
        volumes |= {
            place[2] for place, (number, _) in self._now.items() if number == session.number
        }
        for volume in volumes:
            place = (session.addresses, session.port, volume)
            number, before = self._now.get(place, (0, None))
            has_begun = before is not None and number == session.number
            is_empty = not any(row.volume == volume for row in (*open_rows, *unconfirmed))
            if not has_begun and is_empty and place in self._apart:
                continue  # it ended in its handshake: the two are apart since the session before
            apart = _Apart(
                t_ns,
                _of_volume(open_rows, volume),
                self._refused.pop(place, Ranges()),
                _of_volume(unconfirmed, volume),
            )
            if before is not None and has_begun:
                apart.unconfirmed |= before.noted_later
                if not before.t_equal_ns:
                    self._carry(before, apart)
            self._apart[place] = apart
        while len(self._apart) > MAX_APART:
            del self._apart[next(iter(self._apart))]

    @staticmethod
    def _carry(before: Rejoin, apart: _Apart) -> None:
        """A session that ended before its ends were equal leaves to the next what it did not do."""
        apart.owed |= before.owed - before.equal
        apart.refused |= (before.refused | before.noted | before.exchanged) - before.equal
        apart.unconfirmed |= before.unconfirmed - before.equal
        if before.t_parted_ns is not None:
            apart.t_ns = before.t_parted_ns

    def missed(self, session: LinkSession) -> None:
        """Something of the session was not captured."""
        for number, rejoin in self._now.values():
            if number == session.number:
                rejoin.has_hole = True

    def missed_any(self) -> None:
        """Nobody knows what was not captured, or of which session."""
        for _, rejoin in self._now.values():
            rejoin.has_hole = True
        self._apart.clear()

    # --- time ------------------------------------------------------------------------------------
    def next_deadline(self) -> Ns | None:
        return self._due[0][0] if self._due else None

    def tick(self, now_ns: Ns) -> list[tuple[Rejoin, LinkSession]]:
        """The rejoins that left something out, as far as the link itself shows it."""
        found = []
        while self._due and self._due[0][0] <= now_ns:
            _, rejoin, session = self._due.popleft()
            if rejoin.omitted() or rejoin.blocks_lost:
                found.append((rejoin, session))
        if not self._due:
            self.is_open = bool(self._refused) or any(
                not rejoin.t_equal_ns for _, rejoin in self._now.values()
            )
        return found


def _of_volume(rows: Iterable[WriteRow], volume: int) -> Ranges:
    return Ranges(
        (row.offset_bytes, row.offset_bytes + row.length_bytes)
        for row in rows
        if row.volume == volume
    )


def sectors(ranges: Iterable[tuple[int, int]], sector_bytes: int, limit: int = 4) -> str:
    """``sectors 128-135, 512-519 and 3 more ranges``, for people."""
    listed = list(ranges)
    shown = ", ".join(
        f"{start // sector_bytes}-{end // sector_bytes - 1}" for start, end in listed[:limit]
    )
    more = f" and {len(listed) - limit} more ranges" if len(listed) > limit else ""
    return f"sectors {shown}{more}"


def left_out(left: Ranges, blocks_lost: int, sector_bytes: int) -> str:
    """``4096 bytes that differ were not copied: sectors 8-15``, for people."""
    said = []
    if left:
        said.append(
            f"{left.bytes} bytes that differ were not copied: {sectors(left, sector_bytes)}"
        )
    if blocks_lost:
        said.append(f"{blocks_lost} blocks that it had marked are not in the bitmap that it sent")
    return "; ".join(said)
