"""Two replication peers against each other in virtual time: every fault, garbage, lost links,
crashes."""

import re

import pytest
from drbd_world import HOP_NS, MS, SIZE_BYTES, Hooks, S, World, packets, whole

from freezeframe.firmware_sim.drbd_codec import encode, encode_ack, encode_header
from freezeframe.firmware_sim.drbd_peer import AckPlan
from freezeframe.firmware_sim.ports import ReplicationClosed, ReplicationData
from freezeframe.harness.wire.drbd import Cmd, Conn, Role
from freezeframe.harness.wire.rootcause import EventCode

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
    """As in the golden integrity-mtu1500 logs: the receiver logs and drops, there is no NEG_ACK, a
    resync mends it."""
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
        "uuid_compare()=1 by rule 70" in world.a.text()
        and "uuid_compare()=-1 by rule 50" in world.b.text()
    )
    assert Cmd.NEG_ACK not in [command for command, _, _ in packets(world, world.b)]
    assert world.a.completions[-2:] == [(2, "unreplicated"), (3, "unreplicated")]
    assert [args[:2] for args in world.b.traced(EventCode.REPL_DIGEST_FAILED)] == [(256, 65536)]
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
    acks = [args[0] for args in world.a.traced(EventCode.REPL_ACK_RECEIVED)]
    assert acks == [1, 3, 2]
    order = [
        event
        for event, _ in world.a.events
        if event in (EventCode.REPL_ACK_RECEIVED, EventCode.REPL_BARRIER_ACK)
    ]
    assert order == [EventCode.REPL_ACK_RECEIVED] * 3 + [EventCode.REPL_BARRIER_ACK]
    late = [time for time, name, _, _ in world.records if name == "b" and time > start + 400 * MS]
    assert late[0] == start + HOP_NS + 500 * MS


def test_a_repeated_ack_is_of_a_known_write_until_its_epoch_is_over() -> None:
    """As on a real node (tests/rig): nothing is printed, nothing drops. Behind the barrier's answer
    it drops the link."""
    world = three_writes(ack=AckPlan("repeated"))
    world.run(5 * S)
    assert "failed to find request" not in world.a.text()
    assert world.a.traced(EventCode.REPL_UNKNOWN_ACK) == [(2, 256)]
    assert world.a.peer.conn is Conn.CONNECTED
    link = world.b.peer._link
    link.write(
        link.meta_socket, encode_ack(101, Cmd.WRITE_ACK, 256, (2).to_bytes(8, "big"), 65536, 9)
    )
    world.run(5 * S)
    assert "got_BlockAck: failed to find request 0x0200000000000000, sector 256s" in world.a.text()
    assert "conn( Connected -> NetworkFailure )" in world.a.text()
    assert whole(world)


def test_a_peer_that_does_not_drain_its_socket() -> None:
    """The kernel warns each time no byte has left for the timeout, once the first wait is over."""
    world = World(both={"timeout_ns": S, "ko_count": 7}).start("a")
    world.b.hooks = world.b.peer._link.faults = Fault(stall=60 * S)
    for write_no in range(1, 41):
        world.a.write(write_no, 4096 * write_no, bytes(32768))
    at = len(world.a.lines)
    world.run(10 * S)
    warnings = [line for line in world.a.lines[at:] if "sock_sendmsg" in line]
    assert warnings == [
        f"drbd r0: [drbd_w_r0/1] sock_sendmsg time expired, ko = {left}" for left in (6, 5, 4, 3, 2)
    ]
    assert "Remote failed to finish a request within 7000ms > ko-count (7)" in world.a.text()
    assert "conn( Connected -> Timeout )" in world.a.text()


def test_a_wrong_barrier_count() -> None:
    world = three_writes(count=True)
    world.run(5 * S)
    assert (
        "drbd r0: BAD! BarrierAck #1 received with n_writes=4, expected n_writes=3!"
        in world.a.lines
    )
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
    """Without a primary the UUIDs tell no difference: the disk that says it is inconsistent becomes
    the target."""
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
    world.run_until(
        lambda: Cmd.DATA_REQUEST in [command for command, _, _ in packets(world, world.a)]
    )
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
    world.b.peer.handle(
        world.now, ReplicationData(link.meta_socket if on_meta else link.data_socket, data)
    )
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
    replies = [
        (f, body) for command, f, body in packets(world, world.b) if command == Cmd.DATA_REPLY
    ]
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
    world.run_until(
        lambda: "Split-Brain detected but unresolved, dropping connection!" in world.a.text()
    )
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
