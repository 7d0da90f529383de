"""Captures of healthy and of faulty pairs, and what changes them where people capture: taps, mirrors, queues,
snap lengths, clocks, strangers. For ``tests/tools/mutations.py`` and its test.
"""

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from link_wire import healthy_exchange

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S
from freezeframe.harness.core.link.ipheaders import HOSTILE, look
from freezeframe.harness.edge.evidencefile import CaptureInput
from freezeframe.harness.edge.pcapng import run_frames

GOLDEN: Final = Path(__file__).resolve().parents[1] / "golden"
DISORDER_NS: Final = 5 * NS_PER_MS
DISORDER_FRAMES: Final = 8
SILENCE_NS: Final = NS_PER_S
"""A loss shows when its direction goes on: within this time."""
DAYS_NS: Final = 2 * 86_400 * NS_PER_S


class Frame(NamedTuple):
    t_ns: int
    data: bytes
    length: int
    """On the wire."""


Frames = list[Frame]


@dataclass(frozen=True)
class Base:
    """One capture as it was taken."""

    name: str
    frames: tuple[Frame, ...]
    protocol: str
    port: int
    primary: str = ""
    secondary: str = ""
    fault: frozenset[str] = frozenset()
    """Events of which one must be hit; empty: healthy."""


@dataclass(frozen=True)
class Mutation:
    """One capture as it might have been taken elsewhere."""

    kind: str
    frames: Frames
    keeps_all: bool = False
    """Nothing is lost: what was seen before is seen."""
    must_say: tuple[str, ...] = ()
    """Words of which one must be said, whatever was counted."""
    ends: tuple[str, str] | None = None
    """Addresses named instead of the right ones."""
    step_no: int = 0
    """Number of the first frame after the clock was set."""
    begins_at: int = 0
    """Index of the first frame that is left: what lay before it cannot be missed."""
    without_fault: bool = False
    """What is wrong with a faulty one is no longer in it."""


# --- the captures -----------------------------------------------------------------------------------------
_FILES: Final = (
    ("field/healthy-base.pcap", "drbd", 7788, "10.99.0.1", "10.99.0.2", ()),
    ("field/healthy-base.pcap", "drbd", 7788, "", "", ()),
    ("field/service-port-58123-midstream.pcap", "drbd", 58123, "", "", ()),
    ("drbd9/drbd9-clean.pcap.gz", "drbd", 7788, "10.99.0.1", "10.99.0.2", ()),
    ("mirrors/iscsi-clean.pcap.gz", "iscsi", 3260, "10.99.0.1", "10.99.0.2", ()),
    ("mirrors/nvme-clean.pcap.gz", "nvme_tcp", 4420, "10.99.0.1", "10.99.0.2", ()),
    ("mirrors/nbd-clean.pcap.gz", "nbd", 10809, "10.99.0.1", "10.99.0.2", ()),
    ("field/ipv6-wrong-digest.pcap", "drbd", 7788, "fd00::a63:1", "fd00::a63:2", ("digest-mismatch",)),
    ("drbd9/drbd9-digest.pcap.gz", "drbd", 7788, "10.99.0.1", "10.99.0.2", ("digest-mismatch", "unacked-close")),
    ("drbd/small-failure.pcap", "drbd", 7788, "10.99.0.1", "10.99.0.2", ("unacked-close",)),
    ("mirrors/iscsi-ddgst-write.pcap.gz", "iscsi", 3260, "10.99.0.1", "10.99.0.2", ("digest-mismatch", "unacked-close")),
    ("mirrors/nvme-ddgst-write.pcap.gz", "nvme_tcp", 4420, "10.99.0.1", "10.99.0.2", ("digest-mismatch", "unacked-close")),
    ("mirrors/nvme-nak.pcap.gz", "nvme_tcp", 4420, "10.99.0.1", "10.99.0.2", ("neg-ack",)),
)  # fmt: skip
"""(file under tests/golden, protocol, port, addresses, events of which one must be hit)."""


