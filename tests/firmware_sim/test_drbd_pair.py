"""Two replication peers against each other in virtual time: set-up, writes, epochs."""

import pytest
from drbd_world import MS, SIZE_BYTES, S, Side, World, packets, whole

from freezeframe.firmware_sim.drbd_peer import Metadata, PeerConfig
from freezeframe.harness.wire.control import PairState
from freezeframe.harness.wire.drbd import Cmd, Conn, DpFlag, Feature, Role
from freezeframe.harness.wire.rootcause import EventCode, WriteStage

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
    """Line by line what integrity-mtu1500-a.console.log's node printed, but for helpers and
    numbers."""
    world = World().start()
    kernel = """\
drbd r0: conn( StandAlone -> Unconnected )\x20
drbd r0: conn( Unconnected -> WFConnection )\x20
drbd r0: Handshake successful: Agreed network protocol version 101
drbd r0: Feature flags enabled on protocol level: 0x5 TRIM WRITE_SAME.
drbd r0: conn( WFConnection -> WFReportParams )\x20
drbd r0: Starting ack_recv thread (from drbd_r_r0 [1])
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
    gave_up = world.a if world.a.peer.conn is Conn.STANDALONE else world.b
    # The kernel says so where it gives up before there are parameters to exchange.
    assert ("Discarding network configuration." in gave_up.text()) == (name != "digest")
    assert gave_up.lines[-3:] == [
        "drbd r0: conn( Disconnecting -> StandAlone ) ", "drbd r0: receiver terminated", "drbd r0: Terminating drbd_r_r0"
    ]  # fmt: skip


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
    assert (
        world.b.peer.conn is Conn.WF_CONNECTION and world.b.peer.pair_state is PairState.SUSPENDED
    )
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
    sent = [
        (fields, body)
        for command, fields, body in packets(world, world.a, 99)
        if command == Cmd.DATA
    ]
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
    answers = [
        fields[1] for command, fields, _ in packets(world, world.b) if command == Cmd.BARRIER_ACK
    ]
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
    assert (
        world.a.traced(EventCode.REPL_SEND)
        == world.b.traced(EventCode.REPL_RECEIVE)
        == [(9, 2, 512, checksum)]
    )
    assert world.b.traced(EventCode.REPL_STORE) == [(9, 2, 512, checksum)]
    assert (
        world.b.traced(EventCode.REPL_ACK_SENT)
        == world.a.traced(EventCode.REPL_ACK_RECEIVED)
        == [(9, 2)]
    )
    assert (
        world.a.traced(EventCode.REPL_BARRIER_SENT)
        == world.a.traced(EventCode.REPL_BARRIER_ACK)
        == [(1, 1)]
    )


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
