"""Two controllers, their links, consoles, control ports and a host, in memory and virtual time.
Deterministic.

``World`` transfers bytes between the pure controllers as ``serve.py`` does between real ports,
with latencies, cuts and power losses at exact times. Everything runs only inside ``run_until`` and
``run_for``.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, assert_never

from freezeframe.firmware_sim.config import ControllerConfig
from freezeframe.firmware_sim.control import Frame, Receiver, encode
from freezeframe.firmware_sim.controller import Controller
from freezeframe.firmware_sim.drbd_contract import PeerConfig
from freezeframe.firmware_sim.drbd_metadata import Metadata
from freezeframe.firmware_sim.managed import Phase
from freezeframe.firmware_sim.medium import MemoryMedium
from freezeframe.firmware_sim.ports import (
    ConsoleSend,
    ControlBreak,
    ControlData,
    ControlSend,
    HostClose,
    HostData,
    HostHold,
    HostOpened,
    HostSend,
    Inbox,
    Outbox,
    ReplicationClose,
    ReplicationClosed,
    ReplicationData,
    ReplicationDial,
    ReplicationHold,
    ReplicationOpened,
    ReplicationSend,
)
from freezeframe.firmware_sim.rootcause import MemoryNvram
from freezeframe.firmware_sim.store import Store
from freezeframe.firmware_sim.worldhost import HostClient, HostRequest
from freezeframe.harness.wire.control import PairState

NS_PER_S: Final = 1_000_000_000
LATENCY_NS: Final = 100_000
"""Latency in one direction of every link ..."""
JITTER_NS: Final = 50_000
"""... and up to this much more at random on the replication link, whose two connections can
overtake each other."""
BOOT_NS: Final = 50_000_000
SIZE_BYTES: Final = 4 << 20
DIAL_TIMEOUT_NS: Final = NS_PER_S
MAX_EVENTS: Final = 2_000_000
"""Limit of events per run. More means that the controllers exchange messages endlessly."""
SIDES: Final = ("primary", "secondary")
OTHER: Final = {"primary": "secondary", "secondary": "primary"}
SERIAL_NUMBERS: Final = {"primary": "FFSIM-P-0001", "secondary": "FFSIM-S-0001"}


class NotReached(AssertionError):
    """The condition was not reached in time."""


@dataclass
class Connection:
    """One end of a replication connection."""

    side: str
    number: int
    peer: "Connection | None" = None
    held: bool = False
    waiting: deque[bytes] = field(default_factory=deque)
    """Bytes that arrived while the receiver did not read or the link was cut."""
    busy_until_ns: int = 0
    """Arrival time of the last bytes in transit to this end; later ones arrive later."""


@dataclass
class Node:
    """One controller and what survives its power-off."""

    side: str
    nvram: MemoryNvram = field(default_factory=MemoryNvram)
    medium: MemoryMedium = field(default_factory=MemoryMedium)
    controller: Controller | None = None
    console: bytearray = field(default_factory=bytearray)
    receivers: dict[str, Receiver] = field(default_factory=dict)
    replies: dict[str, list[Frame]] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        return self.controller is not None and self.controller.phase is not Phase.HUNG


class World:
    """The bench. ``controllers``: the class per side, so that a mutant can take a side."""

    def __init__(
        self,
        seed: int = 1,
        *,
        size_bytes: int = SIZE_BYTES,
        autonomic: bool = False,
        controllers: dict[str, type[Controller]] | None = None,
    ) -> None:
        self.now_ns = NS_PER_S
        self.seed = seed
        self.size_bytes = size_bytes
        self.link_cut = False
        self.nodes = {side: Node(side) for side in SIDES}
        self.acked_early: list[HostRequest] = []
        """Writes acknowledged to the host in full duplex while the secondary held other data."""
        self.requests: list[HostRequest] = []
        self.serials = dict(SERIAL_NUMBERS)
        """Who stands there from the next power-on on."""
        self._autonomic = autonomic
        self._classes = controllers or {}
        self._numbers = count(1)
        self._order = count()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._connections: dict[tuple[str, int], Connection] = {}
        self._hosts: dict[tuple[str, int], HostClient] = {}
        self._seq = count(1)
        self._random = random.Random(seed)
        for side in SIDES:
            self.power_on(side)

    # --- for tests ----------------------------------------------------------------------------------
    def controller(self, side: str) -> Controller:
        controller = self.nodes[side].controller
        assert controller is not None, f"{side} has no power"
        return controller

    def pair_state(self, side: str) -> PairState:
        node = self.nodes[side]
        running = node.controller is not None and node.controller.phase is Phase.RUNNING
        return PairState(self.controller(side).peer.pair_state) if running else PairState.SIMPLEX

    @property
    def full_duplex(self) -> bool:
        return all(self.pair_state(side) is PairState.FULL_DUPLEX for side in SIDES)

    def console(self, side: str) -> str:
        """Return everything the side has printed, over all its boots."""
        return self.nodes[side].console.decode("ascii", "backslashreplace")

    def content(self, side: str) -> bytes:
        """Return the whole volume as seen by the firmware."""
        return self.controller(side).store.read(0, self.size_bytes)

    # --- time -----------------------------------------------------------------------------------------------
    def run_until(
        self, reached: Callable[[], object], limit_s: float = 10.0, what: str = ""
    ) -> None:
        """Run until ``reached()``; raises NotReached after ``limit_s`` of virtual time."""
        limit_ns = self.now_ns + int(limit_s * NS_PER_S)
        for _ in range(MAX_EVENTS):
            if reached():
                return
            next_ns = self._next_ns()
            if next_ns is None or next_ns > limit_ns:
                self.now_ns = limit_ns
                raise NotReached(what or f"not reached in {limit_s} s\n{self.tail()}")
            self._advance(next_ns)
        raise NotReached(f"{MAX_EVENTS} events in less than {limit_s} s\n{self.tail()}")

    def run_for(self, duration_s: float) -> None:
        limit_ns = self.now_ns + int(duration_s * NS_PER_S)
        while (next_ns := self._next_ns()) is not None and next_ns <= limit_ns:
            self._advance(next_ns)
        self.now_ns = limit_ns

    def tail(self, lines: int = 12) -> str:
        """Return the ends of both consoles, for the report of a failure."""
        return "\n".join(
            f"--- {side}\n" + "\n".join(self.console(side).splitlines()[-lines:]) for side in SIDES
        )

    def _next_ns(self) -> int | None:
        times = [self._events[0][0]] if self._events else []
        for node in self.nodes.values():
            if node.controller is not None:
                deadline_ns = node.controller.next_deadline()
                if deadline_ns is not None:
                    times.append(max(deadline_ns, self.now_ns))
        return min(times, default=None)

    def _advance(self, now_ns: int) -> None:
        self.now_ns = now_ns
        while self._events and self._events[0][0] <= now_ns:
            heapq.heappop(self._events)[2]()
        for side in SIDES:
            controller = self.nodes[side].controller
            if controller is not None:
                deadline_ns = controller.next_deadline()
                if deadline_ns is not None and deadline_ns <= now_ns:
                    self._step(side)

    def _after(self, delay_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_ns + delay_ns, next(self._order), action))

    def _step(self, side: str, *inbox: Inbox) -> None:
        controller = self.nodes[side].controller
        if controller is not None:
            self._carry(side, controller.step(self.now_ns, inbox))

    # --- power and links ------------------------------------------------------------------------------------
    def power_on(self, side: str) -> None:
        node = self.nodes[side]
        assert node.controller is None
        saved = node.medium.read_metadata()
        metadata = Metadata.fresh(self.size_bytes) if saved is None else Metadata.from_bytes(saved)
        config = ControllerConfig(
            side=side,
            serial_number=self.serials[side],
            peer=PeerConfig(dial=side == "primary"),
            seed=self.seed,
            boot_ns=BOOT_NS,
            autonomic=self._autonomic,
        )
        build = self._classes.get(side, Controller)
        node.controller = build(config, node.nvram, Store(node.medium, self.size_bytes, metadata))
        self._carry(side, node.controller.power_on(self.now_ns))

    def power_off(self, side: str) -> None:
        """Cut the power without warning: memory is lost, connections are reset, host sessions end."""
        self.nodes[side].controller = None
        for connection in [item for item in self._connections.values() if item.side == side]:
            self._close(connection)
        for key in [key for key in self._hosts if key[0] == side]:
            self._hosts.pop(key).lost()

    def power_cycle(self, side: str) -> None:
        self.power_off(side)
        self.power_on(side)

    def drop_connections(self) -> None:
        """Break both replication connections; the link itself stays up."""
        for connection in list(self._connections.values()):
            if self._connections.get((connection.side, connection.number)) is connection:
                self._close(connection)
                self._arrive(connection.side, ReplicationClosed(connection.number, "reset"))

    def cut_link(self) -> None:
        """Block the link; bytes in transit wait, as in the buffers of TCP."""
        self.link_cut = True

    def heal_link(self) -> None:
        self.link_cut = False
        for connection in list(self._connections.values()):
            self._deliver(connection)

    def _dial(self, side: str, item: ReplicationDial) -> None:
        other = OTHER[side]

        def refuse(reason: str) -> None:
            self._step(side, ReplicationClosed(-1, reason, item.kind))

        def connect() -> None:
            if not self.nodes[other].alive:
                refuse("Connection refused")
                return
            ends = [Connection(name, next(self._numbers)) for name in (side, other)]
            ends[0].peer, ends[1].peer = ends[1], ends[0]
            for end in ends:
                self._connections[end.side, end.number] = end
            self._step(other, ReplicationOpened(ends[1].number, ""))
            self._step(side, ReplicationOpened(ends[0].number, item.kind))

        if self.link_cut:
            self._after(DIAL_TIMEOUT_NS, lambda: refuse("Connection timed out"))
        else:
            self._after(2 * LATENCY_NS, connect)

    def _send(self, connection: Connection | None, data: bytes) -> None:
        if connection is None or connection.peer is None:
            return
        receiver = connection.peer

        def arrive() -> None:
            receiver.waiting.append(data)
            self._deliver(receiver)

        self._after(self._travel_ns(receiver), arrive)

    def _travel_ns(self, receiver: Connection) -> int:
        at_ns = self.now_ns + LATENCY_NS + self._random.randrange(JITTER_NS)
        receiver.busy_until_ns = max(at_ns, receiver.busy_until_ns)
        return receiver.busy_until_ns - self.now_ns

    def _deliver(self, receiver: Connection) -> None:
        """Deliver waiting bytes, unless the receiver does not read or is gone, or the link is cut."""
        while receiver.waiting and not receiver.held and not self.link_cut:
            if self._connections.get((receiver.side, receiver.number)) is not receiver:
                return
            self._step(receiver.side, ReplicationData(receiver.number, receiver.waiting.popleft()))

    def _close(self, connection: Connection | None) -> None:
        """Close this end; the other end notices after the bytes in transit."""
        if connection is None:
            return
        self._connections.pop((connection.side, connection.number), None)
        other, connection.peer = connection.peer, None
        if other is None:
            return
        other.peer = None

        def tell() -> None:
            if self._connections.pop((other.side, other.number), None) is not None:
                self._step(other.side, ReplicationClosed(other.number, "closed by the other side"))

        self._after(self._travel_ns(other), tell)

    def _arrive(self, side: str, item: Inbox) -> None:
        self._after(LATENCY_NS, lambda: self._step(side, item))

    # --- control --------------------------------------------------------------------------------------------
    def control(
        self, side: str, op: int, payload: bytes = b"", *, port: str = "control", seq: int = 0
    ) -> int:
        """Send a frame and return its seq; ``reply`` waits for its reply."""
        number = seq or next(self._seq)
        self._arrive(side, ControlData(port, encode(Frame(op, number, payload))))
        return number

    def reply(self, side: str, seq: int, *, port: str = "control", limit_s: float = 2.0) -> Frame:
        """The first reply with this seq, when it comes."""
        replies = self.nodes[side].replies.setdefault(port, [])
        self.run_until(
            lambda: any(frame.seq == seq for frame in replies), limit_s, f"no reply from {side}"
        )
        return next(frame for frame in replies if frame.seq == seq)

    def send_break(self, side: str) -> None:
        """A BREAK on the control line."""
        self._arrive(side, ControlBreak("control"))

    # --- host -----------------------------------------------------------------------------------------------
    def connect_host(self, side: str = "primary") -> HostClient:
        """A new host session; requests may be queued at once."""
        number = next(self._numbers)

        def send(data: bytes) -> None:
            self._arrive(side, HostData(number, data))

        client = HostClient(send, self._host_done)
        self._hosts[side, number] = client
        self._arrive(side, HostOpened(number))
        return client

    def _client(self, side: str) -> HostClient:
        for (at, _), client in self._hosts.items():
            if at == side:
                return client
        return self.connect_host(side)

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> HostRequest:
        """Queue a write to the primary; see ``HostRequest.done``."""
        return self._remember(
            self._client("primary").request("write", offset_bytes, len(data), data, fua=fua)
        )

    def trim(self, offset_bytes: int, length_bytes: int) -> HostRequest:
        return self._remember(self._client("primary").request("trim", offset_bytes, length_bytes))

    def flush(self) -> HostRequest:
        return self._remember(self._client("primary").request("flush", 0, 0))

    def read(self, side: str, offset_bytes: int, length_bytes: int) -> bytes:
        """Read through the host port, and wait for it."""
        request = self._client(side).request("read", offset_bytes, length_bytes)
        self.run_until(lambda: request.done)
        assert not request.error, f"read failed with {request.error}"
        return request.result

    def _remember(self, request: HostRequest) -> HostRequest:
        self.requests.append(request)
        return request

    def _host_done(self, request: HostRequest) -> None:
        """Check protocol C: data that the host believes stored must be stored on both sides."""
        if request.kind != "write" or request.error or not self.full_duplex:
            return
        overlapped = any(
            other is not request
            and other.overlaps(request)
            and not (other.done and other.number < request.number)
            for other in self.requests
        )
        store = self.controller("secondary").store
        if not overlapped and store.read(request.offset_bytes, len(request.data)) != request.data:
            self.acked_early.append(request)

    # --- outputs -------------------------------------------------------------------------------------
    def _carry(self, side: str, outbox: list[Outbox]) -> None:
        node = self.nodes[side]
        for item in outbox:
            match item:
                case ConsoleSend():
                    node.console += item.data
                case ControlSend():
                    self._control_out(node, item)
                case HostSend():
                    client = self._hosts.get((side, item.session))
                    if client is not None:
                        self._after(LATENCY_NS, _feeder(client, item.data))
                case HostClose():
                    client = self._hosts.pop((side, item.session), None)
                    if client is not None:
                        client.lost()
                case HostHold():
                    # The host's bytes are unbounded here anyway.
                    pass
                case ReplicationDial():
                    self._dial(side, item)
                case ReplicationSend():
                    self._send(self._connections.get((side, item.socket)), bytes(item.data))
                case ReplicationClose():
                    self._close(self._connections.get((side, item.socket)))
                case ReplicationHold():
                    connection = self._connections.get((side, item.socket))
                    if connection is not None:
                        connection.held = item.hold
                        self._after(0, _deliverer(self._deliver, connection))
                case _:
                    assert_never(item)

    def _control_out(self, node: Node, item: ControlSend) -> None:
        if item.port == "peer":
            self._arrive(OTHER[node.side], ControlData("peer", item.data))
            return
        receiver = node.receivers.setdefault(item.port, Receiver())
        node.replies.setdefault(item.port, []).extend(receiver.feed(item.data))

    def drain(self) -> Iterator[HostRequest]:
        """Host requests that are not answered yet."""
        return (request for request in self.requests if not request.done)


def _feeder(client: HostClient, data: bytes) -> Callable[[], None]:
    return lambda: client.feed(data)


def _deliverer(deliver: Callable[[Connection], None], connection: Connection) -> Callable[[], None]:
    return lambda: deliver(connection)
