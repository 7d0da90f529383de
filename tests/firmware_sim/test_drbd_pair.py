"""Two replication peers against each other in virtual time: set-up, writes, epochs, every fault, every failure."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from drbd_world import HOP_NS, MS, SIZE_BYTES, Hooks, S, Side, World

from firmware_sim.drbd_codec import Decoder, encode, encode_header
from firmware_sim.drbd_peer import AckPlan, Metadata, PeerConfig
from firmware_sim.ports import ReplicationClosed, ReplicationData
from harness.wire.control import PairState
from harness.wire.drbd import DATA_SOCKET, MAGIC_H100, META_SOCKET, Cmd, Conn, DpFlag, Feature, Role
from harness.wire.rootcause import Event, WriteStage

FULL_DUPLEX = PairState.FULL_DUPLEX


def whole(world: World) -> bool:
    return world.a.peer.pair_state is world.b.peer.pair_state is FULL_DUPLEX and world.equal()


def packets(world: World, side: Side, version: int = 101) -> list[tuple[int, tuple[object, ...], bytes]]:
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


# --- set-up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("primary", ["a", "b"])
@pytest.mark.parametrize("version", range(95, 102))
def test_each_version_pairs_writes_and_resyncs(version: int, primary: str) -> None:
    world = World(dialler={"protocol_max": version}).start(primary)
    side = world.side(primary)
    assert world.a.peer.agreed_version == world.b.peer.agreed_version == version
    assert whole(world)
    assert side.write(1, 4096, b"\x5a" * 4096)
    assert side.write(2, 65536, b"\xa5" * 300 * 1024)
    assert side.trim(3, 4096, 8192)
    world.run(1 * S)
    assert side.completions == [(1, "acked"), (2, "acked"), (3, "acked")]
    assert whole(world)
    world.cut()
    world.run(1 * MS)
    assert not side.write(4, 0, b"\x11" * 512)
    world.run(3 * S)
    assert whole(world)


def test_the_log_of_the_set_up_is_the_kernel_s() -> None:
    """Line by line what integrity-mtu1500-a.console.log's node printed, but for threads, helpers and numbers."""
    world = World().start()
    kernel = """\
drbd r0: conn( StandAlone -> Unconnected )\x20
drbd r0: conn( Unconnected -> WFConnection )\x20
drbd r0: Handshake successful: Agreed network protocol version 101
drbd r0: Feature flags enabled on protocol level: 0x5 TRIM WRITE_SAME.
drbd r0: conn( WFConnection -> WFReportParams )\x20
drbd r0: peer data-integrity-alg: crc32c
block drbd0: drbd_sync_handshake:
block drbd0: self 0000000000000004:0000000000000000:0000000000000000:0000000000000000 bits:256 flags:0
block drbd0: peer 0000000000000004:0000000000000000:0000000000000000:0000000000000000 bits:256 flags:0
block drbd0: uuid_compare()=0 by rule 10
block drbd0: No resync, but 256 bits in bitmap!
block drbd0: peer( Unknown -> Secondary ) conn( WFReportParams -> Connected ) pdsk( DUnknown -> Inconsistent )\x20
block drbd0: Preparing to skip initial sync
block drbd0: new current UUID UUID:0000000000000004:0000000000000000:0000000000000000
block drbd0: 0 KB (0 bits) marked out-of-sync by on disk bit-map.
block drbd0: disk( Inconsistent -> UpToDate ) pdsk( Inconsistent -> UpToDate )\x20
block drbd0: cleared bitmap UUID UUID:0000000000000000:0000000000000000:0000000000000000
block drbd0: role( Secondary -> Primary )\x20"""
    uuid = world.a.backend.metadata.uuids[0] & ~1
    printed = [line.replace(f"{uuid:016X}", "UUID") for line in world.a.lines[4:]]
    assert printed == kernel.splitlines()
    assert world.a.backend.metadata.uuids == [uuid | 1, 0, 0, 0]
    assert world.b.backend.metadata.uuids == [uuid, 0, 0, 0]


@pytest.mark.parametrize("primary", ["a", "b"])
def test_a_role_asked_for_before_the_peer_is_there(primary: str) -> None:
    world = World()
    side = world.side(primary)
    side.peer.start(world.now)
    side.peer.set_role(world.now, Role.PRIMARY)
    side.other.peer.start(world.now)
    world.run(2 * S)
    assert side.peer.role is Role.PRIMARY and side.other.peer.peer_role is Role.PRIMARY
    assert whole(world)


