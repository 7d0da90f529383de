"""The two TCP connections of a replication link: how they come to be, and the pings that tell
whether the peer lives."""

from collections.abc import Callable
from typing import Final

from freezeframe.firmware_sim.drbd_codec import INITIAL, DecodeError, Decoder
from freezeframe.firmware_sim.drbd_contract import NS_PER_MS, LinkFailure
from freezeframe.firmware_sim.drbd_link import NO_SOCKET, THREAD_ID, Link
from freezeframe.firmware_sim.ports import ReplicationDial
from freezeframe.harness.wire.drbd import META_SOCKET, Cmd, Conn

META_DELAY_NS: Final = 50 * NS_PER_MS
"""Between the two dials: lets the node take the first socket for the data."""
INITIAL_PING_TIMEOUTS: Final = 4
"""A node gives a new socket so many ping timeouts for its first packet."""
HANDSHAKE_PING_TIMEOUTS: Final = 4
"""And so many, here, for the rest of the handshake."""
MAX_NEW_SOCKETS: Final = 8

DATA_COMMANDS: Final = frozenset(
    {
        Cmd.DATA, Cmd.DATA_REPLY, Cmd.RS_DATA_REPLY, Cmd.BARRIER, Cmd.BITMAP, Cmd.COMPRESSED_BITMAP,
        Cmd.UNPLUG_REMOTE, Cmd.DATA_REQUEST, Cmd.RS_DATA_REQUEST, Cmd.SYNC_PARAM89, Cmd.PROTOCOL,
        Cmd.PROTOCOL_UPDATE, Cmd.UUIDS, Cmd.SIZES, Cmd.STATE, Cmd.SYNC_UUID, Cmd.AUTH_CHALLENGE,
        Cmd.AUTH_RESPONSE, Cmd.STATE_CHG_REQ, Cmd.CONN_ST_CHG_REQ, Cmd.DELAY_PROBE, Cmd.OUT_OF_SYNC, Cmd.TRIM,
        Cmd.ZEROES, Cmd.CONNECTION_FEATURES,
    }
)  # fmt: skip
"""What this firmware serves: no verify, no checksum-based resync, no thin resync, no write-same."""
META_COMMANDS: Final = META_SOCKET - INITIAL


