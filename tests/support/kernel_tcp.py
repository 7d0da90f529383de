"""Linux's own TCP as an oracle: a socket in a network namespace of its own, whose peer is a script.

The peer sits on a TUN device: what it writes is received by the kernel before ``write`` returns,
checksums verified, and what the kernel answers can be read at once, so that the record of both
directions has the order in which the kernel saw them.

The record is a packet socket's on that device: what a timer of the kernel sends between two steps of a
script stands where it belongs, however late the script reads it. The socket also holds a reference to
each segment. That keeps Linux from joining
segments in its out-of-order queue, which it does or does not by the memory that a driver gave them:
the one rule of that queue that the wire does not show.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freezeframe.harness.edge.netns import Namespace

PEER, KERNEL = "10.88.0.1", "10.88.0.2"
PORT = 7788
CLAMPS = (0, 1024, 4096)
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
TCP_CLOSE = 7
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
_SO_RCVBUFFORCE, _TCP_WINDOW_CLAMP, _TCP_QUICKACK, _TCP_INFO = 33, 10, 12, 11
_ENDS = socket.inet_aton(PEER) + socket.inet_aton(KERNEL)
_ETHERNET = bytes(12) + b"\x08\x00"
_MEMORY = (
    "PruneCalled",
    "RcvPruned",
    "OfoPruned",
    "TCPRcvCollapsed",
    "TCPBacklogDrop",
    "TCPOFODrop",
    "TCPRcvQDrop",
)
"""Counters of /proc/net/netstat: for want of memory the kernel dropped what it had, or did not take a
segment. The wire does not show that; how much memory there is, other processes decide too."""


def ones_sum(data: bytes) -> int:
    """Of 16-bit words, the slow and obvious way."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for (word,) in struct.iter_unpack(">H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packet(
    ports: tuple[int, int], seq: int, ack: int, flags: int, data: bytes = b"", *,
    window: int = 65535, options: bytes = b"", spoil: int = 0,
) -> bytes:  # fmt: skip
    """An IPv4 packet from the peer. ``spoil``: what is added to a right checksum. One more where that gives
    another right one (of the two zeroes), or by chance what a sender with checksum offload leaves: a
    follower has to believe that, and this kernel does not. Once in 65,536 frames it was there."""
    options += bytes(-len(options) % 4)
    head = struct.pack(
        ">HHIIBBHHH", *ports, seq % 2**32, ack % 2**32, (20 + len(options)) // 4 << 4, flags, window, 0, 0
    )  # fmt: skip
    tcp = head + options + data
    pseudo = ones_sum(_ENDS + struct.pack(">HH", 6, len(tcp)))
    right = ones_sum(_ENDS + struct.pack(">HH", 6, len(tcp)) + tcp) ^ 0xFFFF
    field = (right + spoil) % 65536
    while spoil and field % 0xFFFF in (right % 0xFFFF, pseudo % 0xFFFF):
        field = (field + 1) % 65536
    tcp = tcp[:16] + struct.pack(">H", field) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + _ENDS
    return ip[:10] + struct.pack(">H", ones_sum(ip) ^ 0xFFFF) + ip[12:] + tcp


@dataclass
class ScriptOutcome:
    """What a script did to a connection, and the record of it."""

    frames: list[bytes] = field(default_factory=list)
    """Ethernet frames of both directions, in order."""
    data: bytes = b""
    """That the application read."""
    lived: bool = True
    steps: list[str] = field(default_factory=list)
    short_of_memory: bool = False
    """The kernel dropped what the wire says that it has: nothing to hold a follower against."""


