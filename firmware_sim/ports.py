"""The edges of the pure controller: everything that comes in, everything that goes out, as frozen
values.

``Controller.step(now_ns, inbox) -> outbox``; ``Controller.next_deadline() -> int | None`` says when
to step without input. ``serve.py`` maps these to sockets, PTYs and clocks; ``world.py`` to memory
and virtual time. Names of channels: host sessions and replication sockets are small integers given
by whoever opens them; control ports are "control" (the harness's link), "console" (frames that
share the console's UART), "peer" (autonomic mode) and "service" (a fault while others have the link).
"""

from dataclasses import dataclass
from typing import Literal

SocketKind = Literal["data", "meta"]


@dataclass(frozen=True, slots=True)
class HostOpened:
    session: int


@dataclass(frozen=True, slots=True)
class HostData:
    session: int
    data: bytes | memoryview
    """Good for this step only: what is to be kept is copied. So are those of ReplicationData."""


@dataclass(frozen=True, slots=True)
class HostClosed:
    session: int


@dataclass(frozen=True, slots=True)
class ReplicationOpened:
    """A TCP connection of the replication link is up. ``kind`` is set when this side dialled it; on
    the accepting side it is "" until the peer's first packet (INITIAL_DATA or INITIAL_META) says
    which it is."""

    socket: int
    kind: Literal["data", "meta", ""]


@dataclass(frozen=True, slots=True)
class ReplicationData:
    socket: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class ReplicationClosed:
    """Closed by the peer, or the dial failed (``socket`` < 0 then, ``kind`` says which dial)."""

    socket: int
    reason: str = ""
    kind: Literal["data", "meta", ""] = ""


@dataclass(frozen=True, slots=True)
class ControlData:
    port: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ControlBreak:
    """A BREAK on a serial line: an NMI."""

    port: str


@dataclass(frozen=True, slots=True)
class ReplicationBlocked:
    """Output waits because the peer does not read; repeated whenever it has accepted some. False:
    all is sent."""

    socket: int
    is_blocked: bool


ReplicationInbox = ReplicationOpened | ReplicationData | ReplicationClosed | ReplicationBlocked

Inbox = (
    ReplicationBlocked
    | HostOpened
    | HostData
    | HostClosed
    | ReplicationOpened
    | ReplicationData
    | ReplicationClosed
    | ControlData
    | ControlBreak
)


@dataclass(frozen=True, slots=True)
class HostSend:
    session: int
    data: bytes


@dataclass(frozen=True, slots=True)
class HostClose:
    session: int


@dataclass(frozen=True, slots=True)
class HostHold:
    """Stop (or go on) reading this session: more requests wait than the controller has memory
    for."""

    session: int
    hold: bool


@dataclass(frozen=True, slots=True)
class ReplicationDial:
    """Connect to the configured peer; each is answered by exactly one ReplicationOpened or
    ReplicationClosed."""

    kind: SocketKind


@dataclass(frozen=True, slots=True)
class ReplicationSend:
    socket: int
    data: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ReplicationClose:
    socket: int


@dataclass(frozen=True, slots=True)
class ReplicationHold:
    """Stop (or go on) reading this socket: a stalled firmware, or back-pressure."""

    socket: int
    hold: bool


@dataclass(frozen=True, slots=True)
class ConsoleSend:
    data: bytes


@dataclass(frozen=True, slots=True)
class ControlSend:
    port: str
    data: bytes


Outbox = (
    HostSend
    | HostClose
    | HostHold
    | ReplicationDial
    | ReplicationSend
    | ReplicationClose
    | ReplicationHold
    | ConsoleSend
    | ControlSend
)
