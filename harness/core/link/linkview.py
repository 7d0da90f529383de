"""The understanding part of the link watch in one piece: frames and time in, triggers and counters
out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, LinkStats, Ns, Trigger
from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.addresses import canonical
from freezeframe.harness.core.link.blindness import (
    Blindness,
    blindness,
    state_of,
    unsafe_events,
)
from freezeframe.harness.core.link.follow import Follower, LaneSight
from freezeframe.harness.core.link.ledger import Ledger
from freezeframe.harness.core.link.ledgerevents import WriteRow
from freezeframe.harness.core.link.linkrules import LinkRules
from freezeframe.harness.core.link.protocol import LinkOptions, ReplicationProtocol, Tell
from freezeframe.harness.core.link.skim import Buffer
from freezeframe.harness.core.link.stampwatch import SoleWriter, StampWatch
from freezeframe.harness.core.link.tcpstream import Reassembler, StreamEvent
from freezeframe.harness.core.linkevents import LinkRule

SILENCE_MARGIN_NS: Final = 50 * NS_PER_MS
"""Frames of the last moments may still be on their way through the capture's blocks: silence counts
up to then."""


@dataclass(frozen=True, kw_only=True)
class LinkEnds:
    """Which connections are the replication link, and what is spoken on it."""

    protocol: str = byname.USUAL
    """By name: see ``byname``."""
    primary_address: str = ""
    secondary_address: str = ""
    """"": not known; the sender of the first write is then the primary."""
    ports: frozenset[int] = frozenset()
    """Empty: any port; connections that do not begin as the protocol does are then left alone."""
    integrity_alg: str = ""
    """Assumed where the capture does not show what both ends agreed on."""
    problem: str = ""
    """Why ``protocol`` is not the one that was asked for."""

    @property
    def named(self) -> tuple[str, str]:
        """The primary's and the secondary's address; "": not known."""
        return self.primary_address, self.secondary_address

    @property
    def not_understood(self) -> str:
        """Why nothing can be read on the link; "": its protocol shows its writes."""
        if Tell.WRITE in self.speak().tells:
            return ""
        return self.problem or (
            f'the link was recorded and not understood ([link] protocol = "{self.protocol}")'
        )

    def speak(self, *, must_match: bool = True) -> ReplicationProtocol:
        """The protocol, made for this link. ``must_match`` False: what does not begin as the
        protocol does is left alone, though it has the port. UsageError: there is none of that
        name."""
        return byname.find(self.protocol)(
            LinkOptions(
                primary_address=canonical(self.primary_address),
                secondary_address=canonical(self.secondary_address),
                integrity_alg=self.integrity_alg,
                must_match=must_match and bool(self.ports),
            )
        )


class LinkView:
    """``feed`` each frame in order, or those that ``frames`` gives out of each run of frames
    (``core.skimpure``); ``tick`` when everything captured until now has been fed.
    """

    def __init__(self, ends: LinkEnds, rules: Iterable[LinkRule]) -> None:
        self.reassembler = Reassembler(ports=ends.ports)
        self.protocol = ends.speak()
        self.messages = 0
        """Of the protocol, since the start."""
        self._follower = Follower(self.protocol, ends.ports)
        self.ledger = Ledger(LaneSight(self.reassembler, self.protocol))
        rules = list(rules)
        self.rules = LinkRules(rules)
        self.withheld: Counter[str] = Counter()
        """Rule -> triggers that it did not give because the capture could not see what they rest
        on."""
        self.clock_steps = 0
        self._ends = ends
        self._events = {rule.name: rule.event for rule in rules}
        self._frames = 0

    def frames(
        self, run: Buffer, first_no: int, offset_ns: int
    ) -> Iterator[tuple[Ns, memoryview, int]]:
        """(time, frame, number) for ``feed``, each of which has to follow before the next is asked
        for; ``offset_ns`` is taken from the times of the run. The frames live as long as ``run`` is
        not overwritten."""
        return self.reassembler.frames(run, first_no, offset_ns)

    def feed(
        self, t_ns: Ns, frame: bytes | memoryview, packet_no: int, now_ns: Ns
    ) -> list[Trigger]:
        """One captured frame; ``t_ns`` when it was on the wire, ``now_ns`` when it is looked at."""
        self._frames = packet_no
        events = self.reassembler.feed(t_ns, frame, packet_no)
        return self._understand(events, now_ns) if events else []

    def tick(self, now_ns: Ns) -> list[Trigger]:
        """Judge the silence: nothing captured before ``now_ns`` is still to be fed."""
        sure_ns = now_ns - SILENCE_MARGIN_NS
        triggers = self._understand(self.reassembler.tick(sure_ns), now_ns)
        if not self.reassembler.certain:
            return triggers  # what seems to be missing may be waiting behind a hole
        for event in self.ledger.tick(sure_ns, only_shown=True):
            triggers += self.rules.on(event, now_ns)
        return self._believed(triggers + self.rules.tick(sure_ns, self._is_heard))

    def _is_heard(self, row: WriteRow) -> bool:
        """The end that is to answer was heard after the write."""
        ends = row.session.addresses
        other = next((one for one in ends if one != row.sender), row.sender)
        if not self.ledger.shows_answers(row.session, row.t_sent_ns):
            return False  # what is missing may be the begin of its stream
        return self.reassembler.is_heard(other, row.sender, row.packet_no, row.t_sent_ns)

    def next_deadline(self) -> Ns | None:
        """When ``tick`` should be called if no frame comes."""
        if not self.reassembler.certain:
            due_ns = self.reassembler.next_deadline()
        else:
            both = (self.ledger.next_deadline(), self.rules.next_deadline())
            due_ns = min((due for due in both if due is not None), default=None)
        return None if due_ns is None else due_ns + SILENCE_MARGIN_NS

    def expect_stamps(self, writer: SoleWriter | None) -> None:
        """From now on our own writer is the volume's sole writer; None: no longer."""
        same = self.protocol.host_addresses
        self.ledger.stamps = StampWatch(writer, same_addresses=same) if writer else None

    def frames_lost(self, t_ns: Ns) -> None:
        """The kernel dropped frames until ``t_ns``: what they held is not known."""
        self.ledger.frames_lost(t_ns)

    def close(self, now_ns: Ns) -> list[Trigger]:
        """The capture ends: judge what is certain by now."""
        triggers = self._understand(self.reassembler.tick(now_ns + NS_PER_S), now_ns)
        for event in self.ledger.tick(now_ns + NS_PER_S, only_shown=True):
            triggers += self.rules.on(event, now_ns)
        return self._believed(triggers) + self._understand(self.reassembler.close(now_ns), now_ns)

    def clock_set(self, t_ns: Ns) -> None:
        """The clock that times the frames was set before ``t_ns``: what took how long is not known."""
        self.clock_steps += 1
        self.reassembler.forget_clocks()
        self.ledger.frames_lost(t_ns)

    def blindness(self, frames: int = 0) -> list[Blindness]:
        """What the capture, of at least ``frames`` frames of any kind, cannot see."""
        state = state_of(
            self.reassembler, self.protocol, self.ledger.totals, named=self._ends.named,
            ports=self._ends.ports, frames=max(frames, self._frames), messages=self.messages,
            unheard=len(self.rules.unheard),
        )  # fmt: skip
        return blindness(state)

    def _believed(self, triggers: list[Trigger]) -> list[Trigger]:
        """Those whose conclusion does not rest on what the capture cannot show."""
        if not triggers:
            return triggers
        unsafe = unsafe_events(self.blindness())
        withheld = [one for one in triggers if self._events.get(one.rule) in unsafe]
        self.withheld.update(one.rule for one in withheld)
        return [one for one in triggers if one not in withheld] if withheld else triggers

    def stats(self, *, t_ns: Ns, packets: int, bytes_captured: int, kernel_drops: int) -> LinkStats:
        totals = self.ledger.totals
        return LinkStats(
            t_ns=t_ns,
            packets=packets,
            bytes_captured=bytes_captured,
            kernel_drops=kernel_drops,
            gaps=self.reassembler.gaps,
            messages=self.messages,
            writes=totals.writes,
            acks=totals.acks,
            outstanding=self.ledger.outstanding(),
            digests_checked=totals.digests_checked,
            blind={str(one.kind): one.says for one in self.blindness(packets)},
        )

    def _understand(self, events: Iterable[StreamEvent], now_ns: Ns) -> list[Trigger]:
        triggers: list[Trigger] = []
        on_stream, on_message, on_ledger = self._follower.on, self.ledger.on, self.rules.on
        seen = 0
        for stream_event in events:
            for message in on_stream(stream_event):
                seen += 1
                for ledger_event in on_message(message):
                    triggers += on_ledger(ledger_event, now_ns)
        self.messages += seen
        return self._believed(triggers)