class KernelTcp:
    """``run`` scripts; ``close`` at the end. Needs the capability to make namespaces."""

    def __init__(self) -> None:
        self._namespace = Namespace.create()
        self._namespace.run(self._set_up)
        self._next_port = 20000

    def _set_up(self) -> None:
        from pyroute2 import IPRoute

        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.tun, _TUNSETIFF, struct.pack("16sH22x", b"oracle0", _IFF_TUN_NO_PI))
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname="oracle0")
            route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
            route.addr("add", index=index, address=KERNEL, prefixlen=24)
            Path("/proc/sys/net/ipv6/conf/oracle0/disable_ipv6").write_text("1")
            route.link("set", index=index, state="up")
        settings = {"tcp_invalid_ratelimit": "0", "tcp_syncookies": "0", "tcp_timestamps": "1"}
        for name, value in settings.items():
            Path("/proc/sys/net/ipv4", name).write_text(value)
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._tap.bind(("oracle0", 3))
        self._tap.setblocking(False)
        self._netstat = os.open("/proc/net/netstat", os.O_RDONLY | os.O_CLOEXEC)  # this namespace's
        self._listeners = {clamp: self._listen(clamp) for clamp in CLAMPS}

    def _listen(self, clamp: int) -> socket.socket:
        made = socket.socket()
        if clamp:
            made.setsockopt(socket.IPPROTO_TCP, _TCP_WINDOW_CLAMP, clamp)
        made.bind((KERNEL, PORT + clamp))
        made.listen(1)
        made.setblocking(False)
        return made

    def close(self) -> None:
        for one in (self._tap, *self._listeners.values()):
            one.close()
        for descriptor in (self._netstat, self.tun):
            os.close(descriptor)
        self._namespace.close()

    def accept(self, clamp: int) -> socket.socket:
        """The connection that was opened to port ``PORT + clamp``, whose receive window is at most
        ``clamp`` bytes; 0: as Linux likes."""
        accepted, _ = self._listeners[clamp].accept()
        accepted.setblocking(False)
        return accepted

    def port(self) -> int:
        self._next_port = 20000 + (self._next_port - 20000 + 1) % 40000
        return self._next_port

    def short_of_memory(self) -> int:
        """How often the kernel was, by its counters."""
        names, values = os.pread(self._netstat, 1 << 16, 0).split(b"\n")[:2]
        counters = dict(zip(names.decode().split()[1:], map(int, values.split()[1:]), strict=True))
        return sum(counters.get(name, 0) for name in _MEMORY)

    def recorded(self, port: int) -> list[bytes]:
        """Ethernet frames of the connection from ``port``, in order; nothing is kept."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while raw := self._tap.recv(1 << 16):
                if raw[0] >> 4 == 4 and raw[9] == 6 and port in struct.unpack_from(">HH", raw, 20):
                    frames.append(_ETHERNET + raw)
        return frames


@dataclass
class Talk:
    """One connection under a script: the peer's side of it."""

    kernel: KernelTcp
    rnd: random.Random
    out: ScriptOutcome = field(default_factory=ScriptOutcome)
    nxt: int = 0
    """What the kernel expects next, as it said."""
    edge: int = 0
    sack_end: int = 0
    sent: int = 0
    """By the kernel: its next sequence number."""
    answers: int = 0
    """Frames of the kernel that were read."""

    def __post_init__(self) -> None:
        rnd = self.rnd
        self.port = self.kernel.port()
        self.isn = rnd.choice([rnd.randrange(2**32), 2**32 - rnd.randrange(1, 200), 2**31 - 50])
        self.stamps = rnd.random() < 0.6
        self.clock = rnd.choice([1000, 2**31 - 20, 2**32 - 20, rnd.randrange(1, 2**32)])
        self.echo = 0
        self.scale = 0
        self.app: socket.socket | None = None
        self.is_quick = rnd.random() < 0.75
        self.reads = rnd.choice(["each", "some", "end"])
        self.clamp = rnd.choice([0, 1024, 1024, 4096])
        self.ports = self.port, PORT + self.clamp

    # --- both ends ---
    def inject(self, raw: bytes) -> None:
        os.write(self.kernel.tun, raw)
        if self.app is not None and self.is_quick:
            with contextlib.suppress(OSError):
                self.app.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)
        self.collect()

    def collect(self) -> None:
        while True:
            try:
                raw = os.read(self.kernel.tun, 65536)
            except BlockingIOError:
                return
            if raw[0] >> 4 != 4 or raw[9] != 6 or struct.unpack_from(">H", raw, 22)[0] != self.port:
                continue
            self.answers += 1
            self._note(raw)

    def _note(self, raw: bytes) -> None:
        seq, ack, offset, flags, window = struct.unpack_from(">IIBBH", raw, 24)
        if flags & RST or not flags & ACK:
            return
        options = raw[40 : 20 + (offset >> 4) * 4]
        length = len(raw) - 20 - (offset >> 4) * 4
        self.sent = (seq + length + bool(flags & (SYN | FIN))) % 2**32
        self.nxt, self.sack_end, at = ack, 0, 0
        if flags & SYN:
            self.scale = 0
        while at < len(options) and options[at]:
            kind, size = options[at], options[at + 1] if options[at] > 1 else 1
            if kind == 3 and flags & SYN:
                self.scale = options[at + 2]
            elif kind == 5:
                ends = struct.unpack_from(f">{(size - 2) // 4}I", options, at + 2)[1::2]
                self.sack_end = max(ends, key=lambda end: (end - ack + 2**31) % 2**32)
            elif kind == 8:
                self.echo = struct.unpack_from(">I", options, at + 2)[0]
            at += size
        self.edge = (ack + (window if flags & SYN else window << self.scale)) % 2**32

    def read(self) -> None:
        assert self.app is not None
        try:
            while piece := self.app.recv(65536):
                self.out.data += piece
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.out.lived = False

    def send(
        self, at: int, data: bytes = b"", flags: int = ACK, *, ack: int | None = None,
        stamp: int | None = None, options: bytes | None = None, spoil: int = 0,
    ) -> None:  # fmt: skip
        """A segment at a sequence number."""
        self.clock += self.rnd.randrange(3)
        if options is None:
            tsval = self.clock if stamp is None else stamp
            options = (
                b"\1\1\x08\x0a" + struct.pack(">II", tsval % 2**32, self.echo)
                if self.stamps
                else b""
            )
        told = self.sent if ack is None else ack
        self.inject(packet(self.ports, at, told, flags, data, options=options, spoil=spoil))

    def open(self, serve: bytes) -> None:
        rnd = self.rnd
        options = b"\x02\x04\x05\xb4"
        if self.stamps:
            options += b"\1\1\x08\x0a" + struct.pack(">II", self.clock % 2**32, 0)
        if rnd.random() < 0.7:
            options += b"\x04\x02\1\1"
        if rnd.random() < 0.7:
            options += bytes((1, 3, 3, rnd.randrange(0, 8)))
        self.inject(packet(self.ports, self.isn, 0, SYN, options=options))
        self.send(self.isn + 1)
        self.app = self.kernel.accept(self.clamp)
        if serve:
            self.app.send(serve)
            self.collect()
            if rnd.random() < 0.7:
                self.send(self.isn + 1)

    @property
    def is_alive(self) -> bool:
        assert self.app is not None
        return self.app.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] != TCP_CLOSE

    def finish(self) -> ScriptOutcome:
        app, out = self.app, self.out
        assert app is not None
        out.lived = self.is_alive
        self.read()
        if out.lived:
            before = self.answers
            self.send(self.nxt - 1, stamp=self.clock)  # an old one: the kernel says where it is
            while self.answers == before:
                assert select.select([self.kernel.tun], [], [], 20)[0], "the kernel did not answer"
                self.collect()
        out.frames = self.kernel.recorded(self.port)
        app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        app.close()
        self.collect()
        self.kernel.recorded(self.port)  # the end of the test, not of the script
        return out