class Sockets:
    """``established`` is called when both sockets are there."""

    def __init__(self, link: Link, established: Callable[[], None]) -> None:
        self._link = link
        self._established = established
        self.decoders: dict[int, Decoder] = {}
        """Of every socket that is open."""
        self._new: dict[int, int] = {}
        """Sockets whose first packet is due -> when they are given up."""
        self.heard_ns = 0
        """When the data socket last brought something."""
        self._ping_sent_ns = 0
        self._ko_left = 0
        self._on_meta = False

    @property
    def complete(self) -> bool:
        return self._link.data_socket != NO_SOCKET and self._link.meta_socket != NO_SOCKET

    def is_new(self, socket: int) -> bool:
        return socket in self._new

    # --- coming -----------------------------------------------------------------------------------------------------

    def look_for_peer(self, delay_ns: int) -> None:
        link = self._link
        link.change(conn=Conn.WF_CONNECTION, whole_link=True)
        if link.config.dial:
            link.arm("dial", delay_ns)

    def dial(self) -> None:
        """Timer."""
        self._link.put(ReplicationDial("data"))

    def dial_meta(self) -> None:
        """Timer."""
        self._link.put(ReplicationDial("meta"))

    def opened(self, socket: int, kind: str) -> None:
        """A socket is up: dialled (``kind`` tells for what), or accepted."""
        link = self._link
        if kind == "" and link.conn is not Conn.STANDALONE and len(self._new) < MAX_NEW_SOCKETS:
            self.decoders[socket] = Decoder(INITIAL)
            self._new[socket] = link.now + INITIAL_PING_TIMEOUTS * link.config.ping_timeout_ns
            link.timers["initial"] = min(self._new.values())
        elif kind == "" or link.conn is not Conn.WF_CONNECTION:
            link.close(socket)
        elif kind == "data":
            link.greet(socket, Cmd.INITIAL_DATA)
            self.use(socket, Cmd.INITIAL_DATA, Decoder(DATA_COMMANDS))
            link.arm("meta_dial", META_DELAY_NS)
        else:
            link.greet(socket, Cmd.INITIAL_META)
            self.use(socket, Cmd.INITIAL_META, Decoder(META_COMMANDS))

    def first_packet(self, socket: int) -> int | None:
        """What an accepted socket is for, INITIAL_DATA or INITIAL_META; None while that is not
        known."""
        try:
            packet = self.decoders[socket].next()
        except DecodeError as exc:
            self._link.log_link(str(exc))
            self.drop(socket)
            return None
        if packet is None:
            return None
        del self._new[socket]
        return packet[0]

    def use(self, socket: int, command: int, decoder: Decoder) -> None:
        """From now on this is the data (or meta) socket; an earlier one goes."""
        link = self._link
        if command == Cmd.INITIAL_DATA:
            old, link.data_socket = link.data_socket, socket
            decoder.commands = DATA_COMMANDS
        else:
            old, link.meta_socket = link.meta_socket, socket
            decoder.commands = META_COMMANDS
        self.drop(old)
        self.decoders[socket] = decoder
        if self.complete:
            link.arm("handshake", HANDSHAKE_PING_TIMEOUTS * link.config.ping_timeout_ns)
            self._established()

    # --- going ------------------------------------------------------------------------------------------------------

    def closed(self, socket: int) -> LinkFailure | None:
        """A socket is gone, or a dial failed (``socket`` < 0); returns what that does to the
        link."""
        link = self._link
        known = self.decoders.pop(socket, None) is not None
        self._new.pop(socket, None)
        if known and socket == link.data_socket:
            return LinkFailure(Conn.BROKEN_PIPE, "sock was shut down by peer")
        if known and socket == link.meta_socket:
            return LinkFailure(Conn.NETWORK_FAILURE, "meta connection shut down by peer.")
        if socket < 0 and link.conn is Conn.WF_CONNECTION:
            self.begin_again()
        return None

    def begin_again(self) -> None:
        """One of the sockets did not come to be: try with none again."""
        link = self._link
        self.drop_both()
        link.disarm("meta_dial", "handshake")
        if link.config.dial:
            link.arm("dial", link.config.connect_interval_ns)

    def drop(self, socket: int) -> None:
        if self.decoders.pop(socket, None) is not None:
            self._link.close(socket)
        self._new.pop(socket, None)

    def drop_both(self) -> None:
        link = self._link
        for socket in (link.data_socket, link.meta_socket):
            self.drop(socket)
        link.data_socket = link.meta_socket = NO_SOCKET

    def drop_silent(self) -> None:
        """Timer "initial"."""
        for socket in [socket for socket, due in self._new.items() if due <= self._link.now]:
            self.drop(socket)
        if self._new:
            self._link.timers["initial"] = min(self._new.values())

    # --- a peer that does not read ------------------------------------------------------------------------------------

    def blocked(self, socket: int, is_blocked: bool) -> None:
        """The socket takes no more, or has taken some again.

        The kernel waits for room twice before it counts: the first time part of a packet has left.
        """
        link = self._link
        if socket not in (link.data_socket, link.meta_socket) or link.conn < Conn.WF_REPORT_PARAMS:
            return
        self._on_meta = socket == link.meta_socket
        self._ko_left = link.config.ko_count
        if is_blocked:
            link.arm("send", 2 * link.config.timeout_ns)
        else:
            link.disarm("send")

    def send_late(self) -> None:
        """Timer "send": so long no byte left. On the meta socket once is too often."""
        link = self._link
        self._ko_left -= 1
        if self._on_meta or self._ko_left == 0:
            raise LinkFailure(Conn.TIMEOUT)
        thread = f"drbd_w_{link.config.resource}/{THREAD_ID}"
        link.log_link(f"[{thread}] sock_sendmsg time expired, ko = {max(0, self._ko_left)}")
        self.ping()
        link.arm("send", link.config.timeout_ns)

    # --- pings ------------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Timer: the meta socket has been idle, or the handshake is through."""
        link = self._link
        link.send(Cmd.PING)
        self._ping_sent_ns = link.now
        link.arm("ping_ack", link.config.ping_timeout_ns)

    def heard_on_meta(self) -> None:
        """Something came: the next ping is a whole interval away, unless one is under way."""
        link = self._link
        if "ping_ack" not in link.timers and link.conn >= Conn.CONNECTED:
            link.arm("ping", link.config.ping_interval_ns)

    def ping_ack(self) -> None:
        link = self._link
        link.disarm("ping_ack")
        link.arm("ping", link.config.ping_interval_ns)

    def ping_ack_late(self) -> None:
        """Timer. Anything on the data socket since the ping counts as a sign of life."""
        link = self._link
        if self.heard_ns <= self._ping_sent_ns:
            raise LinkFailure(Conn.NETWORK_FAILURE, "PingAck did not arrive in time.")
        link.arm("ping", link.config.ping_interval_ns)
