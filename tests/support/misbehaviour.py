"""What a replication peer can do wrong, as acts that work on any ``firmware_sim`` peer: in virtual
time against another, on real sockets against a real node. What the peer's victim prints is then
compared."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from drbd_world import MS, Hooks, S

from freezeframe.firmware_sim.drbd_codec import encode, encode_data_head
from freezeframe.firmware_sim.drbd_peer import AckPlan
from freezeframe.harness.wire.drbd import SECTOR_BYTES, Cmd

WRITE_BYTES = 4096
SIZE_BYTES = 8 << 20
SMALLER_BYTES = 4 << 20
VICTIM: dict[str, Any] = {
    "timeout_ns": 2 * S, "ko_count": 2, "ping_interval_ns": 2 * S, "ping_timeout_ns": 500 * MS,
    "connect_interval_ns": 1 * S,
}  # fmt: skip
"""Timeouts as the rig's nodes have them."""
PATIENT: dict[str, Any] = {"timeout_ns": 60 * S, "ko_count": 9, "ping_timeout_ns": 30 * S}
"""The one that misbehaves never loses patience first."""


class Misbehaving(Hooks):
    """From ``is_armed`` on, one fault at the next write that it can be made at."""

    def __init__(self, **what: Any) -> None:
        self.what = what
        self.is_armed = False

    def _take(self, name: str) -> Any:
        return self.what.pop(name, None) if self.is_armed else None

    def sent_data(self, write_no: int, data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:] if self._take("flip") else data

    def ack(self, write_no: int) -> AckPlan:
        return AckPlan(self._take("ack") or "ack", 0)

    def barrier_count(self, count: int) -> int:
        return count + (self._take("count") or 0)

    def stall_ns(self, write_no: int) -> int:
        return self._take("stall") or 0


@dataclass
class Case:
    """``victim``: the role of who suffers. ``act``: what the other one's peer does; ``writes``:
    that the primary's host writes afterwards, each WRITE_BYTES. ``end``: the victim's line that
    ends the case."""

    name: str
    victim: Literal["primary", "secondary"]
    act: Callable[[Any], None] = lambda peer: None
    hooks: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """Of who misbehaves, from the next connection on: the case is what the handshake says to it."""
    smaller_bytes: int = 0
    uuids: Callable[[list[int]], list[int]] | None = None
    """What it says of its generations at the next connection; takes those of the last."""
    writes: int = 0
    closes: bool = False
    is_mute: bool = False
    """It hears the parameters of its victim and says nothing to them."""
    rules: set[str] = field(default_factory=set)
    """Of bench_configs/rules/drbd.toml: which of them see what the victim prints."""
    end: str = "conn( Unconnected -> WFConnection )"


def mute(peer: Any) -> None:
    """From the parameters on: its victim is to say all that it has to say before anybody closes."""
    handshake = peer._handshake
    handshake.protocol = handshake.sizes = handshake.uuids = handshake.state = lambda *_: None


def _past_end(peer: Any) -> None:
    link, data = peer._link, bytes(WRITE_BYTES)
    digest = link.digest(data)
    head = encode_data_head(
        link.agreed_version, Cmd.DATA, link.sectors, bytes(8), 1, 0x102, len(digest) + len(data)
    )
    link.write(link.data_socket, head + digest, data)


def _garbage(peer: Any) -> None:
    peer._link.write(peer._link.data_socket, b"\xde\xad\xbe\xef" * 16)


def _unexpected(peer: Any) -> None:
    link = peer._link
    link.write(
        link.data_socket,
        encode(link.agreed_version, Cmd.UNPLUG_REMOTE).replace(b"\0\7", b"\0\5", 1),
    )


def _deaf_to_pings(peer: Any) -> None:
    peer._handlers[Cmd.PING] = lambda packet: None


def _unknown_ack(peer: Any) -> None:
    send = peer._secondary._send_ack

    def other(command: Cmd, row: list[Any], *rest: Any) -> None:
        known = row[4]
        row[4] = bytes([known[0] ^ 0x40]) + known[1:]
        send(command, row, *rest)
        row[4] = known

    peer._secondary._send_ack = other