def test_written_before_it_was_ever_paired_is_copied_whole() -> None:
    world = World()
    world.b.peer.start(world.now)
    world.b.peer.set_role(world.now, Role.PRIMARY)
    assert world.b.peer.pair_state is PairState.SIMPLEX
    assert not world.b.write(1, 0, b"x" * 4096)
    world.a.peer.start(world.now)
    world.run(3 * S)
    assert whole(world)
    assert "uuid_compare()=2 by rule 30" in world.b.text()
    assert "full sync required" in world.b.text()


def test_the_second_primary_is_refused() -> None:
    world = World().start("a")
    world.b.peer.set_role(world.now, Role.PRIMARY)
    world.run(1 * S)
    assert world.b.peer.role is Role.SECONDARY
    assert "State change failed: Refused by peer node (-1)" in world.b.text()
    world.a.peer.set_role(world.now, Role.SECONDARY)
    world.run(1 * S)
    world.b.peer.set_role(world.now, Role.PRIMARY)
    world.run(1 * S)
    assert (world.a.peer.role, world.b.peer.role) == (Role.SECONDARY, Role.PRIMARY)
    assert world.b.write(1, 0, b"y" * 512)
    world.run(1 * S)
    assert whole(world)


def test_authentication() -> None:
    auth = {"shared_secret": b"tell nobody", "cram_hmac_alg": "sha256"}
    world = World(both=auth).start()
    assert whole(world)
    assert "Peer authenticated using 32 bytes HMAC" in world.a.text()