Step = Callable[[Talk], Any]


def _data(talk: Talk, most: int = 40) -> bytes:
    return talk.rnd.randbytes(talk.rnd.randrange(1, most))


def _early(talk: Talk) -> int:
    """A position a little ahead; often one where something may wait already."""
    return talk.nxt + talk.rnd.randrange(1, 60)


def in_order(talk: Talk) -> None:
    talk.send(talk.nxt, _data(talk), ACK | talk.rnd.choice([0, PSH]))


def early(talk: Talk) -> None:
    talk.send(_early(talk), _data(talk))


def repeated(talk: Talk) -> None:
    back = talk.rnd.randrange(1, 60)
    talk.send(talk.nxt - back, talk.rnd.randbytes(talk.rnd.randrange(1, back + 1)))


def overlapping(talk: Talk) -> None:
    back = talk.rnd.randrange(1, 30)
    talk.send(talk.nxt - back, talk.rnd.randbytes(back + talk.rnd.randrange(1, 30)))


def spoilt(talk: Talk) -> None:
    """A wrong checksum; often the right segment follows, with other bytes."""
    at = talk.rnd.choice([talk.nxt, talk.nxt, _early(talk)])
    flags = talk.rnd.choice([ACK, ACK, ACK, ACK | FIN, RST | ACK, RST])
    spoil = talk.rnd.randrange(1, 60000)
    data = b"" if flags & RST else _data(talk)
    talk.send(at, data, flags, spoil=spoil)
    if data and talk.rnd.random() < 0.6:
        talk.send(at, talk.rnd.randbytes(len(data)))


def reset_exact(talk: Talk) -> None:
    talk.send(talk.nxt, b"", talk.rnd.choice([RST, RST | ACK]), options=b"")


def reset_within(talk: Talk) -> None:
    room = max(2, (talk.edge - talk.nxt) % 2**32)
    at = talk.nxt + talk.rnd.choice([1, 2, talk.rnd.randrange(1, 60), talk.rnd.randrange(1, room)])
    if at % 2**32 == talk.sack_end:
        at += 1
    talk.send(at, b"", talk.rnd.choice([RST, RST | ACK]))


def reset_outside(talk: Talk) -> None:
    far = talk.rnd.choice([-1, -5, -(2**30), 2**30, 2**31 - 5, (talk.edge - talk.nxt) % 2**32 + 1])
    talk.send(talk.nxt + far, b"", talk.rnd.choice([RST, RST | ACK]))