def _wrong_barrier_number(peer: Any) -> None:
    link, send = peer._link, peer._link.send

    def other(command: Cmd, *fields: Any, **rest: Any) -> None:
        if command == Cmd.BARRIER_ACK:
            fields = (bytes([fields[0][0] ^ 0x40]) + fields[0][1:], *fields[1:])
        send(command, *fields, **rest)

    link.send = other


GIVEN_UP = "Terminating drbd_r_r0"
CASES = [
    Case(
        "bad digest",
        "secondary",
        rules={"digest-failed", "receive-error", "protocol-error"},
        hooks={"flip": True},
        writes=1,
    ),
    Case(
        "write past the end",
        "secondary",
        rules={"beyond-end", "receive-error", "protocol-error"},
        act=_past_end,
    ),
    Case("garbage", "secondary", rules={"wrong-packet", "protocol-error"}, act=_garbage),
    Case(
        "a packet that has no handler",
        "secondary",
        rules={"wrong-packet", "protocol-error"},
        act=_unexpected,
    ),
    Case("peer closes", "secondary", closes=True),
    Case(
        "algorithm mismatch",
        "secondary",
        rules={"receive-error"},
        config={"integrity_alg": "md5"},
        is_mute=True,
        end=GIVEN_UP,
    ),
    Case(
        "disk too small",
        "secondary",
        rules={"receive-error"},
        smaller_bytes=SMALLER_BYTES,
        is_mute=True,
        end=GIVEN_UP,
    ),
    Case(
        "unrelated data",
        "secondary",
        rules={"unrelated-data", "receive-error"},
        uuids=lambda _: [0x5EED << 16, 0, 0, 0],
        is_mute=True,
        end=GIVEN_UP,
    ),
    Case(
        "split brain",
        "primary",
        rules={"split-brain", "receive-error"},
        uuids=lambda last: [0x5EED << 16, last[0] & ~1, 0, 0],
        is_mute=True,
        end=GIVEN_UP,
    ),
    Case("NEG_ACK", "primary", hooks={"ack": "neg"}, writes=2, end=""),
    Case("unknown ack", "primary", rules={"unknown-request"}, act=_unknown_ack, writes=1),
    Case("repeated ack", "primary", hooks={"ack": "repeated"}, writes=1, end=""),
    Case(
        "wrong barrier count",
        "primary",
        rules={"bad-barrier-ack", "protocol-error"},
        hooks={"count": 1},
        writes=2,
    ),
    Case(
        "wrong barrier number",
        "primary",
        rules={"bad-barrier-ack", "protocol-error"},
        act=_wrong_barrier_number,
        writes=2,
    ),
    Case(
        "no write ack",
        "primary",
        rules={"remote-timeout", "connection-timeout"},
        hooks={"ack": "lost"},
        writes=1,
    ),
    Case("no ping ack", "primary", rules={"ping-timeout"}, act=_deaf_to_pings),
    Case(
        "data socket not drained",
        "primary",
        rules={"remote-timeout", "connection-timeout"},
        hooks={"stall": 30 * S},
        writes=2000,
    ),
    Case("peer closes", "primary", closes=True),
]

_CHANGES = (
    (re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\] "), ""),
    (re.compile(r"0x[0-9a-fA-F]+"), "X"),
    (re.compile(r"\b[0-9A-F]{16}\b"), "U"),
    (re.compile(r"\[drbd_\w+/\d+\]"), "[T]"),
    (re.compile(r"\d+"), "N"),
)


def normalised(line: str) -> str:
    """Without times, and numbers as letters, except those that say by which rule it was decided."""
    text = _CHANGES[0][0].sub("", line).strip()
    if "uuid_compare()" in text:
        return text
    for pattern, letter in _CHANGES:
        text = pattern.sub(letter, text)
    return text


assert WRITE_BYTES % SECTOR_BYTES == 0
