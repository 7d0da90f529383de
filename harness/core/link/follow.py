"""TCP streams in, the messages of a protocol out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.addresses import canonical
from freezeframe.harness.core.link.messages import Answer, BarrierAnswer, LinkMessage
from freezeframe.harness.core.link.protocol import Direction, Opening, ReplicationProtocol
from freezeframe.harness.core.link.tcpstream import (
    Reassembler,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamGap,
    StreamOpened,
)

_NONE: Final[tuple[LinkMessage, ...]] = ()


class LaneSight:
    """What the capture shows of the connection that carries a session's writes: see
    ``doubts.WriteSight``.

    Where answers travel on the same one, the frame of an answer acknowledges all writes before it, and one
    that was missed is a known hole HOLE_PATIENCE_NS later.
    """

    def __init__(self, reassembler: Reassembler, protocol: ReplicationProtocol) -> None:
        self._reassembler = reassembler
        self._elsewhere: bool = getattr(protocol, "answers_elsewhere", False)

    def attend(self, answer: Answer | BarrierAnswer) -> None:
        if answer.session.data >= 0:
            self._reassembler.attend(answer.session.data)

    def shows(self, answer: Answer | BarrierAnswer, since_ns: Ns) -> bool:
        if answer.session.data < 0:
            return not self._elsewhere
        return self._reassembler.acknowledged_ns(answer.session.data, answer.sender) >= since_ns

    def rest(self) -> None:
        self._reassembler.rest()


class Follower:
    """``on`` takes each stream event in order."""

    def __init__(self, protocol: ReplicationProtocol, ports: frozenset[int] = frozenset()) -> None:
        """``ports``: service ports that the bench file names."""
        self.protocol = protocol
        self._ports = ports
        self._directions: dict[int, Direction] = {}

    def on(self, event: StreamEvent) -> Iterable[LinkMessage]:
        if type(event) is StreamData:  # nearly all of them
            direction = self._directions.get(event.flow.number)
            if direction is None:
                return _NONE
            return direction.feed(event.data, event.t_ns, event.packet_no)
        if type(event) is StreamOpened:
            return self._opened(event)
        direction = self._directions.get(event.flow.number)
        if direction is None:
            return _NONE
        if type(event) is StreamGap:
            return direction.gap(event.length_bytes, event.t_ns)
        assert type(event) is StreamClosed
        del self._directions[event.flow.number]
        return direction.closed(event.t_ns, event.packet_no, event.reason)

    def _opened(self, event: StreamOpened) -> Iterable[LinkMessage]:
        flow = event.flow
        direction = self.protocol.connection(
            Opening(
                flow=flow.number,
                connection=flow.connection,
                source=canonical(flow.source),
                source_port=flow.source_port,
                destination=canonical(flow.destination),
                destination_port=flow.destination_port,
                from_start=event.from_start,
                opener=event.opener,
                t_ns=event.t_ns,
                packet_no=event.packet_no,
                ports=self._ports,
                fill=flow.fill,
            )
        )
        if direction is None:
            flow.fill.discard()
            return _NONE
        self._directions[flow.number] = direction
        return direction.begin()
