"""What the replication peer needs from its surroundings, and what it gives to them."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from freezeframe.firmware_sim.drbd_metadata import Metadata
from freezeframe.harness.wire.drbd import PING_INTERVAL_S, PROTOCOL_MAX, Conn, Feature

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
PROTOCOL_LOWEST: Final = 95
"""Oldest version that this firmware speaks."""


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    dial: bool
    """This side connects both sockets, data first; the other only listens."""
    resource: str = "r0"
    """Name in the log."""
    protocol_min: int = PROTOCOL_LOWEST
    protocol_max: int = PROTOCOL_MAX
    features: int = Feature.TRIM | Feature.WSAME
    """Offered. WZEROES never together with an integrity algorithm (see Feature)."""
    integrity_alg: str = "crc32c"
    """Kernel name of the digest over replicated data; "" for none. Must be the peer's too."""
    shared_secret: bytes = b""
    cram_hmac_alg: str = ""
    """Both set: the peers authenticate each other with HMAC(cram_hmac_alg, shared_secret)."""
    discard_my_data: bool = False
    """The operator's answer to a split brain: this side becomes the target."""
    timeout_ns: int = 2 * NS_PER_S
    ko_count: int = 3
    """A write or barrier that is unanswered for ``timeout_ns * ko_count`` drops the link;
    ``ko_count`` 0 = never. A node's defaults, 6 s and 7, would hold a host for 42 s."""
    ping_interval_ns: int = int(PING_INTERVAL_S * NS_PER_S)
    ping_timeout_ns: int = 2 * NS_PER_S
    """A node waits 0.5 s; a process on a busy machine may be kept waiting that long."""
    connect_interval_ns: int = 300 * NS_PER_MS
    """Delay before the next try to connect; a real node takes 10 s."""
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    """Source of new UUIDs and challenges; must differ between the two sides."""

    def __post_init__(self) -> None:
        if not PROTOCOL_LOWEST <= self.protocol_min <= self.protocol_max <= PROTOCOL_MAX:
            raise ValueError(f"protocol versions {self.protocol_min}..{self.protocol_max}")
        if self.integrity_alg and self.features & Feature.WZEROES:
            raise ValueError("WZEROES together with an integrity algorithm")


class Backend(Protocol):
    """The volume behind this side. Offsets and lengths are bytes inside of it, multiples of 512."""

    size_bytes: int
    metadata: Metadata

    def read(self, offset_bytes: int, length_bytes: int) -> bytes: ...
    def write(self, offset_bytes: int, data: bytes) -> None: ...
    def trim(self, offset_bytes: int, length_bytes: int) -> None: ...
    def flush(self) -> None: ...
    def save_metadata(self) -> None: ...


class AckPlan(NamedTuple):
    """How the secondary answers one write."""

    kind: str
    """"ack"; "neg": NEG_ACK, not stored; "lost": no answer at all; "repeated": two answers."""
    delay_ns: int = 0
    """The answer leaves this much later."""


class FaultHooks(Protocol):
    """Places where a fault can act; ``write_no`` as in the event log of that side."""

    def copied(self, write_no: int, offset_bytes: int, data: bytes) -> tuple[int, bytes]:
        """Primary: where the copy goes and what it holds, before its digest is computed."""
        ...

    def sent_data(self, write_no: int, data: bytes) -> bytes:
        """Primary: the data as they leave, after their digest was computed."""
        ...

    def received_data(self, write_no: int, data: bytes) -> bytes:
        """Secondary: the data as they came, before their digest is checked."""
        ...

    def store(self, write_no: int, offset_bytes: int, data: bytes, backend: Any) -> None:
        """Secondary: performs backend.write, or fails to. ``backend`` is the peer's own."""
        ...

    def ack(self, write_no: int) -> AckPlan: ...
    def barrier_count(self, count: int) -> int: ...
    def resync(self, moment: str, bitmap: Any) -> bool:
        """Whether a resync goes wrong at this moment: "handshake", "bitmap" or "begin". May take
        bits out of ``bitmap``."""
        ...

    def stall_ns(self, write_no: int) -> int:
        """> 0: neither read nor answer the data socket for so long."""
        ...


class Completion(NamedTuple):
    """The peer has done with a host write."""

    write_no: int
    outcome: str
    """"acked"; "negative": the peer could not store it, it is marked out of sync; "unreplicated":
    the link went before its ack, it is marked out of sync. The host write may complete in each
    case."""


class LinkFailure(Exception):
    """The link must go: into connection state ``conn``, after the log ``lines``, before the line
    ``after``. STANDALONE: no reconnect."""

    def __init__(self, conn: Conn, *lines: str, after: str = "") -> None:
        super().__init__(conn.name, *lines)
        self.conn = conn
        self.lines = lines
        self.after = after