def reset_at_sack(talk: Talk) -> None:
    talk.send(talk.sack_end or talk.nxt + 7, b"", RST | ACK)


def syn_inside(talk: Talk) -> None:
    at = talk.rnd.choice(
        [talk.nxt, talk.nxt - 1, talk.nxt + 9, talk.rnd.randrange(2**32), talk.isn]
    )
    talk.send(at, b"", talk.rnd.choice([SYN, SYN, SYN | ACK]))


def finishing(talk: Talk) -> None:
    at = talk.rnd.choice([talk.nxt, talk.nxt, _early(talk)])
    talk.send(at, talk.rnd.choice([b"", _data(talk)]), FIN | ACK)


def old_stamp(talk: Talk) -> None:
    at = talk.rnd.choice([talk.nxt, _early(talk)])
    talk.send(at, _data(talk), stamp=talk.clock - talk.rnd.choice([1, 2, 3, 10, 1000, 2**30]))


def no_stamp(talk: Talk) -> None:
    talk.send(talk.rnd.choice([talk.nxt, _early(talk)]), _data(talk), options=b"")


def beyond(talk: Talk) -> None:
    """Outside of the window; with quick acknowledgements also across its edge."""
    at = talk.edge + talk.rnd.choice([0, 1, 50, 5000, 2**29])
    data = _data(talk)
    if talk.is_quick and talk.rnd.random() < 0.5:
        at = talk.edge - talk.rnd.randrange(1, len(data) + 1)
    talk.send(at, data)


def fill_window(talk: Talk) -> None:
    room = (talk.edge - talk.nxt) % 2**32
    if room < 8192:
        while room > 0:
            piece = min(room, 700)
            talk.send(talk.nxt, talk.rnd.randbytes(piece))
            left = (talk.edge - talk.nxt) % 2**32
            if left >= room or left > 8192:
                return
            room = left
        talk.send(talk.nxt, _data(talk))


def beyond_first(talk: Talk) -> None:
    """Beyond a small window, then all that lies before; and once the application has read, other
    bytes at that place."""
    at, size = talk.edge, talk.rnd.randrange(1, 40)
    if not 0 < (at - talk.nxt) % 2**32 < 8192:
        return
    talk.send(at, talk.rnd.randbytes(size))
    while talk.nxt != at:
        before = talk.nxt
        talk.send(before, talk.rnd.randbytes(min((at - before) % 2**32, 700)))
        if talk.nxt == before:
            return  # its acknowledgement is delayed
    talk.read()
    talk.collect()
    talk.send(at, talk.rnd.randbytes(size))


def ack_ahead(talk: Talk) -> None:
    at = talk.rnd.choice([talk.nxt, _early(talk)])
    talk.send(at, _data(talk), ack=talk.sent + talk.rnd.choice([1, 2, 1000, 2**29]))


def ack_too_old(talk: Talk) -> None:
    talk.send(_early(talk), _data(talk), ack=talk.sent - talk.rnd.choice([2**17, 2**29, 2**31 - 9]))


def no_ack(talk: Talk) -> None:
    talk.send(talk.nxt, _data(talk), talk.rnd.choice([0, PSH, FIN]))


def keep_alive(talk: Talk) -> None:
    talk.send(talk.nxt - 1, talk.rnd.choice([b"", b"\0"]))


def pure_ack(talk: Talk) -> None:
    talk.send(talk.nxt)


STEPS: dict[Step, int] = {
    in_order: 30, early: 22, repeated: 6, overlapping: 8, spoilt: 9, reset_exact: 1, reset_within: 5,
    reset_outside: 4, reset_at_sack: 1, syn_inside: 5, finishing: 2, old_stamp: 6, no_stamp: 2, beyond: 6,
    beyond_first: 4, fill_window: 3, ack_ahead: 3, ack_too_old: 2, no_ack: 2, keep_alive: 3, pure_ack: 4,
}  # fmt: skip


def run_script(kernel: KernelTcp, seed: int) -> ScriptOutcome:
    """Inject the script of this seed."""
    rnd = random.Random(seed)
    before = kernel.short_of_memory()
    talk = Talk(kernel, rnd)
    talk.open(rnd.choice([b"", b"", rnd.randbytes(rnd.randrange(1, 100))]))
    steps = rnd.choices(list(STEPS), list(STEPS.values()), k=rnd.randrange(4, 26))
    for step in steps:
        talk.out.steps.append(step.__name__)
        step(talk)
        if not talk.is_alive:
            break  # what comes now is no longer this connection's
        if talk.reads == "each" or (talk.reads == "some" and rnd.random() < 0.3):
            talk.read()
            talk.collect()
    outcome = talk.finish()
    outcome.short_of_memory = kernel.short_of_memory() != before
    return outcome
