"""Two replication peers in virtual time: their volumes in memory, the link between them byte by
byte."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from freezeframe.firmware_sim.drbd_codec import Decoder
from freezeframe.firmware_sim.drbd_peer import AckPlan, Metadata, Peer, PeerConfig
from freezeframe.firmware_sim.ports import (
    ReplicationBlocked,
    ReplicationClose,
    ReplicationClosed,
    ReplicationData,
    ReplicationDial,
    ReplicationHold,
    ReplicationOpened,
    ReplicationSend,
)
from freezeframe.harness.wire.control import PairState
from freezeframe.harness.wire.drbd import DATA_SOCKET, MAGIC_H100, META_SOCKET, Cmd, Role
from freezeframe.harness.wire.rootcause import EVENT_ARGUMENTS, EventCode

MS = 1_000_000
S = 1_000 * MS
HOP_NS = 100_000
"""Travel time of bytes, and of a connection."""
SIZE_BYTES = 1 << 20
BUFFER_BYTES = 512 << 10
"""Of both ends of a connection."""
CACHED_WRITES = 20
"""Writes that a power loss undoes."""


class MemoryBackend:
    def __init__(self, size_bytes: int = SIZE_BYTES) -> None:
        self.size_bytes = size_bytes
        self.metadata = Metadata.fresh(size_bytes)
        self.data = bytearray(size_bytes)
        self.saved = self.metadata.to_bytes()
        self.cached: deque[tuple[int, bytes]] = deque(maxlen=CACHED_WRITES)
        """(offset, what was there before) of the last writes."""

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        assert offset_bytes >= 0 and 0 < length_bytes <= self.size_bytes - offset_bytes
        return bytes(self.data[offset_bytes : offset_bytes + length_bytes])

    def write(self, offset_bytes: int, data: bytes) -> None:
        assert 0 <= offset_bytes <= self.size_bytes - len(data)
        end = offset_bytes + len(data)
        self.cached.append((offset_bytes, bytes(self.data[offset_bytes:end])))
        self.data[offset_bytes:end] = data

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        self.write(offset_bytes, bytes(length_bytes))

    def flush(self) -> None:
        self.cached.clear()

    def save_metadata(self) -> None:
        self.saved = self.metadata.to_bytes()

    def power_cycle(self) -> None:
        """Metadata are as they were saved last; some of the last writes were still in the volatile
        cache."""
        self.metadata = Metadata.from_bytes(self.saved)
        while self.cached:
            offset_bytes, before = self.cached.pop()
            self.data[offset_bytes : offset_bytes + len(before)] = before


class Hooks:
    """No faults, unless an attribute is replaced."""

    def copied(self, write_no: int, offset_bytes: int, data: bytes) -> tuple[int, bytes]:
        return offset_bytes, data

    def resync(self, moment: str, bitmap: Any) -> bool:
        return False

    def sent_data(self, write_no: int, data: bytes) -> bytes:
        return data

    def received_data(self, write_no: int, data: bytes) -> bytes:
        return data

    def store(self, write_no: int, offset_bytes: int, data: bytes, backend: Any) -> None:
        backend.write(offset_bytes, data)

    def ack(self, write_no: int) -> AckPlan:
        return AckPlan("ack", 0)

    def barrier_count(self, count: int) -> int:
        return count

    def stall_ns(self, write_no: int) -> int:
        return 0


class Side:
    def __init__(self, world: "World", name: str, config: dict[str, Any], size_bytes: int) -> None:
        self.world = world
        self.name = name
        self.config = config
        self.backend = MemoryBackend(size_bytes)
        self.hooks: Any = Hooks()
        self.lines: list[str] = []
        self.events: list[tuple[EventCode, tuple[int, ...]]] = []
        self.completions: list[tuple[int, str]] = []
        self.held: set[int] = set()
        self.sent: dict[int, bytearray] = {}
        self.other: Side
        self.boot()

    def boot(self) -> None:
        generator = random.Random(f"{self.world.seed} {self.name} {len(self.lines)}")
        settings: dict[str, Any] = {
            "timeout_ns": S,
            "ko_count": 2,
            "random_bytes": generator.randbytes,
        }
        self.peer = Peer(
            PeerConfig(**settings | self.config),
            self.backend,
            self.hooks,
            self.lines.append,
            self._trace,
        )

    def _trace(self, event: EventCode, *args: int) -> None:
        assert len(args) <= len(EVENT_ARGUMENTS[event])
        assert all(0 <= arg < 1 << 64 for arg in args)
        self.events.append((event, args))

    def text(self) -> str:
        return "\n".join(self.lines)

    def traced(self, event: EventCode) -> list[tuple[int, ...]]:
        return [args for found, args in self.events if found is event]

    def write(self, write_no: int, offset_bytes: int, data: bytes, **how: Any) -> bool:
        self.backend.write(offset_bytes, data)
        sent = self.peer.replicate(self.world.now, write_no, offset_bytes, data, **how)
        if not sent:
            self.completions.append((write_no, "alone"))
        self.world.collect()
        return sent

    def trim(self, write_no: int, offset_bytes: int, length_bytes: int) -> bool:
        self.backend.trim(offset_bytes, length_bytes)
        sent = self.peer.replicate(self.world.now, write_no, offset_bytes, None, length_bytes)
        if not sent:
            self.completions.append((write_no, "alone"))
        self.world.collect()
        return sent


class World:
    """``split``: how the bytes of one send arrive; takes the bytes, gives the pieces."""

    def __init__(
        self,
        seed: int = 0,
        *,
        split: Callable[[bytes], list[bytes]] = lambda data: [data],
        size_bytes: int = SIZE_BYTES,
        dialler: dict[str, Any] | None = None,
        listener: dict[str, Any] | None = None,
        both: dict[str, Any] | None = None,
    ) -> None:
        self.now = 1 * S
        self.seed = seed
        self.split = split
        self.a = Side(self, "a", {"dial": True, **(both or {}), **(dialler or {})}, size_bytes)
        self.b = Side(self, "b", {"dial": False, **(both or {}), **(listener or {})}, size_bytes)
        self.a.other, self.b.other = self.b, self.a
        self.reachable = True
        self.records: list[tuple[int, str, int, bytes]] = []
        """(time, sending side, socket, bytes) of everything sent; b"" opens a connection."""
        self._in_flight: deque[tuple[int, Side, Any]] = deque()
        self._sockets = 0
        self._open: set[int] = set()
        self._piled: dict[tuple[str, int], int] = {}

    # --- driving --------------------------------------------------------------------------------------------------

    def start(self, primary: str = "a") -> "World":
        """Both on; one of them primary; up to date."""
        self.a.peer.start(self.now)
        self.b.peer.start(self.now)
        self.collect()
        self.run(1 * S)
        self.side(primary).peer.set_role(self.now, Role.PRIMARY)
        self.collect()
        self.run(1 * S)
        return self

    def side(self, name: str) -> Side:
        return self.a if name == "a" else self.b

    def run(self, duration_ns: int) -> None:
        end = self.now + duration_ns
        self.collect()
        while self.step(end):
            pass
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_ns: int = 60 * S) -> None:
        end = self.now + limit_ns
        while not condition():
            assert self.step(end), f"never came:\n{self.a.text()}\n---\n{self.b.text()}"

    def step(self, end: int) -> bool:
        """The next thing that happens before ``end``; False when nothing does."""
        ready = [
            (due, index)
            for index, (due, side, item) in enumerate(self._in_flight)
            if self._may(side, item)
        ]
        deadlines = [(side.peer.next_deadline(), side) for side in (self.a, self.b)]
        due_bytes = min(ready, default=None)
        due_tick = min((due for due, _ in deadlines if due is not None), default=None)
        if due_bytes is not None and (due_tick is None or due_bytes[0] <= due_tick):
            if due_bytes[0] > end:
                return False
            self.now = max(self.now, due_bytes[0])
            _, side, item = self._in_flight[due_bytes[1]]
            del self._in_flight[due_bytes[1]]
            if isinstance(item, ReplicationData):
                self._fill(side.other, item.socket, -len(item.data))
            side.peer.handle(self.now, item)
        elif due_tick is not None and due_tick <= end:
            self.now = max(self.now, due_tick)
            for due, side in deadlines:
                if due is not None and due <= self.now:
                    side.peer.tick(self.now)
        else:
            return False
        self.collect()
        return True

    def _may(self, side: Side, item: Any) -> bool:
        return not (isinstance(item, ReplicationData) and item.socket in side.held)

    def cut(self) -> None:
        """The link breaks: bytes under way are lost, both ends see their sockets close."""
        self._in_flight = deque(
            entry for entry in self._in_flight if not isinstance(entry[2], ReplicationData)
        )
        for socket in sorted(self._open):
            for side in (self.a, self.b):
                self._post(side, ReplicationClosed(socket, "cut"))
        self._open.clear()

    def kill(self, side: Side) -> None:
        """Power loss of one side; its peer sees the sockets close once the bytes under way have
        arrived."""
        self._in_flight = deque(entry for entry in self._in_flight if entry[1] is not side)
        for socket in sorted(self._open):
            self._post(side.other, ReplicationClosed(socket, "reset"))
        self._open.clear()
        side.held.clear()
        side.backend.power_cycle()
        side.boot()

    # --- the link -------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        for side in (self.a, self.b):
            side.completions += side.peer.take_completions()
            for item in side.peer.take_output():
                self._carry(side, item)

    def _post(self, side: Side, item: Any) -> None:
        self._in_flight.append((self.now + HOP_NS, side, item))

    def _carry(self, side: Side, item: Any) -> None:
        match item:
            case ReplicationDial():
                if not self.reachable or self.b.peer.next_deadline is None:
                    self._post(side, ReplicationClosed(-1, "refused", item.kind))
                    return
                self._sockets += 1
                self._open.add(self._sockets)
                self.records.append((self.now, side.name, self._sockets, b""))
                self._post(side, ReplicationOpened(self._sockets, item.kind))
                self._post(side.other, ReplicationOpened(self._sockets, ""))
            case ReplicationSend():
                if item.socket in self._open:
                    data = bytes(item.data)
                    self.records.append((self.now, side.name, item.socket, data))
                    for piece in self.split(data):
                        self._post(side.other, ReplicationData(item.socket, piece))
                    self._fill(side, item.socket, len(data))
            case ReplicationClose():
                if item.socket in self._open:
                    self._open.discard(item.socket)
                    self._post(side.other, ReplicationClosed(item.socket, "closed"))
                side.held.discard(item.socket)
            case ReplicationHold():
                (side.held.add if item.hold else side.held.discard)(item.socket)
            case _:
                raise AssertionError(item)

    def _fill(self, side: Side, socket: int, length: int) -> None:
        """What is under way, or not read: above BUFFER_BYTES the sender feels it, and each time
        some of it has gone."""
        before = self._piled.get((side.name, socket), 0)
        piled = self._piled[side.name, socket] = max(0, before + length)
        if before > BUFFER_BYTES if length < 0 else before <= BUFFER_BYTES < piled:
            self._post(side, ReplicationBlocked(socket, piled > BUFFER_BYTES))

    def equal(self) -> bool:
        return self.a.backend.data == self.b.backend.data


FULL_DUPLEX = PairState.FULL_DUPLEX


def whole(world: World) -> bool:
    return world.a.peer.pair_state is world.b.peer.pair_state is FULL_DUPLEX and world.equal()


def packets(
    world: World, side: Side, version: int = 101
) -> list[tuple[int, tuple[object, ...], bytes]]:
    """Everything that a side has sent, in order; sockets are told apart by their numbers."""
    found = []
    decoders: dict[int, Decoder] = {}
    for _, name, socket, data in world.records:
        if name != side.name or not data:
            continue
        if socket not in decoders:
            begins_agreed = data.startswith(MAGIC_H100.to_bytes(4, "big"))
            decoders[socket] = Decoder(DATA_SOCKET | META_SOCKET, version if begins_agreed else 0)
        decoder = decoders[socket]
        decoder.push(data)
        while (packet := decoder.next()) is not None:
            found.append((packet[0], packet[1], bytes(packet[2])))
            if packet[0] in (Cmd.CONNECTION_FEATURES, Cmd.INITIAL_META):
                decoder.version = version
    return found
