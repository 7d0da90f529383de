"""Connection set-up: versions, authentication, parameters, and who brings whom up to date; then
roles and states.

Both sides send without waiting for the other, except that nothing but the features goes out before
the versions are agreed, and no parameters before the peer is authenticated.
"""

import hmac
from typing import Any, Final, TypeVar

from freezeframe.firmware_sim.drbd_codec import max_data_bytes, packet_name
from freezeframe.firmware_sim.drbd_contract import LinkFailure
from freezeframe.firmware_sim.drbd_link import THREAD_ID, Link
from freezeframe.firmware_sim.drbd_metadata import BITMAP, CURRENT, UUIDS, format_uuids
from freezeframe.firmware_sim.drbd_resync import Resync
from freezeframe.firmware_sim.drbd_uuids import (
    NEEDS_NEWER_PEER,
    SPLIT_BRAIN,
    UNRELATED,
    Generations,
    decide,
)
from freezeframe.harness.wire.drbd import (
    P_QLIM,
    SECTOR_BYTES,
    STATE_FIELDS,
    Cmd,
    Conn,
    Disk,
    Feature,
    Ret,
    Role,
    UuidFlag,
)

PROTOCOL_C: Final = 3
CHALLENGE_BYTES: Final = 64
SYNC_PARAM: Final = (250, b"", b"", 20, 10, 100, 102400)
"""Resync rate, no verify and checksum algorithms, controller's set points: a node's defaults."""
BLOCK_LIMITS: Final = P_QLIM.pack(SECTOR_BYTES, SECTOR_BYTES, 0, SECTOR_BYTES, 0, 1, 1, 0, 0)
FEATURE_NAMES: Final = (
    (Feature.TRIM, "TRIM"), (Feature.THIN_RESYNC, "THIN_RESYNC"),
    (Feature.WSAME, "WRITE_SAME"), (Feature.WZEROES, "WRITE_ZEROES"),
)  # fmt: skip


BEFORE_STATE: Final = frozenset(
    {
        Cmd.PROTOCOL,
        Cmd.SYNC_PARAM89,
        Cmd.UUIDS,
        Cmd.SIZES,
        Cmd.STATE,
        Cmd.UNPLUG_REMOTE,
        Cmd.DELAY_PROBE,
    }
)
BEFORE_PARAMETERS: Final = frozenset(
    {Cmd.CONNECTION_FEATURES, Cmd.AUTH_CHALLENGE, Cmd.AUTH_RESPONSE}
)
"""What the peer may send before its parameters, and from then until its first state."""


def _error(command: Cmd, body_bytes: int) -> str:
    """The line of a packet that was read and cannot be served; EIO."""
    return f"error receiving {packet_name(command)}, e: -5 l: {body_bytes}!"


E = TypeVar("E", Role, Conn, Disk)


def state_field(word: int, name: str) -> int:
    """A part of a state word."""
    offset, width = STATE_FIELDS[name]
    return word >> offset & (1 << width) - 1


def _enum(kind: type[E], value: int) -> E:
    try:
        return kind(value)
    except ValueError as exc:
        raise LinkFailure(
            Conn.PROTOCOL_ERROR, f"error receiving ReportState: {kind.__name__} {value}"
        ) from exc