SETTINGS = {
    "secret": ({"shared_secret": b"a", "cram_hmac_alg": "sha256"}, {"shared_secret": b"b", "cram_hmac_alg": "sha256"},
               "Authentication of peer failed"),
    "digest": ({"integrity_alg": ""}, {}, "incompatible data-integrity-alg settings"),
    "versions": ({"protocol_max": 96}, {"protocol_min": 98}, "incompatible DRBD dialects: I support"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_what_no_retry_can_mend_ends_in_standalone(name: str) -> None:
    dialler, listener, text = SETTINGS[name]
    world = World(dialler=dialler, listener=listener)
    world.a.peer.start(world.now)
    world.b.peer.start(world.now)
    world.run_until(lambda: Conn.STANDALONE in (world.a.peer.conn, world.b.peer.conn))
    assert text in world.a.text() + world.b.text()
    assert "Discarding network configuration." in world.a.text() + world.b.text()


@pytest.mark.parametrize("algorithm", ["", "md5", "sha256"])
def test_other_digests(algorithm: str) -> None:
    world = World(both={"integrity_alg": algorithm}).start()
    world.a.write(1, 0, b"d" * 4096)
    world.run(1 * S)
    assert whole(world)


def test_reconnects_for_ever() -> None:
    world = World()
    world.reachable = False
    world.a.peer.start(world.now)
    world.b.peer.start(world.now)
    world.run(300 * S)
    world.reachable = True
    world.run(2 * S)
    assert whole(world)
    assert len(world.a.lines) < 40, "a failed dial is not worth a line"


def test_a_polite_stop() -> None:
    world = World().start()
    world.a.write(1, 0, b"s" * 4096)
    world.run(1 * S)
    world.a.peer.stop(world.now)
    world.run(1 * S)
    assert world.a.peer.conn is Conn.STANDALONE and world.a.peer.next_deadline() is None
    assert world.a.peer.pair_state is PairState.SIMPLEX
    assert world.b.peer.conn is Conn.WF_CONNECTION and world.b.peer.pair_state is PairState.SUSPENDED
    assert "conn( Connected -> TearDown )" in world.b.text()
    metadata = Metadata.from_bytes(world.a.backend.saved)
    assert not metadata.crashed_primary and not metadata.active
    world.a.write(2, 8192, b"t" * 4096)
    world.a.peer.start(world.now)
    world.run(2 * S)
    assert whole(world)


# --- writes and epochs --------------------------------------------------------------------------------------------


def test_flags_sequence_and_block_ids() -> None:
    world = World(dialler={"protocol_max": 99}, listener={}).start()
    world.a.write(7, 0, bytes(200 << 10), fua=True)
    world.run(1 * S)
    sent = [(fields, body) for command, fields, body in packets(world, world.a, 99) if command == Cmd.DATA]
    assert [fields[0] for fields, _ in sent] == [0, 256]
    assert [int.from_bytes(fields[1], "big") for fields, _ in sent] == [7, 1 << 48 | 7]  # type: ignore[arg-type]
    assert [fields[2] for fields, _ in sent] == [1, 2]
    assert {fields[3] for fields, _ in sent} == {DpFlag.RW_SYNC | DpFlag.FUA}
    assert [len(body) for _, body in sent] == [4 + (128 << 10), 4 + (72 << 10)]
    assert world.a.completions == [(7, "acked")]
    rows = list(world.a.peer.last_writes)
    assert [row[0] for row in rows] == [7, 7] and {row[6] for row in rows} == {WriteStage.ACKED}


def test_flags_at_101() -> None:
    world = World().start()
    world.a.write(1, 0, bytes(512))
    world.run(1 * S)
    flags = [fields[3] for command, fields, _ in packets(world, world.a) if command == Cmd.DATA]
    assert flags == [0x102]


def test_trims_without_the_feature_are_zeroes_on_the_wire() -> None:
    world = World(listener={"features": Feature.WSAME}).start()
    world.a.write(1, 0, b"z" * 8192)
    world.a.trim(2, 512, 4096)
    world.run(1 * S)
    commands = [command for command, _, _ in packets(world, world.a)]
    assert commands.count(Cmd.DATA) == 2 and Cmd.TRIM not in commands
    assert whole(world)


def epochs(world: World, side: Side) -> list[int]:
    """Writes before each barrier that a side sent."""
    counts, writes = [], 0
    for command, _, _ in packets(world, side):
        if command in (Cmd.DATA, Cmd.TRIM):
            writes += 1
        elif command == Cmd.BARRIER:
            counts.append(writes)
            writes = 0
    assert writes == 0, "every epoch is closed when nothing is under way"
    return counts


def test_epochs_end_with_a_completion_a_flush_and_2048_writes() -> None:
    world = World().start()
    for write_no in range(1, 4):
        world.a.write(write_no, 4096 * write_no, bytes(4096))
    assert (world.a.peer.epoch, world.a.peer.epoch_writes) == (1, 3)
    world.a.peer.close_epoch(world.now)
    assert (world.a.peer.epoch, world.a.peer.epoch_writes) == (2, 0)
    world.a.write(4, 0, bytes(512))
    world.run(1 * S)
    world.a.write(5, 0, bytes(512))
    world.run(1 * S)
    for write_no in range(100, 100 + 2049):
        world.a.write(write_no, 0, bytes(512))
    world.run(1 * S)
    assert epochs(world, world.a) == [3, 1, 1, 2048, 1]
    answers = [fields[1] for command, fields, _ in packets(world, world.b) if command == Cmd.BARRIER_ACK]
    assert answers == [3, 1, 1, 2048, 1]
    assert world.a.peer.conn is Conn.CONNECTED
    assert world.a.peer.queues() == {"unacked_writes": 0, "outgoing_bytes": 0}
    assert len(world.a.peer.last_writes) == 256


def test_the_event_log_of_a_write() -> None:
    world = World().start()
    world.a.write(9, 1024, b"e" * 512)
    assert world.a.peer.queues() == {"unacked_writes": 1, "outgoing_bytes": 512}
    world.run(1 * S)
    checksum = world.a.peer.last_writes[-1][3]
    assert world.a.traced(Event.REPL_SEND) == world.b.traced(Event.REPL_RECEIVE) == [(9, 2, 512, checksum)]
    assert world.b.traced(Event.REPL_STORE) == [(9, 2, 512, checksum)]
    assert world.b.traced(Event.REPL_ACK_SENT) == world.a.traced(Event.REPL_ACK_RECEIVED) == [(9, 2)]
    assert world.a.traced(Event.REPL_BARRIER_SENT) == world.a.traced(Event.REPL_BARRIER_ACK) == [(1, 1)]


# --- faults -------------------------------------------------------------------------------------------------------


class Fault(Hooks):
    """One fault at the second write."""

    def __init__(self, **what: object) -> None:
        self.what = what

    def sent_data(self, write_no: int, data: bytes) -> bytes:
        return b"\xff" + data[1:] if "sent" in self.what and write_no == 2 else data

    def received_data(self, write_no: int, data: bytes) -> bytes:
        return data[:-1] + b"\xff" if "received" in self.what and write_no == 2 else data

    def ack(self, write_no: int) -> AckPlan:
        plan = self.what.get("ack")
        return plan if isinstance(plan, AckPlan) and write_no == 2 else AckPlan("ack", 0)

    def barrier_count(self, count: int) -> int:
        return count + 1 if self.what.pop("count", None) else count

    def stall_ns(self, write_no: int) -> int:
        stall = self.what.get("stall", 0)
        return stall if isinstance(stall, int) and write_no == 2 else 0


def three_writes(**what: object) -> World:
    """Three writes; the second meets the fault."""
    world = World(both={"timeout_ns": S, "ko_count": 2}).start("a")
    world.a.hooks = world.b.hooks = Fault(**what)
    world.a.peer._link.faults = world.b.peer._link.faults = world.a.hooks
    for write_no in (1, 2, 3):
        world.a.write(write_no, 65536 * write_no, bytes([write_no]) * 65536)
    return world


@pytest.mark.parametrize("where", ["sent", "received"])
def test_a_flipped_bit_on_the_way(where: str) -> None:
    """As in the golden integrity-mtu1500 logs: the receiver logs and drops, there is no NEG_ACK, a resync mends it."""
    world = three_writes(**{where: True})
    world.run(5 * S)
    wanted = [
        "block drbd0: Digest integrity check FAILED: 256s +65536",
        "drbd r0: error receiving Data, e: -5 l: 65540!",
        "drbd r0: peer( Primary -> Unknown ) conn( Connected -> ProtocolError ) pdsk( UpToDate -> DUnknown ) ",
        "drbd r0: ack_receiver terminated",
        "drbd r0: Terminating drbd_a_r0",
        "drbd r0: Connection closed",
        "drbd r0: conn( ProtocolError -> Unconnected ) ",
        "drbd r0: receiver terminated",
        "drbd r0: Restarting receiver thread",
        "drbd r0: receiver (re)started",
        "drbd r0: conn( Unconnected -> WFConnection ) ",
    ]
    at = world.b.lines.index(wanted[0])
    assert world.b.lines[at : at + len(wanted)] == wanted
    assert "sock was shut down by peer" in world.a.text()
    assert "conn( Connected -> BrokenPipe )" in world.a.text()
    assert re.search(r"new current UUID \w+:\w+:0{16}:0{16}", world.a.text())
    assert (
        "uuid_compare()=1 by rule 70" in world.a.text() and "uuid_compare()=-1 by rule 50" in world.b.text()
    )
    assert Cmd.NEG_ACK not in [command for command, _, _ in packets(world, world.b)]
    assert world.a.completions[-2:] == [(2, "unreplicated"), (3, "unreplicated")]
    assert [args[:2] for args in world.b.traced(Event.REPL_DIGEST_FAILED)] == [(256, 65536)]
    assert whole(world)


def test_a_negative_ack_is_quiet_and_mended_later() -> None:
    world = three_writes(ack=AckPlan("neg"))
    before = len(world.a.lines)
    world.run(5 * S)
    assert world.a.completions == [(1, "acked"), (2, "negative"), (3, "acked")]
    assert world.a.lines[before:] == [] and world.a.peer.conn is Conn.CONNECTED
    assert not world.equal() and world.a.backend.metadata.bitmap.count == 16
    world.a.peer.request_resync(world.now)
    world.run(2 * S)
    assert whole(world) and world.a.backend.metadata.bitmap.count == 0


def test_a_lost_ack_times_out() -> None:
    world = three_writes(ack=AckPlan("lost"))
    world.run(1900 * MS)
    assert world.a.completions == [(1, "acked"), (3, "acked")]
    assert world.a.peer.conn is Conn.CONNECTED
    world.run(3 * S)
    found = re.search(
        r"block drbd0: Remote failed to finish a request within (\d+)ms > ko-count \(2\) \* timeout \(10 \* 0.1s\)",
        world.a.text(),
    )
    assert found and int(found[1]) == 2000
    assert "conn( Connected -> Timeout )" in world.a.text()
    assert world.a.completions[-1] == (2, "unreplicated")
    assert whole(world)


def test_a_late_ack_delays_its_barrier() -> None:
    world = three_writes(ack=AckPlan("ack", 500 * MS))
    start = world.now
    world.run(5 * S)
    assert world.a.completions == [(1, "acked"), (3, "acked"), (2, "acked")]
    assert world.a.peer.conn is Conn.CONNECTED and whole(world)
    acks = [args[0] for args in world.a.traced(Event.REPL_ACK_RECEIVED)]
    assert acks == [1, 3, 2]
    order = [
        event for event, _ in world.a.events if event in (Event.REPL_ACK_RECEIVED, Event.REPL_BARRIER_ACK)
    ]
    assert order == [Event.REPL_ACK_RECEIVED] * 3 + [Event.REPL_BARRIER_ACK]
    late = [time for time, name, _, _ in world.records if name == "b" and time > start + 400 * MS]
    assert late[0] == start + HOP_NS + 500 * MS


def test_a_repeated_ack_drops_the_link() -> None:
    world = three_writes(ack=AckPlan("repeated"))
    world.run(5 * S)
    assert "got_BlockAck: failed to find request 0x0200000000000000, sector 256s" in world.a.text()
    assert "conn( Connected -> NetworkFailure )" in world.a.text()
    assert world.a.traced(Event.REPL_UNKNOWN_ACK) == [(2, 256)]
    assert whole(world)


def test_a_wrong_barrier_count() -> None:
    world = three_writes(count=True)
    world.run(5 * S)
    assert "drbd r0: BAD! BarrierAck #1 received with n_writes=4, expected n_writes=3!" in world.a.lines
    assert "conn( Connected -> ProtocolError )" in world.a.text()
    assert whole(world)


@pytest.mark.parametrize("kind", ["lost", "misdirected", "rotten"])
def test_storage_faults_are_found_by_a_scrub_and_mended_from_the_primary(kind: str) -> None:
    world = World().start("a")

    class Storing(Hooks):
        def store(self, write_no: int, offset_bytes: int, data: bytes, backend: object) -> None:
            if kind != "lost":
                at = offset_bytes + 4096 if kind == "misdirected" else offset_bytes
                world.b.backend.write(at, data if kind == "misdirected" else b"\0" + data[1:])

    world.b.peer._link.faults = Storing()
    world.a.write(1, 8192, b"v" * 4096)
    world.run(1 * S)
    assert world.a.completions == [(1, "acked")] and not world.equal()
    world.b.peer.mark_out_of_sync(8192, 8192)
    world.b.peer.request_resync(world.now)
    world.run(3 * S)
    assert whole(world)
    assert not world.b.backend.metadata.damaged


def test_a_scrub_s_find_between_two_secondaries() -> None:
    """Without a primary the UUIDs tell no difference: the disk that says it is inconsistent becomes the target."""
    world = World().start("a")
    world.a.peer.set_role(world.now, Role.SECONDARY)
    world.run(1 * S)
    world.b.backend.write(4096, b"rot" + bytes(509))
    world.b.peer.mark_out_of_sync(4096, 512)
    world.b.peer.request_resync(world.now)
    world.run(3 * S)
    assert "Becoming sync target due to disk states." in world.b.text()
    assert whole(world)


def test_a_primary_reads_damaged_blocks_back() -> None:
    world = World().start("a")
    for write_no in range(40):
        world.a.write(write_no, 4096 * write_no, bytes([write_no]) * 4096)
    world.run(1 * S)
    world.a.backend.data[: 40 * 4096] = bytes(40 * 4096)
    world.a.peer.mark_out_of_sync(0, 40 * 4096)
    world.a.peer.request_resync(world.now)
    world.run_until(lambda: Cmd.DATA_REQUEST in [command for command, _, _ in packets(world, world.a)])
    world.a.write(100, 512, b"new" * 512)
    world.run(3 * S)
    assert whole(world)
    assert world.a.backend.data[39 * 4096] == 39


def test_a_stall_holds_the_data_socket_and_goes_on() -> None:
    world = three_writes(stall=500 * MS)
    world.run(400 * MS)
    assert world.a.completions == [(1, "acked")] and world.b.held
    world.run(1 * S)
    assert world.a.completions == [(1, "acked"), (2, "acked"), (3, "acked")] and not world.b.held
    assert whole(world)


def test_a_long_stall_times_out() -> None:
    world = three_writes(stall=60 * S)
    world.run(8 * S)
    assert "Remote failed to finish a request" in world.a.text()
    assert whole(world)


# --- failures of the link ---------------------------------------------------------------------------------------------


def test_a_silent_peer_is_noticed_by_a_ping() -> None:
    world = World(both={"ping_interval_ns": 2 * S, "ping_timeout_ns": 500 * MS}).start()
    world.run(10 * S)
    assert whole(world), "a healthy idle link answers its pings"
    world._carry = lambda side, item: None  # type: ignore[method-assign]
    world.run(4 * S)
    assert "drbd r0: PingAck did not arrive in time." in world.a.lines
    assert "conn( Connected -> NetworkFailure )" in world.a.text()


def test_the_peer_begins_anew_before_it_was_missed() -> None:
    """Its sockets' end was never seen: the new ones replace the old."""
    world = World(both={"ping_interval_ns": 100 * S}).start("b")
    world.b.write(1, 0, b"k" * 4096)
    world.run(1 * S)
    old = set(world._open)
    world._open.clear()
    world.a.backend.power_cycle()
    world.a.boot()
    world.a.peer.start(world.now)
    world.run(3 * S)
    assert whole(world) and not old & world._open


def test_meta_alone_closing_is_a_network_failure() -> None:
    world = World().start()
    world.a.peer.handle(world.now, ReplicationClosed(world.a.peer._link.meta_socket, "reset"))
    assert "drbd r0: meta connection shut down by peer." in world.a.lines
    assert world.a.peer.conn is Conn.NETWORK_FAILURE
    world.run(2 * S)
    assert whole(world)


GARBAGE = {
    "noise": (False, b"\x00" * 64, "Wrong magic value"),
    "old header": (False, encode_header(0, Cmd.UNPLUG_REMOTE, 0) + bytes(8), "Wrong magic value"),
    "unknown command": (False, encode_header(101, 0x77, 0), "Unexpected data packet"),
    "no handler": (False, encode_header(101, Cmd.BECOME_SYNC_TARGET, 0), "Unexpected data packet BecomeSyncTarget"),
    "write beyond the end": (
        False, encode(101, Cmd.DATA, SIZE_BYTES // 512, bytes(8), 1, 0x102, body=bytes(4 + 512)),
        "request from peer beyond end of local disk: capacity: 2048s < sector: 2048s + size: 512",
    ),
    "trim beyond the end": (False, encode(101, Cmd.TRIM, 2047, bytes(8), 1, 0x40, 1024), "beyond end of local disk"),
    "odd length": (False, encode(101, Cmd.DATA, 0, bytes(8), 1, 0x102, body=bytes(4 + 100)), "error receiving Data"),
    "no data": (False, encode(101, Cmd.DATA, 0, bytes(8), 1, 0x102, body=bytes(4)), "error receiving Data"),
    "no digest": (False, encode(101, Cmd.DATA, 0, bytes(8), 1, 0x102, body=bytes(2)), "error receiving Data"),
    "huge sector": (
        False, encode(101, Cmd.DATA, (1 << 64) - 1, bytes(8), 1, 0x102, body=bytes(4 + 512)), "beyond end"
    ),
    "bitmap out of turn": (False, encode(101, Cmd.BITMAP), "error receiving ReportBitMap"),
    "resync request out of turn": (
        False, encode(101, Cmd.RS_DATA_REQUEST, 0, b"\xff" * 8, 4096, 0), "error receiving RSDataRequest"
    ),
    "resync reply out of turn": (
        False, encode(101, Cmd.RS_DATA_REPLY, 0, b"\xff" * 8, 0, 0, body=bytes(516)), "error receiving RSDataReply"
    ),
    "state of no meaning": (False, encode(101, Cmd.STATE, 0xFFFFFFFF), "error receiving ReportState"),
    "second features": (False, encode(101, Cmd.CONNECTION_FEATURES, 86, 0, 101, b""), "only once"),
    "read beyond the end": (False, encode(101, Cmd.DATA_REQUEST, 2048, bytes(8), 4096, 0), "beyond end"),
    "ack of nothing": (True, encode(101, Cmd.WRITE_ACK, 0, bytes(8), 512, 1), "failed to find request"),
    "barrier ack of nothing": (True, encode(101, Cmd.BARRIER_ACK, bytes(4), 1), "but no epoch in tl!?"),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_drops_the_link_with_a_line_and_it_comes_back(name: str) -> None:
    on_meta, data, text = GARBAGE[name]
    world = World().start("b" if on_meta else "a")
    link = world.b.peer._link
    world.b.peer.handle(world.now, ReplicationData(link.meta_socket if on_meta else link.data_socket, data))
    assert text in world.b.text(), world.b.text()
    assert world.b.peer.conn in (Conn.PROTOCOL_ERROR, Conn.NETWORK_FAILURE)
    world.run(3 * S)
    assert whole(world)


def test_an_unknown_packet_on_the_meta_socket_ends_in_standalone() -> None:
    world = World().start()
    world.b.peer.handle(
        world.now, ReplicationData(world.b.peer._link.meta_socket, encode_header(101, 0x77, 0))
    )
    assert world.b.peer.conn is Conn.STANDALONE
    assert "Unexpected meta packet Unknown (0x0077)" in world.b.text()


def test_reads_are_answered() -> None:
    world = World().start("a")
    world.a.write(1, 4096, b"r" * 4096)
    world.run(1 * S)
    cookie = b"whatever"
    request = encode(101, Cmd.DATA_REQUEST, 8, cookie, 4096, 0)
    world.b.peer.handle(world.now, ReplicationData(world.b.peer._link.data_socket, request))
    world.collect()
    replies = [(f, body) for command, f, body in packets(world, world.b) if command == Cmd.DATA_REPLY]
    assert replies[0][0] == (8, cookie, 0, 0) and replies[0][1][4:] == b"r" * 4096


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("promote_first", [True, False])
def test_a_crashed_primary_is_the_source(promote_first: bool) -> None:
    """Rule 70 when it is promoted alone, rule 40 when both come back as secondaries."""
    world = World().start("a")
    world.a.write(1, 0, b"c" * 4096)
    world.run(1 * S)
    world.a.write(2, 8192, b"d" * 4096)
    world.kill(world.a)
    world.a.backend.data[8192:12288] = b"d" * 4096
    world.a.peer.start(world.now)
    if promote_first:
        world.a.peer.set_role(world.now, Role.PRIMARY)
    world.run(3 * S)
    assert f"uuid_compare()=1 by rule {70 if promote_first else 40}" in world.a.text()
    assert whole(world)
    assert not world.a.peer._link.crashed


def test_a_secondary_that_lost_its_cache_is_the_target() -> None:
    world = World().start("a")
    for write_no in range(10):
        world.a.write(write_no, 4096 * write_no, b"q" * 4096)
        world.run(10 * MS)
    world.kill(world.b)
    assert not world.equal()
    world.b.peer.start(world.now)
    world.run(3 * S)
    assert whole(world)


def test_split_brain_is_refused_and_resolved_by_the_operator() -> None:
    world = World().start("a")
    world.reachable = False
    world.cut()
    world.run(1 * S)
    world.a.write(1, 0, b"left" * 128)
    world.b.peer.set_role(world.now, Role.PRIMARY)
    world.b.write(1, 0, b"right" * 512)
    world.b.peer.set_role(world.now, Role.SECONDARY)
    world.reachable = True
    world.run_until(lambda: "Split-Brain detected but unresolved, dropping connection!" in world.a.text())
    assert world.a.peer.conn is Conn.STANDALONE
    world.b.peer.stop(world.now)
    world.run(1 * S)
    world.b.config["discard_my_data"] = True
    world.b.boot()
    world.b.peer.start(world.now)
    world.a.peer.start(world.now)
    world.run(3 * S)
    assert "Split-Brain detected, manually solved. Sync from this node" in world.a.text()
    assert whole(world)


def test_metadata_there_and_back() -> None:
    metadata = Metadata.fresh(SIZE_BYTES)
    metadata.activate(0, 512)
    metadata.start_generation(0x1234567890ABCDE0, True)
    assert Metadata.from_bytes(metadata.to_bytes()).to_bytes() == metadata.to_bytes()
    for damage in (b"", b"\x80", metadata.to_bytes()[:-5], b"\x81\x01"):
        with pytest.raises(ValueError, match="metadata is damaged"):
            Metadata.from_bytes(damage)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError):
        PeerConfig(dial=True, protocol_min=90)
    with pytest.raises(ValueError):
        PeerConfig(dial=True, features=Feature.WZEROES)