@cache
def bases() -> tuple[Base, ...]:
    found = [
        Base(
            name, read_capture(GOLDEN / name), protocol, port, primary, secondary, frozenset(fault)
        )
        for name, protocol, port, primary, secondary, fault in _FILES
    ]
    for lost in ((), (9,), (3, 20)):
        frames = [
            Frame((number + number // 12 * 400) * NS_PER_MS, one, len(one))
            for number, one in enumerate(healthy_exchange(20, unanswered=lost), 1)
        ]
        found.append(
            Base(
                f"scripted{list(lost) if lost else ''}", tuple(frames), "drbd", 7788, "10.77.0.1", "10.77.0.2",
                frozenset({"missing-ack", "barrier-count"} if lost else ()),
            )
        )  # fmt: skip
    return tuple(found)


def read_capture(path: Path) -> tuple[Frame, ...]:
    return tuple(
        Frame(one.t_ns, bytes(one.data), max(one.original_length, len(one.data)))
        for run in CaptureInput(path).runs()
        for one in run_frames(run)
    )


# --- the changes ------------------------------------------------------------------------------------------
def _flow(frame: Frame) -> tuple[bytes, bytes] | None:
    """(addresses and ports in order of sending, addresses alone)."""
    view = memoryview(frame.data)
    located = look(view) if len(view) >= 54 else None
    if not isinstance(located, tuple) or located is HOSTILE:
        return None
    at, _, addresses = located
    return addresses + bytes(view[at : at + 4]), addresses


def _last_of_flows(frames: Sequence[Frame]) -> set[int]:
    """Indexes that no loss may touch: the last data and the last frame of each direction, also
    before it is silent for a long time."""
    last: dict[tuple[bytes, bool], int] = {}
    kept: set[int] = set()
    for index, one in enumerate(frames):
        flow = _flow(one)
        if flow is not None:
            for key in ((flow[0], False), (flow[0], len(one.data) > 80)):
                before = last.get(key)
                if before is not None and one.t_ns - frames[before].t_ns > SILENCE_NS:
                    kept.add(before)
                last[key] = index
    return kept | set(last.values())


def late_start(rnd: random.Random, base: Base) -> Mutation:
    """Of a faulty one, its fault is no longer shown when the capture begins behind it."""
    frames = list(base.frames)
    start = rnd.randrange(1, len(frames) * 4 // 5)
    return Mutation("late start", frames[start:], without_fault=bool(base.fault))


def holes(rnd: random.Random, base: Base) -> Mutation:
    frames, kept = list(base.frames), _last_of_flows(base.frames)
    lost: set[int] = set()
    for _ in range(rnd.randrange(1, 4)):
        at = rnd.randrange(len(frames))
        lost |= set(range(at, at + rnd.randrange(1, 11)))
    left = [at for at in range(len(frames)) if at not in lost - kept]
    return Mutation("holes", [frames[at] for at in left], begins_at=left[0])


def reordered(rnd: random.Random, base: Base) -> Mutation:
    frames, at = list(base.frames), 0
    while at < len(frames):
        size = rnd.randrange(1, DISORDER_FRAMES + 1)
        window = frames[at : at + size]
        while len(window) > 1 and window[-1].t_ns - window[0].t_ns > DISORDER_NS:
            window.pop()
        times = [one.t_ns for one in window]
        mixed = rnd.sample(window, len(window)) if rnd.random() < 0.3 else window
        frames[at : at + len(window)] = [
            one._replace(t_ns=t) for t, one in zip(times, mixed, strict=True)
        ]
        at += len(window)
    return Mutation("reordered", frames, keeps_all=True)


def duplicated(rnd: random.Random, base: Base) -> Mutation:
    """Each frame at most twice, the second one at once or a little later, as two taps give it."""
    frames = list(base.frames)
    for _ in range(rnd.randrange(1, 2 + len(frames) // 4)):
        at = rnd.randrange(len(frames))
        to = at + 1
        while to < len(frames) and to - at < DISORDER_FRAMES and rnd.random() < 0.6:
            if frames[to].t_ns - frames[at].t_ns > DISORDER_NS:
                break
            to += 1
        frames.insert(to, frames[at]._replace(t_ns=frames[to - 1].t_ns))
    return Mutation("duplicated", frames, keeps_all=True)


def _wrapped(one: Frame, data: bytes) -> Frame:
    return Frame(one.t_ns, data, one.length + len(data) - len(one.data))


def tagged(rnd: random.Random, base: Base) -> Mutation:
    tags = rnd.choice(
        [
            b"\x81\x00\x20\x05",
            b"\x88\xa8\x00\x07\x81\x00\x20\x05",
            b"\x81\x00\x00\x01\x81\x00\x00\x02",
        ]
    )
    which = rnd.choice(
        [lambda one: True, lambda one: rnd.random() < 0.5, lambda one: one.data[30] & 1]
    )
    frames = [
        _wrapped(one, one.data[:12] + tags + one.data[12:]) if which(one) else one
        for one in base.frames
    ]
    return Mutation("tagged", frames, keeps_all=True)


_OUTER: Final = bytes.fromhex("020000000009020000000008")
_MIRROR: Final = socket.inet_aton("192.0.2.8") + socket.inet_aton("192.0.2.9")


def _ipv4(protocol: int, body: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0)
    return _OUTER + b"\x08\x00" + head + _MIRROR + body


_LOOKED_THROUGH: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "GRE": lambda frame: _ipv4(47, b"\0\0\x65\x58" + frame),
    "ERSPAN I": lambda frame: _ipv4(47, b"\0\0\x88\xbe" + frame),
    "ERSPAN II": lambda frame: _ipv4(47, b"\x10\0\x88\xbe\0\0\0\1" + bytes(8) + frame),
    "ERSPAN III": lambda frame: _ipv4(47, b"\x10\0\x22\xeb\0\0\0\1" + bytes(12) + frame),
}
_NAMED: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "VXLAN": lambda frame: _ipv4(17, struct.pack(">HHHH", 40000, 4789, 16 + len(frame), 0) + b"\x08" + bytes(7) + frame),
    "GENEVE": lambda frame: _ipv4(17, struct.pack(">HHHH", 40000, 6081, 16 + len(frame), 0) + bytes(8) + frame),
    "MPLS": lambda frame: frame[:12] + b"\x88\x47\x00\x01\x01\x40" + frame[14:],
    "PPPoE": lambda frame: frame[:12] + b"\x88\x64\x11\x00\x00\x01\x00\x20\x00\x21" + frame[14:],
    "MACsec": lambda frame: frame[:12] + b"\x88\xe5" + bytes(14) + frame[12:],
    "IPsec": lambda frame: _ipv4(50, bytes(16) + frame),
    "IP in IP": lambda frame: _ipv4(4, frame[14:]),
    "more than two VLAN tags": lambda frame: frame[:12] + b"\x81\x00\x00\x01" * 3 + frame[12:],
}  # fmt: skip


def in_a_tunnel(rnd: random.Random, base: Base) -> Mutation:
    """Of the mirror that carries the frames; a mirror cuts none."""
    name = rnd.choice(sorted(_LOOKED_THROUGH))
    wrap = _LOOKED_THROUGH[name]
    return Mutation(
        "in a tunnel", [_wrapped(one, wrap(one.data)) for one in base.frames], keeps_all=True
    )


def hidden(rnd: random.Random, base: Base) -> Mutation:
    """In a tunnel that is not looked through: all frames, one direction, or from some time on."""
    name = rnd.choice(sorted(_NAMED))
    wrap, from_no = _NAMED[name], rnd.choice([0, 0, rnd.randrange(len(base.frames) * 3 // 4)])
    source = rnd.choice([None, None, *_sources(base)])
    frames, count = [], 0
    for number, one in enumerate(base.frames):
        flow = _flow(one)
        is_hidden = number >= from_no and (
            source is None or (flow is not None and _source(flow[1]) == source)
        )
        frames.append(_wrapped(one, wrap(one.data)) if is_hidden else one)
        count += is_hidden
    return Mutation("hidden", frames, must_say=(name,) if count > len(frames) // 8 else ())


def _source(addresses: bytes) -> bytes:
    return addresses[: len(addresses) // 2]


def _sources(base: Base) -> list[bytes]:
    """Addresses that sent frames of the service port."""
    found = Counter(_source(flow[1]) for one in base.frames if (flow := _flow(one)) is not None)
    return [address for address, _ in found.most_common(2)]


def half_mirror(rnd: random.Random, base: Base) -> Mutation:
    """One direction is missing, from the begin or from some time on."""
    source = rnd.choice(_sources(base))
    from_no = rnd.choice([0, rnd.randrange(len(base.frames) * 3 // 4)])
    frames = [
        one
        for number, one in enumerate(base.frames)
        if number < from_no or (flow := _flow(one)) is None or _source(flow[1]) != source
    ]
    return Mutation("half mirror" if not from_no else "direction vanishes", frames)


def strangers(rnd: random.Random, base: Base) -> Mutation:
    """Somebody else speaks on the port: a health check, TLS, noise, or a pair of its own."""
    frames = list(base.frames)
    size = 16 if _sources(base) and len(_sources(base)[0]) == 16 else 4
    others = [
        bytes([*bytes(size - 4), 10, 9, 8, 7])[-size:],
        bytes([*bytes(size - 4), 10, 9, 8, 6])[-size:],
    ]
    kind = rnd.choice(["http", "tls", "noise", "pair"])
    if kind == "pair":
        told = dict(zip(_sources(base), others, strict=False))
        copies = []
        for one in frames:
            flow = _flow(one)
            data = one.data
            if flow is not None and set(_halves(flow[1])) <= told.keys():
                new = b"".join(told[half] for half in _halves(flow[1]))
                data = unsummed(data.replace(flow[1], new, 1))
            copies.append(one._replace(data=data, t_ns=one.t_ns + 1000))
        at = rnd.randrange(len(copies) // 2)
        merged = sorted([*frames, *copies[at:]], key=lambda one: one.t_ns)
        return Mutation(
            "strangers", merged, must_say=("10.9.8.7", "::a09:807") if base.primary else ()
        )
    body = {
        "http": b"GET / HTTP/1.0\r\n\r\n",
        "tls": b"\x16\x03\x01\x02\x00" + rnd.randbytes(40),
    }.get(kind, rnd.randbytes(rnd.randrange(1, 900)))
    server = rnd.choice(_sources(base))
    added, seq = [], rnd.randrange(1 << 32)
    start = rnd.randrange(len(frames))
    for flags, data, is_back in (
        (2, b"", False),
        (18, b"", True),
        (16, b"", False),
        (24, body, False),
        (16, b"", True),
        (20, b"", False),
    ):
        there, back = (server, others[0]) if is_back else (others[0], server)
        ports = (base.port, 51515) if is_back else (51515, base.port)
        now = (777 if is_back else seq, seq if is_back else 777)
        added.append(_segment(there, back, ports, now, flags, data))
        if not is_back:
            seq += len(data) + (flags & 2 > 0)
    for number, data in enumerate(added):
        at = min(start + 2 * number, len(frames))
        t_ns = frames[min(at, len(frames) - 1)].t_ns
        frames.insert(at, Frame(t_ns, data, len(data)))
    return Mutation(
        "strangers",
        frames,
        keeps_all=True,
        must_say=("10.9.8.7", "::a09:807") if base.primary else (),
    )


def _halves(addresses: bytes) -> tuple[bytes, bytes]:
    return addresses[: len(addresses) // 2], addresses[len(addresses) // 2 :]


def carried(frame: Frame) -> tuple[tuple[int, int], int | None]:
    """Source and destination port, and where the bytes that TCP carries begin; None: there are none."""
    located = look(memoryview(frame.data))
    if not isinstance(located, tuple) or located is HOSTILE:
        return (0, 0), None
    at, end, _ = located
    source, destination = struct.unpack_from(">HH", frame.data, at)
    payload = at + (frame.data[at + 12] >> 4) * 4
    return (source, destination), payload if payload < end else None


def unsummed(frame: bytes) -> bytes:
    """With the checksum field as a sender with checksum offload leaves it: changed addresses have
    another one."""
    view = memoryview(frame)
    located = look(view)
    assert isinstance(located, tuple)
    at, end, addresses = located
    total = sum(struct.unpack(f">{len(addresses) // 2}H", addresses)) + 6 + (end - at)
    total = (total & 0xFFFF) + (total >> 16)
    return frame[: at + 16] + struct.pack(">H", (total & 0xFFFF) + (total >> 16)) + frame[at + 18 :]


def _segment(
    source: bytes,
    destination: bytes,
    ports: tuple[int, int],
    at: tuple[int, int],
    flags: int,
    data: bytes,
) -> bytes:
    tcp = (
        struct.pack(">HHIIBBHHH", *ports, at[0] % 2**32, at[1] % 2**32, 5 << 4, flags, 65535, 0, 0)
        + data
    )
    if len(source) == 16:
        head, kind = struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64), b"\x86\xdd"
    else:
        head, kind = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0), b"\x08\x00"
    return unsummed(_OUTER + kind + head + source + destination + tcp)


def clock_stepped(rnd: random.Random, base: Base) -> Mutation:
    """The clock that times the frames is set, back or forth, by 1 ms to a day."""
    step = int(10 ** rnd.uniform(6, 14)) * rnd.choice([-1, 1])
    if not _has_timestamps(base):  # then a step forth is a silence
        step = min(step, NS_PER_S // 4)
    at = rnd.randrange(1, len(base.frames))
    frames = [
        one._replace(t_ns=one.t_ns + DAYS_NS + (step if number >= at else 0))
        for number, one in enumerate(base.frames)
    ]
    return Mutation("clock stepped", frames, step_no=at + 1)


@cache
def _timestamped(name: str) -> bool:
    frames = [one for one in read_capture(GOLDEN / name) if _flow(one) is not None]
    stamped = sum(b"\x01\x01\x08\x0a" in one.data[54:90] for one in frames)
    return stamped * 10 > len(frames) * 9


def _has_timestamps(base: Base) -> bool:
    """TCP's, which show a clock of the sender."""
    return not base.name.startswith("scripted") and _timestamped(base.name)


def cut(rnd: random.Random, base: Base) -> Mutation:
    """A snap length."""
    length = rnd.choice([54, 60, 66, 68, 96, 128, 200, 262, 576])
    frames = [one._replace(data=one.data[:length]) for one in base.frames]
    is_cut = any(len(one.data) > length for one in base.frames)
    return Mutation("cut frames", frames, must_say=("cut short",) if is_cut else ())


def exchanged(rnd: random.Random, base: Base) -> Mutation:
    named = (base.secondary, base.primary)
    return Mutation(
        "exchanged", list(base.frames), must_say=("exchanged",) if base.primary else (), ends=named
    )


KINDS: Final = (
    late_start, holes, reordered, duplicated, tagged, in_a_tunnel, hidden, half_mirror, strangers, clock_stepped, cut,
    exchanged,
)  # fmt: skip
