"""The replication link as its parts (handshake, primary, secondary, resync) share it: states,
sockets, output, timers.

State changes are logged as the kernel logs them: changes of the whole connection as ``drbd r0:``,
those of the volume as ``block drbd0:``.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from freezeframe.firmware_sim.drbd_codec import digest_function, encode, encode_header
from freezeframe.firmware_sim.drbd_contract import Backend, FaultHooks, PeerConfig
from freezeframe.firmware_sim.drbd_metadata import MAX_UUID, UUIDS
from freezeframe.firmware_sim.ports import Outbox, ReplicationClose, ReplicationSend
from freezeframe.harness.wire.drbd import (
    META_SOCKET,
    SECTOR_BYTES,
    STATE_FIELDS,
    UUID_JUST_CREATED,
    UUID_PRIMARY_BIT,
    Cmd,
    Conn,
    Disk,
    Feature,
    Role,
)
from freezeframe.harness.wire.drbdnames import CONN_NAMES, DISK_NAMES, ROLE_NAMES
from freezeframe.harness.wire.rootcause import LAST_WRITES, EventCode

SEPARATE_BYTES: Final = 16 << 10
"""Longer pieces of output leave as they are; shorter ones are joined, which costs less than another
send."""
NO_SOCKET: Final = -1
# Members that are looked at for each write: to find them on their enum each time takes a tenth of a
# microsecond.
CONNECTED: Final = Conn.CONNECTED
SYNC_SOURCE: Final = Conn.SYNC_SOURCE
THREAD_ID: Final = 1
"""Where the kernel's lines name one of its threads: this firmware has one."""
MAX_SEQ: Final = 0xFFFFFFFF

_ANY: Final = (Disk.DISKLESS, Disk.UP_TO_DATE)
_UP: Final = (Disk.UP_TO_DATE, Disk.UP_TO_DATE)
_BAD: Final = (Disk.INCONSISTENT, Disk.INCONSISTENT)
DISK_LIMITS: Final[dict[Conn, tuple[tuple[Disk, Disk], tuple[Disk, Disk]]]] = {
    Conn.WF_BITMAP_S: (_UP, (Disk.INCONSISTENT, Disk.CONSISTENT)),
    Conn.WF_BITMAP_T: ((Disk.INCONSISTENT, Disk.OUTDATED), _UP),
    Conn.WF_SYNC_UUID: ((Disk.INCONSISTENT, Disk.OUTDATED), _UP),
    Conn.SYNC_SOURCE: (_UP, _BAD),
    Conn.SYNC_TARGET: (_BAD, _UP),
}
"""What own and peer's disk can be while the connection is in that state, (lowest, highest) each."""