class Handshake:
    def __init__(self, link: Link, resync: Resync) -> None:
        self._link = link
        self._resync = resync
        self._challenge = b""
        self._authenticating = False
        self._decided = False
        self._told: set[Cmd] = set()
        """What the peer has reported about itself on this connection."""
        self._peer_bits = 0
        self.wanted_role: Role | None = None
        """Asked for, and not settled with the peer yet."""
        self._role_asked = False

    # --- versions and authentication ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Both sockets are there."""
        config = self._link.config
        self._link.send(
            Cmd.CONNECTION_FEATURES, config.protocol_min, config.features, config.protocol_max, b""
        )

    def check_order(self, command: int) -> None:
        """Refuse what has no place on the data socket before the connection stands."""
        expected = BEFORE_PARAMETERS if self._link.conn < Conn.WF_REPORT_PARAMS else BEFORE_STATE
        if command not in expected:
            text = f"error receiving {packet_name(command)}, e: -22 l: 0!"
            raise LinkFailure(Conn.PROTOCOL_ERROR, text)

    def late(self) -> None:
        """Timer "handshake"."""
        raise LinkFailure(
            Conn.NETWORK_FAILURE, "timeout while waiting for the peer's part of the handshake"
        )

    def features(self, fields: tuple[Any, ...]) -> None:
        link, config = self._link, self._link.config
        low, offered, high, _ = fields
        if link.agreed_version:
            raise LinkFailure(Conn.PROTOCOL_ERROR, "expected ConnectionFeatures only once")
        high = high or low
        if low > config.protocol_max or high < config.protocol_min:
            raise LinkFailure(
                Conn.STANDALONE,
                f"incompatible DRBD dialects: I support {config.protocol_min}-{config.protocol_max},"
                f" peer supports {low}-{high}",
            )
        link.agreed_version = min(config.protocol_max, high)
        link.features = Feature(config.features & offered & 0xF)
        link.log_link(
            f"Handshake successful: Agreed network protocol version {link.agreed_version}"
        )
        names = "".join(f" {name}" for flag, name in FEATURE_NAMES if link.features & flag)
        link.log_link(
            f"Feature flags enabled on protocol level: {int(link.features):#x}{names or ' none'}."
        )
        if config.shared_secret and config.cram_hmac_alg:
            self._authenticating = True
            self._challenge = config.random_bytes(CHALLENGE_BYTES)
            link.send(Cmd.AUTH_CHALLENGE, body=self._challenge)
        else:
            self._send_parameters()

    def auth_challenge(self, body: memoryview) -> None:
        link = self._link
        challenge = bytes(body)
        if not self._authenticating or len(challenge) < CHALLENGE_BYTES:
            raise LinkFailure(
                Conn.STANDALONE, "unexpected AuthChallenge", "Authentication of peer failed"
            )
        if challenge == self._challenge:
            raise LinkFailure(Conn.STANDALONE, "Peer presented the same challenge!")
        link.send(Cmd.AUTH_RESPONSE, body=self._hmac(challenge))

    def auth_response(self, body: memoryview) -> None:
        link = self._link
        if not self._authenticating or not hmac.compare_digest(
            bytes(body), self._hmac(self._challenge)
        ):
            raise LinkFailure(Conn.STANDALONE, "Authentication of peer failed")
        self._authenticating = False
        link.log_link(f"Peer authenticated using {len(body)} bytes HMAC")
        self._send_parameters()

    def _hmac(self, challenge: bytes) -> bytes:
        return hmac.digest(
            self._link.config.shared_secret, challenge, self._link.config.cram_hmac_alg
        )

    # --- parameters -----------------------------------------------------------------------------------------------

    def _send_parameters(self) -> None:
        link, config = self._link, self._link.config
        algorithm = config.integrity_alg.encode("ascii") + b"\0"
        flags = UuidFlag.DISCARD_MY_DATA if config.discard_my_data else 0
        link.send(Cmd.PROTOCOL, PROTOCOL_C, 0, 0, 0, flags, 0, body=algorithm)
        rate, verify, checksums, *set_points = SYNC_PARAM
        body = b"".join(int(value).to_bytes(4, "big") for value in set_points)
        link.send(Cmd.SYNC_PARAM89, rate, verify, checksums, body=body)
        limits = BLOCK_LIMITS if link.features & Feature.WSAME else b""
        link.send(
            Cmd.SIZES,
            link.sectors,
            0,
            link.sectors,
            max_data_bytes(link.agreed_version),
            0,
            0,
            body=limits,
        )
        metadata = link.backend.metadata
        if metadata.uuids[BITMAP] and link.faults.resync("handshake", metadata.bitmap):
            metadata.uuids[CURRENT], metadata.uuids[BITMAP] = metadata.uuids[BITMAP], 0
            link.crashed = False
        self.send_uuids()
        if (
            link.backend.metadata.damaged
            and link.role is not Role.PRIMARY
            and link.disk > Disk.INCONSISTENT
        ):
            link.change(disk=Disk.INCONSISTENT)
        link.send(Cmd.STATE, link.state_word())
        link.change(conn=Conn.WF_REPORT_PARAMS, whole_link=True)
        link.log_link(f"Starting ack_recv thread (from drbd_r_{config.resource} [{THREAD_ID}])")

    def send_uuids(self, flags: int = 0) -> None:
        link, metadata = self._link, self._link.backend.metadata
        flags |= UuidFlag.DISCARD_MY_DATA if link.config.discard_my_data else 0
        flags |= UuidFlag.CRASHED_PRIMARY if link.crashed else 0
        link.send(Cmd.UUIDS, *metadata.uuids, metadata.bitmap.count, flags)

    def protocol(self, fields: tuple[Any, ...], body: memoryview) -> None:
        link = self._link
        self._told.add(Cmd.PROTOCOL)

        def refused(what: str) -> LinkFailure:
            text = f"incompatible {what} settings"
            return LinkFailure(Conn.STANDALONE, text, after=_error(Cmd.PROTOCOL, len(body)))

        ours = (PROTOCOL_C, 0, 0, 0)
        for name, own, peer in zip(
            ("protocol", "after-sb-0pri", "after-sb-1pri", "after-sb-2pri"),
            ours,
            fields[:4],
            strict=True,
        ):
            if own != peer:
                raise refused(name)
        if fields[4] & UuidFlag.DISCARD_MY_DATA and link.config.discard_my_data:
            raise refused("discard-my-data")
        if fields[5]:
            raise refused("allow-two-primaries")
        algorithm = bytes(body).split(b"\0")[0].decode("ascii", "replace")
        if algorithm != link.config.integrity_alg:
            raise refused("data-integrity-alg")

    def sync_param(self, fields: tuple[Any, ...]) -> None:
        for name, value in zip(("verify", "csums"), fields[1:3], strict=True):
            if value.strip(b"\0"):
                text = f"different {name}-alg settings"
                raise LinkFailure(Conn.STANDALONE, text, after=_error(Cmd.SYNC_PARAM89, 0))

    def sizes(self, fields: tuple[Any, ...], body: memoryview) -> None:
        link = self._link
        self._told.add(Cmd.SIZES)
        backing, user, exported, *_ = fields
        if backing and abs(backing - link.sectors) > min(backing, link.sectors) >> 3:
            text = f"Considerable difference in lower level device sizes: {backing}s vs. {link.sectors}s"
            link.log_device(text)
        size = (
            min(sectors for sectors in (backing, user, exported) if sectors)
            if backing
            else exported
        )
        if size < link.sectors:
            text = f"The peer's disk size is too small! ({size} < {link.sectors} sectors)"
            raise LinkFailure(Conn.STANDALONE, text, after=_error(Cmd.SIZES, len(body)))

    def uuids(self, fields: tuple[Any, ...]) -> None:
        link, metadata = self._link, self._link.backend.metadata
        self._told.add(Cmd.UUIDS)
        link.peer_uuids = list(fields[:UUIDS])
        self._peer_bits, link.peer_uuid_flags = fields[UUIDS:]
        if (
            link.conn is Conn.CONNECTED
            and metadata.just_created
            and link.peer_uuid_flags & UuidFlag.SKIP_INITIAL_SYNC
        ):
            link.log_device("Accepted new current UUID, preparing to skip initial sync")
            metadata.uuids = [link.peer_uuids[CURRENT], 0, 0, 0]
            metadata.mark_role(link.role is Role.PRIMARY)
            self._whole()
            link.log_device(f"receiver updated UUIDs to {metadata}")

    def skip_initial_sync(self) -> None:
        """Both sides are just created, so both are empty: name their common generation."""
        link, metadata = self._link, self._link.backend.metadata
        link.log_device("Preparing to skip initial sync")
        link.start_generation()
        self.send_uuids(UuidFlag.SKIP_INITIAL_SYNC)
        metadata.uuids[BITMAP] = 0
        self._whole()
        link.log_device(f"cleared bitmap UUID {metadata}")
        link.send(Cmd.STATE, link.state_word())

    def _whole(self) -> None:
        link, bitmap = self._link, self._link.backend.metadata.bitmap
        bitmap.clear_all()
        link.log_device("0 KB (0 bits) marked out-of-sync by on disk bit-map.")
        link.change(disk=Disk.UP_TO_DATE, peer_disk=Disk.UP_TO_DATE)
        link.whole()

    # --- states ---------------------------------------------------------------------------------------------------

    def state(self, word: int) -> None:
        """P_STATE: the first one of a connection ends the exchange of parameters."""
        link = self._link
        peer_role = _enum(Role, state_field(word, "role"))
        peer_disk = _enum(Disk, state_field(word, "disk"))
        peer_conn = _enum(Conn, state_field(word, "conn"))
        if not self._decided:
            missing = {Cmd.PROTOCOL, Cmd.SIZES, Cmd.UUIDS} - self._told
            if missing or peer_disk < Disk.INCONSISTENT:
                text = "error receiving ReportState: peer has no disk, or has not told of it"
                raise LinkFailure(Conn.PROTOCOL_ERROR, text)
            self._decided = True
            self._decide(peer_role, peer_disk)
            return
        settled = link.conn is Conn.CONNECTED
        if settled and link.peer_disk is Disk.UP_TO_DATE and peer_conn > Conn.SYNC_SOURCE:
            # Sent before it noticed that the resync is done.
            peer_disk = max(peer_disk, Disk.UP_TO_DATE)
        link.change(peer_role=peer_role, peer_disk=peer_disk if settled else None)
        if link.conn is Conn.SYNC_SOURCE and peer_conn is Conn.CONNECTED:
            self._resync.peer_reports_done()
        if settled and link.backend.metadata.just_created and self._names_generation(peer_role):
            self.skip_initial_sync()

    def _decide(self, peer_role: Role, peer_disk: Disk) -> None:
        link = self._link
        if link.role is Role.PRIMARY and peer_role is Role.PRIMARY:
            text = "State change failed: Multiple primaries not allowed by config"
            raise LinkFailure(Conn.STANDALONE, text, after=_error(Cmd.STATE, 0))
        result = self._compare(peer_role, peer_disk)
        self._check_verdict(result)
        if abs(result) == 2:
            link.log_device(
                "Writing the whole bitmap, full sync required after drbd_sync_handshake."
            )
            link.backend.metadata.bitmap.set_all()
        link.disarm("handshake")
        link.arm("ping", 0)
        if result == 0:
            bits = link.backend.metadata.bitmap.count
            if bits:
                link.log_device(f"No resync, but {bits} bits in bitmap!")
            better = (
                peer_disk is Disk.UP_TO_DATE and Disk.INCONSISTENT < link.disk < Disk.UP_TO_DATE
            )
            link.change(
                peer_role=peer_role, conn=Conn.CONNECTED, peer_disk=peer_disk,
                disk=Disk.UP_TO_DATE if better else None,
            )  # fmt: skip
            link.send(Cmd.STATE, link.state_word())
            if link.disk is peer_disk is Disk.UP_TO_DATE:
                link.whole()
        elif result > 0:
            link.change(peer_role=peer_role, conn=Conn.WF_BITMAP_S, peer_disk=peer_disk)
            link.send(Cmd.STATE, link.state_word())
            self._resync.begin_source()
        else:
            link.change(peer_role=peer_role, conn=Conn.WF_BITMAP_T, peer_disk=peer_disk)
            link.send(Cmd.STATE, link.state_word())
            self._resync.begin_target()
        self.settle_role()

    def _names_generation(self, peer_role: Role) -> bool:
        """Of two just-created sides the primary names the generation; without one, the side that
        dialled."""
        link = self._link
        return link.role is Role.PRIMARY or (link.config.dial and peer_role is not Role.PRIMARY)

    def _compare(self, peer_role: Role, peer_disk: Disk) -> int:
        """The verdict of the UUIDs, then of the disks."""
        link, metadata = self._link, self._link.backend.metadata
        peer_crashed = bool(link.peer_uuid_flags & UuidFlag.CRASHED_PRIMARY)
        verdict = decide(
            Generations(
                own=tuple(metadata.uuids), peer=tuple(link.peer_uuids), own_crashed=link.crashed,
                peer_crashed=peer_crashed, own_primary=link.role is Role.PRIMARY,
                peer_primary=peer_role is Role.PRIMARY, resolver=not link.config.dial,
                rule_41=bool(link.features & Feature.WSAME), version=link.agreed_version,
            )
        )  # fmt: skip
        link.log_device("drbd_sync_handshake:")
        link.log_device(f"self {metadata} bits:{metadata.bitmap.count} flags:0")
        link.log_device(
            f"peer {format_uuids(link.peer_uuids)} bits:{self._peer_bits} flags:{link.peer_uuid_flags}"
        )
        if verdict.note:
            link.log_device(verdict.note)
        metadata.uuids, link.peer_uuids = list(verdict.own), list(verdict.peer)
        link.log_device(f"uuid_compare()={verdict.result} by rule {verdict.rule}")
        result = verdict.result
        if abs(result) <= SPLIT_BRAIN and (link.disk > Disk.INCONSISTENT) != (
            peer_disk > Disk.INCONSISTENT
        ):
            full = result == -SPLIT_BRAIN or abs(result) == 2
            result = (1 if link.disk > Disk.INCONSISTENT else -1) * (2 if full else 1)
            link.log_device(
                f"Becoming sync {'source' if result > 0 else 'target'} due to disk states."
            )
        peer_discards = bool(link.peer_uuid_flags & UuidFlag.DISCARD_MY_DATA)
        if abs(result) == SPLIT_BRAIN and link.config.discard_my_data != peer_discards:
            result = 1 if peer_discards else -1
            side = "this" if peer_discards else "peer"
            link.log_device(f"Split-Brain detected, manually solved. Sync from {side} node")
        return result

    def _check_verdict(self, result: int) -> None:
        """Refuse what no resync can mend."""
        link = self._link

        def refused(text: str) -> LinkFailure:
            return LinkFailure(Conn.STANDALONE, text, after=_error(Cmd.STATE, 0))

        if result == UNRELATED:
            raise refused("Unrelated data, aborting!")
        if result == NEEDS_NEWER_PEER:
            raise refused("Equivalent unrotated UUIDs, but current primary present.")
        if abs(result) == SPLIT_BRAIN:
            raise refused("Split-Brain detected but unresolved, dropping connection!")
        if result > 0 and link.disk <= Disk.INCONSISTENT:
            raise refused("I shall become SyncSource, but I am inconsistent!")
        if result < 0 and link.role is Role.PRIMARY:
            raise refused("I shall become SyncTarget, but I am primary!")

    # --- roles ----------------------------------------------------------------------------------------------------

    def settle_role(self) -> None:
        """Take the wanted role: alone at once, connected after asking the peer, in a handshake
        later."""
        link, wanted = self._link, self.wanted_role
        if wanted is None or self._role_asked or link.conn is Conn.WF_REPORT_PARAMS:
            return
        if wanted is link.role:
            self.wanted_role = None
            return
        if link.conn < Conn.CONNECTED:
            if (
                wanted is Role.SECONDARY
                or link.disk is Disk.UP_TO_DATE
                or link.backend.metadata.just_created
            ):
                self._take_role()
        elif wanted is Role.SECONDARY:
            self._take_role()
            link.send(Cmd.STATE, link.state_word())
        elif link.disk is Disk.UP_TO_DATE:
            link.send(Cmd.STATE_CHG_REQ, 3, Role.PRIMARY)
            self._role_asked = True

    def role_reply(self, retcode: int) -> None:
        """STATE_CHG_REPLY to the wish to become primary."""
        link = self._link
        if not self._role_asked:
            return
        self._role_asked = False
        if retcode < Ret.SUCCESS:
            link.log_device(f"State change failed: Refused by peer node ({retcode})")
            self.wanted_role = None
            return
        self._take_role()
        link.send(Cmd.STATE, link.state_word())

    def _take_role(self) -> None:
        link, metadata = self._link, self._link.backend.metadata
        wanted, self.wanted_role = self.wanted_role, None
        assert wanted is not None
        link.change(role=wanted)
        metadata.mark_role(wanted is Role.PRIMARY)
        if wanted is Role.SECONDARY:
            metadata.crashed_primary = link.crashed
        elif (
            link.conn < Conn.CONNECTED and not metadata.just_created and not metadata.uuids[BITMAP]
        ):
            link.start_generation()
        link.backend.save_metadata()

    def state_change_request(self, mask: int, value: int) -> int:
        """What to answer to the peer's request; TEAR_DOWN follows when it wants to disconnect (see
        ``wants_out``)."""
        link = self._link
        if state_field(mask, "role") and state_field(value, "role") == Role.PRIMARY:
            if link.role is Role.PRIMARY:
                return Ret.TWO_PRIMARIES
            link.change(peer_role=Role.PRIMARY)
        elif state_field(mask, "role"):
            link.change(peer_role=_enum(Role, state_field(value, "role")))
        return Ret.SUCCESS

    def lost(self) -> None:
        self._authenticating = self._decided = False
        self._told.clear()
        self._role_asked = False


def wants_out(mask: int, value: int) -> bool:
    """Whether a state change request is the polite disconnect."""
    return state_field(mask, "conn") != 0 and state_field(value, "conn") == Conn.DISCONNECTING
