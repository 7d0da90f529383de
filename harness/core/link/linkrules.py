"""Rules of the replication link: ledger events and silence -> triggers.

A healthy pair gives none, also while it reconnects, resynchronises or disconnects in order, and
also when the capture has holes. Deadlines run on the capture's clock: ``tick`` takes the time up to
which everything captured was fed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from freezeframe.harness.core.blocks import crcbits
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, SIDES, Ns, Side, Trigger
from freezeframe.harness.core.link import ledgerevents
from freezeframe.harness.core.link.ledgerevents import LedgerEvent, WriteRow
from freezeframe.harness.core.link.messages import Answer
from freezeframe.harness.core.link.protocol import Tell
from freezeframe.harness.core.link.resync import left_out
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

MAX_TRIGGERS_A_SECOND: Final = 16
"""A rule; the rest of a burst is counted. One is enough to act on."""
MAX_WATCHED_ROWS: Final = 131072
MAX_UNHEARD: Final = 64
_EXCERPT_BYTES: Final = 64


class LinkRules:
    """``on`` takes each ledger event, ``tick`` the passing time; both return the triggers."""

    def __init__(self, rules: Iterable[LinkRule]) -> None:
        self.suppressed = 0
        """Hits of a rule above MAX_TRIGGERS_A_SECOND."""
        self._rules: dict[str, list[LinkRule]] = {event: [] for event in EVENTS}
        for rule in rules:
            self._rules[rule.event].append(rule)
        self._watched: dict[str, deque[WriteRow]] = {
            rule.name: deque() for rule in self._rules["missing-ack"]
        }
        self._unheard: list[tuple[LinkRule, WriteRow]] = []
        """Writes that were not answered in time by an end of which no frame was captured since."""
        self._second: dict[str, tuple[Ns, int]] = {}

    def on(self, event: LedgerEvent, now_ns: Ns) -> list[Trigger]:
        """``now_ns``: when this is decided; becomes t_match_ns."""
        match event:
            case ledgerevents.WriteSent(row=row):
                for watched in self._watched.values():
                    if row.expects_answer and not row.unknown and len(watched) < MAX_WATCHED_ROWS:
                        watched.append(row)
                return []
            case ledgerevents.Acknowledged(row=row):
                return self._acknowledged(row, now_ns)
            case ledgerevents.DigestMismatch(row=row, excerpt=excerpt):
                detail = _digest_detail(row)
                return self._row_hit("digest-mismatch", row, detail, now_ns, excerpt)
            case ledgerevents.StampsContradict(row=row, fault=fault, excerpt=excerpt):
                digest = "its digest is right, " if row.digest_computed else ""
                detail = f"{_row_text(row)}: {digest}{fault.detail}"
                return self._row_hit("broken-stamp", row, detail, now_ns, excerpt)
            case ledgerevents.NegativeAck(answer=answer):
                return self._answer_hit(
                    "neg-ack", answer, f"{_answer_text(answer)} refused", now_ns
                )
            case ledgerevents.RepeatedAck(row=row, answer=answer):
                before = _ms(answer.t_ns - row.t_answer_ns)
                detail = f"{_answer_text(answer)} again, first {before} before"
                return self._answer_hit("repeated-ack", answer, detail, now_ns)
            case ledgerevents.UnknownAck(answer=answer):
                detail = f"{_answer_text(answer)} for no write that was sent"
                return self._answer_hit("unknown-ack", answer, detail, now_ns)
            case ledgerevents.BarrierMismatch(answer=reply, detail=detail):
                side = reply.session.side_of(reply.sender)
                return self._hit(
                    "barrier-count",
                    side,
                    reply.packet_no,
                    detail,
                    reply.t_ns,
                    now_ns,
                    excerpt=reply.raw,
                )
            case ledgerevents.ResyncOmitted(session=session, left=left):
                first = next(iter(left), (-SECTOR_BYTES, 0))[0] // SECTOR_BYTES
                detail = f"{event.sender} calls both sides up to date, and "
                detail += left_out(left, event.blocks_lost, SECTOR_BYTES)
                side = session.side_of(event.sender)
                return self._hit(
                    "resync-omitted", side, event.packet_no, detail, event.t_ns, now_ns, first
                )
            case ledgerevents.UnackedClose():
                return self._unacked_close(event, now_ns)
            case ledgerevents.GhostWrite(row=row, retry=retry, newer=newer):
                detail = (
                    f"{_row_text(row)}: an old copy, after its retry {retry.write_id_text} was answered and after "
                    f"{newer.write_id_text} wrote to that place"
                )
                return self._row_hit("ghost-write", row, detail, now_ns, b"")
            case ledgerevents.MalformedSeen(malformed=found):
                text = (
                    f"{found.what}, at byte {found.stream_offset} of the stream from {found.sender}"
                )
                side = found.session.side_of(found.sender)
                return self._hit(
                    "malformed",
                    side,
                    found.packet_no,
                    text,
                    found.t_ns,
                    now_ns,
                    excerpt=found.excerpt,
                )

    def next_deadline(self) -> Ns | None:
        """When ``tick`` may have something to tell; None while nothing waits."""
        deadlines = []
        for rule in self._rules["missing-ack"]:
            watched = self._watched[rule.name]
            while watched and not watched[0].waiting:
                watched.popleft()
            if watched:
                deadlines.append(watched[0].t_sent_ns + rule.deadline_ns)
        return min(deadlines, default=None)

    def tick(
        self, now_ns: Ns, is_heard: Callable[[WriteRow], bool] = lambda row: True
    ) -> list[Trigger]:
        """Everything captured up to ``now_ns`` has been fed: what is missing now is missing, where
        the receiver of a write has been heard since."""
        triggers: list[Trigger] = []
        waiting, self._unheard = self._unheard, []
        for rule, row in waiting:
            triggers += self._missing(rule, row, now_ns, is_heard)
        for rule in self._rules["missing-ack"]:
            watched = self._watched[rule.name]
            while watched and (
                not watched[0].waiting or watched[0].t_sent_ns + rule.deadline_ns <= now_ns
            ):
                triggers += self._missing(rule, watched.popleft(), now_ns, is_heard)
        return triggers

    def _missing(
        self, rule: LinkRule, row: WriteRow, now_ns: Ns, is_heard: Callable[[WriteRow], bool]
    ) -> list[Trigger]:
        if not row.waiting:
            return []
        if not is_heard(row):
            if len(self._unheard) < MAX_UNHEARD:
                self._unheard.append((rule, row))
            return []
        row.missing_told = True
        detail = f"{_row_text(row)}: no acknowledgement within {rule.deadline_ns // NS_PER_MS} ms"
        side: Side = "secondary" if row.session.side_of(row.sender) == "primary" else "primary"
        # The silence became an error when its time was up, not when the write was sent.
        due_ns = row.t_sent_ns + rule.deadline_ns
        return self._emit(
            rule, side, row.packet_no, detail, due_ns, now_ns, row.sector, row.write_id_text,
            sectors=row.sectors,
        )  # fmt: skip

    @property
    def unheard(self) -> list[WriteRow]:
        """Writes that were not answered in time by an end of which no frame was captured since."""
        return [row for _, row in self._unheard if row.waiting]

    def _acknowledged(self, row: WriteRow, now_ns: Ns) -> list[Trigger]:
        triggers: list[Trigger] = []
        if row.missing_told:
            return triggers
        for rule in self._rules["late-ack"]:
            if row.unknown or row.latency_ns <= rule.deadline_ns:
                continue
            allowed_ms = rule.deadline_ns // NS_PER_MS
            detail = f"{_row_text(row)}: acknowledged after {_ms(row.latency_ns)}, {allowed_ms} ms allowed"
            side: Side = "secondary" if row.session.side_of(row.sender) == "primary" else "primary"
            triggers += self._emit(
                rule,
                side,
                row.answer_packet_no,
                detail,
                row.t_answer_ns,
                now_ns,
                row.sector,
                row.write_id_text,
                sectors=row.sectors,
            )
        return triggers

    def _unacked_close(self, event: ledgerevents.UnackedClose, now_ns: Ns) -> list[Trigger]:
        closed, first = event.closed, event.rows[0]
        by = f"by {closed.closer} ({closed.reason})" if closed.closer else f"({closed.reason})"
        open_writes = f"{len(event.rows)} unacknowledged writes, first {_row_text(first)}"
        detail = f"replication connection closed {by} with {open_writes}"
        side: Side = "secondary" if closed.session.side_of(first.sender) == "primary" else "primary"
        return self._hit(
            "unacked-close",
            side,
            closed.packet_no,
            detail,
            closed.t_ns,
            now_ns,
            first.sector,
            first.write_id_text,
            sectors=first.sectors,
        )

    def _row_hit(
        self, event: str, row: WriteRow, detail: str, now_ns: Ns, excerpt: bytes
    ) -> list[Trigger]:
        side = row.session.side_of(row.sender)
        return self._hit(
            event, side, row.packet_no, detail, row.t_sent_ns, now_ns, row.sector, row.write_id_text, excerpt,
            sectors=row.sectors,
        )  # fmt: skip

    def _answer_hit(self, event: str, answer: Answer, detail: str, now_ns: Ns) -> list[Trigger]:
        session = answer.session
        sector = answer.offset_bytes // SECTOR_BYTES if answer.offset_bytes >= 0 else -1
        return self._hit(
            event, session.side_of(answer.sender), answer.packet_no, detail, answer.t_ns, now_ns, sector,
            session.show_id(answer.write_id), answer.raw[:_EXCERPT_BYTES],
            sectors=answer.length_bytes // SECTOR_BYTES,
        )  # fmt: skip

    def _hit(
        self, event: str, side: Side, packet_no: int, detail: str, t_ns: Ns, now_ns: Ns,
        sector: int = -1, block_id: str = "", excerpt: bytes = b"", *, sectors: int = 0,
    ) -> list[Trigger]:  # fmt: skip
        return [
            trigger
            for rule in self._rules[event]
            for trigger in self._emit(
                rule,
                side,
                packet_no,
                detail,
                t_ns,
                now_ns,
                sector,
                block_id,
                excerpt,
                sectors=sectors,
            )
        ]

    def _emit(
        self, rule: LinkRule, side: Side, packet_no: int, detail: str, t_ns: Ns, now_ns: Ns,
        sector: int = -1, block_id: str = "", excerpt: bytes = b"", *, sectors: int = 0,
    ) -> list[Trigger]:  # fmt: skip
        began, count = self._second.get(rule.name, (now_ns, 0))
        if now_ns - began >= NS_PER_S:
            began, count = now_ns, 0
        self._second[rule.name] = (began, count + 1)
        if count >= MAX_TRIGGERS_A_SECOND:
            self.suppressed += 1
            return []
        return [
            Trigger(
                t_ns=now_ns,
                rule=rule.name,
                source="link",
                side=side,
                offset_bytes=packet_no,
                t_arrival_ns=t_ns,
                t_match_ns=now_ns,
                excerpt=excerpt,
                detail=detail,
                sector=sector,
                sectors=sectors,
                block_id=block_id,
                instruct=list(SIDES if rule.instruct is None else rule.instruct),
            )
        ]


def _row_text(row: WriteRow) -> str:
    which = f"{row.session.id_name} {row.write_id_text}"
    return f"sector {row.sector} + {row.length_bytes} bytes, {which}"


def _answer_text(answer: Answer) -> str:
    session = answer.session
    which = f"{session.id_name} {session.show_id(answer.write_id)}"
    if answer.offset_bytes < 0:
        return f"{answer.name} {which}"
    sector = answer.offset_bytes // SECTOR_BYTES
    return f"{answer.name} sector {sector} + {answer.length_bytes} bytes, {which}"


def _ms(time_ns: Ns) -> str:
    return f"{time_ns / NS_PER_MS:.3f} ms"


def _digest_detail(row: WriteRow) -> str:
    """Sector, both digests (numbers of 4 bytes as numbers), and with crc32c which bit it was when
    it was one."""
    wire, computed = row.digest_wire, row.digest_computed
    if row.algorithm != "crc32c":
        return f"{_row_text(row)}, {row.algorithm} digest {wire.hex()} on the wire, {computed.hex()} computed"
    sent, found = int.from_bytes(wire, "little"), int.from_bytes(computed, "little")
    text = f"{_row_text(row)}, digest {sent:08x} on the wire, {found:08x} computed"
    flipped = crcbits.flipped_bit(sent ^ found, row.length_bytes)
    if flipped is not None:
        return f"{text}; bit {flipped[1]} of byte {flipped[0]}"
    return (
        f"{text}; a bit of the digest itself"
        if (sent ^ found).bit_count() == 1
        else f"{text}; several bits"
    )


assert {kind.needs for kind in EVENTS.values()} <= set(Tell)


def not_shown(rules: Iterable[LinkRule], tells: frozenset[Tell]) -> list[str]:
    """The rules that can never hit on a link whose protocol shows only ``tells``, each with what it
    waits for."""
    return [
        f"{rule.name} ({rule.event})" for rule in rules if EVENTS[rule.event].needs not in tells
    ]