class Link:
    """Shared by the parts of one Peer. ``now`` is the time of the call that is being served."""

    def __init__(
        self,
        config: PeerConfig,
        backend: Backend,
        faults: FaultHooks,
        log: Callable[[str], None],
        trace: Callable[..., None],
    ) -> None:
        self.config = config
        self.backend = backend
        self.faults = faults
        self.log = log
        self.trace = trace
        self.now = 0
        self.role = Role.SECONDARY
        self.peer_role = Role.UNKNOWN
        self.conn = Conn.STANDALONE
        self.disk = Disk.DISKLESS
        self.peer_disk = Disk.UNKNOWN
        self.agreed_version = 0
        self.features = Feature(0)
        self.digest, self.digest_bytes = digest_function(config.integrity_alg)
        """Of data received and sent; their algorithm is agreed in the handshake."""
        self.crc32c_digest = config.integrity_alg == "crc32c"
        """The digest is the checksum that the event log has anyway: it is computed once."""
        self.peer_uuids = [0] * UUIDS
        self.peer_uuid_flags = 0
        self.crashed = False
        """This side was primary at its last, unclean end, and has not been whole with its peer
        since."""
        self.seq = 0
        self.last_writes: deque[list[Any]] = deque(maxlen=LAST_WRITES)
        self.timers: dict[str, int] = {}
        """Name -> when it is due; what it does is in the Peer's table."""
        self.data_socket = NO_SOCKET
        self.meta_socket = NO_SOCKET
        self._pending: dict[int, list[bytes | bytearray | memoryview]] = {}
        self._out: list[Outbox] = []

    # --- what this side is ----------------------------------------------------------------------------------------

    @property
    def sectors(self) -> int:
        return self.backend.size_bytes // SECTOR_BYTES

    @property
    def replicating(self) -> bool:
        """Whether a write of this side goes to the peer."""
        return self.conn is CONNECTED or self.conn is SYNC_SOURCE

    def new_uuid(self) -> int:
        """A UUID that nobody has: never 0 nor "just created", lowest bit clear."""
        while True:
            uuid = int.from_bytes(self.config.random_bytes(8), "big") & MAX_UUID & ~UUID_PRIMARY_BIT
            if uuid not in (0, UUID_JUST_CREATED):
                return uuid

    def start_generation(self) -> None:
        metadata = self.backend.metadata
        metadata.start_generation(self.new_uuid(), self.role is Role.PRIMARY)
        self.log_device(f"new current UUID {metadata}")
        self.backend.save_metadata()

    def whole(self) -> None:
        """Both sides are up to date, and the same: an earlier crash is mended."""
        metadata = self.backend.metadata
        self.crashed = False
        metadata.crashed_primary = metadata.crashed_primary and self.role is Role.PRIMARY
        self.backend.save_metadata()

    def mark_out_of_sync(self, offset_bytes: int, length_bytes: int) -> None:
        self.backend.metadata.bitmap.set_bytes(offset_bytes, length_bytes)

    # --- log and states -------------------------------------------------------------------------------------------

    def log_link(self, text: str) -> None:
        self.log(f"drbd {self.config.resource}: {text}")

    def log_device(self, text: str) -> None:
        self.log(f"block drbd0: {text}")

    def change(
        self,
        *,
        role: Role | None = None,
        peer_role: Role | None = None,
        conn: Conn | None = None,
        disk: Disk | None = None,
        peer_disk: Disk | None = None,
        whole_link: bool = False,
    ) -> None:
        """Enter a new state: log it, trace it, keep the disk states inside of what the connection
        state allows."""
        old = (self.role, self.peer_role, self.conn, self.disk, self.peer_disk)
        self.role = role if role is not None else self.role
        self.peer_role = peer_role if peer_role is not None else self.peer_role
        self.conn = conn if conn is not None else self.conn
        self.disk = disk if disk is not None else self.disk
        self.peer_disk = peer_disk if peer_disk is not None else self.peer_disk
        limits = DISK_LIMITS.get(self.conn)
        if limits:
            own, peer = limits
            self.disk = min(max(self.disk, own[0]), own[1])
            self.peer_disk = min(max(self.peer_disk, peer[0]), peer[1])
        changes = "".join(
            f"{name}( {names[before]} -> {names[after]} ) "
            for name, names, before, after in (
                ("role", ROLE_NAMES, old[0], self.role),
                ("peer", ROLE_NAMES, old[1], self.peer_role),
                ("conn", CONN_NAMES, old[2], self.conn),
                ("disk", DISK_NAMES, old[3], self.disk),
                ("pdsk", DISK_NAMES, old[4], self.peer_disk),
            )
            if before != after
        )
        if not changes:
            return
        (self.log_link if whole_link else self.log_device)(changes)
        if self.role != old[0]:
            self.trace(EventCode.ROLE, self.role)
        if self.conn != old[2]:
            self.trace(EventCode.CONN_STATE, old[2], self.conn)
        if self.disk != old[3]:
            self.trace(EventCode.DISK_STATE, old[3], self.disk)
            if self.disk >= Disk.INCONSISTENT:
                self.backend.metadata.disk = self.disk
                self.backend.save_metadata()

    def state_word(self) -> int:
        """The 32-bit state as P_STATE carries it."""
        word = 0
        for name, value in (
            ("role", self.role), ("peer", self.peer_role), ("conn", self.conn),
            ("disk", self.disk), ("pdsk", self.peer_disk),
        ):  # fmt: skip
            word |= value << STATE_FIELDS[name][0]
        return word

    # --- output ---------------------------------------------------------------------------------------------------

    def next_seq(self) -> int:
        """One counter for the sent data packets and acks of a connection, counted up before use."""
        self.seq = self.seq + 1 & MAX_SEQ
        return self.seq

    def send(self, command: Cmd, *fields: Any, body: bytes | memoryview = b"") -> None:
        """Queue a packet on the socket that its command belongs to."""
        socket = self.meta_socket if command in META_SOCKET else self.data_socket
        self.write(socket, encode(self.agreed_version, command, *fields, body=body))

    def write(self, socket: int, *pieces: bytes | bytearray | memoryview) -> None:
        """Queue bytes on a socket; they must not change any more."""
        pending = self._pending.get(socket)
        if pending is None:
            self._pending[socket] = list(pieces)
        else:
            pending += pieces

    def greet(self, socket: int, command: Cmd) -> None:
        """The first packet of a socket that this side dialled."""
        self.write(socket, encode_header(0, command, 0))

    def put(self, item: Outbox) -> None:
        self._out.append(item)

    def close(self, socket: int) -> None:
        """Close after what is queued; nothing happens when there is no socket."""
        if socket != NO_SOCKET:
            self._flush(socket)
            self._out.append(ReplicationClose(socket))

    def take_output(self) -> list[Outbox]:
        for socket in list(self._pending):
            self._flush(socket)
        out, self._out = self._out, []
        return out

    def _flush(self, socket: int) -> None:
        small: list[bytes | bytearray | memoryview] = []
        for piece in self._pending.pop(socket, ()):
            if len(piece) < SEPARATE_BYTES:
                small.append(piece)
                continue
            if small:
                self._out.append(ReplicationSend(socket, b"".join(small)))
                small = []
            self._out.append(ReplicationSend(socket, piece))
        if small:
            self._out.append(ReplicationSend(socket, b"".join(small)))

    # --- timers ---------------------------------------------------------------------------------------------------

    def arm(self, timer: str, delay_ns: int) -> None:
        self.timers[timer] = self.now + delay_ns

    def disarm(self, *timers: str) -> None:
        for timer in timers:
            self.timers.pop(timer, None)
