"""The pair in virtual time: what a healthy one does, warmstarts, power losses, each fault, each
mutant."""

import random

import cbor2
import pytest

from freezeframe.firmware_sim.control import BreakDetector, Frame, encode
from freezeframe.firmware_sim.faults import ACK_KINDS, STORE_KINDS
from freezeframe.firmware_sim.invariants import sets_of, violations
from freezeframe.firmware_sim.managed import Phase
from freezeframe.firmware_sim.mutants import MUTANTS
from freezeframe.firmware_sim.world import SERIAL_NUMBERS, World
from freezeframe.harness.wire import control as wire
from freezeframe.harness.wire.control import Op, PairState, Reason, Status
from freezeframe.harness.wire.drbd import Role
from freezeframe.harness.wire.faults import FAULTS, FaultKind
from freezeframe.harness.wire.rootcause import RECORD, STATE_KEYS, EventCode

INCIDENT = bytes(range(16))


def started(seed: int = 1, **arguments: object) -> World:
    world = World(seed, **arguments)  # type: ignore[arg-type]
    world.run_until(lambda: world.full_duplex, limit_s=10)
    return world


def freeze(world: World, side: str, op: Op = Op.WARMSTART, epoch: int | None = None) -> int:
    boot = world.controller(side).boot_epoch if epoch is None else epoch
    name = SERIAL_NUMBERS[side].encode()
    return world.control(side, op, wire.FREEZE.pack(name, boot, Reason.CONSOLE_TRIGGER, INCIDENT))


def arm(world: World, side: str, kind: str, **keys: int) -> None:
    target = wire.TARGET.pack(SERIAL_NUMBERS[side].encode(), world.controller(side).boot_epoch)
    plan = {"seed": world.seed, "faults": [{"kind": kind, "side": side, **keys}]}
    reply = world.reply(side, world.control(side, Op.SET_FAULTS, target + cbor2.dumps(plan)))
    assert reply.payload[0] == Status.OK, reply.payload


def write_some(
    world: World, writes: int, *, seed: int = 7, length_bytes: int = 4096, first: int = 0
) -> None:
    rng = random.Random(seed)
    for number in range(first, first + writes):
        world.write(number * length_bytes % world.size_bytes, rng.randbytes(length_bytes))


def settle(world: World, limit_s: float = 20) -> None:
    """Until every host request is answered and the pair is whole again."""
    world.run_until(lambda: not any(world.drain()) and world.full_duplex, limit_s)
    world.run_for(0.5)


def test_a_fresh_pair_comes_to_full_duplex_and_copies_writes() -> None:
    world = started()
    assert world.controller("primary").peer.role is Role.PRIMARY
    assert world.controller("secondary").peer.role is Role.SECONDARY
    write_some(world, 40)
    world.flush()
    world.trim(8192, 4096)
    settle(world)
    assert violations(world) == {}
    assert world.content("secondary")[: 2 * 4096] == random.Random(7).randbytes(2 * 4096)
    assert "pair state: simplex -> " in world.console("primary")
    assert " -> full duplex\r\n" in world.console("secondary")
    assert "host: " in world.console("primary")


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> str:
        world = started(seed)
        write_some(world, 10)
        settle(world)
        return world.console("primary") + world.console("secondary")

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_the_secondary_serves_reads_only() -> None:
    world = started()
    write_some(world, 1)
    settle(world)
    assert world.read("secondary", 0, 4096) == world.content("primary")[:4096]
    request = world.connect_host("secondary").request("write", 0, 512, bytes(512))
    world.run_until(lambda: request.done)
    assert request.error == 1


def test_a_warmstart_of_the_primary_under_load_holds_the_host_and_loses_nothing() -> None:
    world = started()
    write_some(world, 64)
    world.run_until(lambda: sum(item.done for item in world.requests) >= 10)
    seq = freeze(world, "primary")
    write_some(world, 64, seed=8, first=64)
    reply = world.reply("primary", seq)
    set_id, boot_epoch, _, _ = wire.FREEZE_REPLY.unpack(reply.payload[1:])
    assert reply.payload[0] == Status.OK and boot_epoch == 2
    assert not world.full_duplex
    settle(world)
    assert violations(world) == {}
    assert all(item.done for item in world.requests)
    (content,) = sets_of(world, "primary")
    assert content["header"]["set_id"] == set_id
    assert content["header"]["incident_id"] == INCIDENT
    assert tuple(content["state"]) == STATE_KEYS
    assert content["state"]["pair_state"] == PairState.FULL_DUPLEX
    assert content["state"]["last_writes"]
    codes = [record[2] for record in RECORD.iter_unpack(content["events"])]
    assert (
        EventCode.HOST_WRITE in codes
        and EventCode.REPL_SEND in codes
        and EventCode.REPL_ACK_RECEIVED in codes
    )


def test_both_sides_warmstart_at_once() -> None:
    world = started()
    write_some(world, 64)
    world.run_until(lambda: sum(item.done for item in world.requests) >= 10)
    seqs = {side: freeze(world, side) for side in ("primary", "secondary")}
    for side, seq in seqs.items():
        assert world.reply(side, seq).payload[0] == Status.OK
    settle(world)
    assert violations(world) == {}
    assert world.console("secondary").count("boot epoch") == 2


def test_repeated_warmstarts_keep_one_event_log() -> None:
    world = started()
    for turn in range(3):
        write_some(world, 20, seed=turn, first=20 * turn)
        world.run_for(0.001)
        freeze(world, "primary")
        world.run_for(0.02)
        settle(world)
    assert len(sets_of(world, "primary")) == 3
    assert violations(world) == {}


def test_a_state_save_does_not_disturb() -> None:
    world = started()
    write_some(world, 30)
    seq = freeze(world, "secondary", Op.STATE_SAVE)
    assert world.reply("secondary", seq).payload[0] == Status.OK
    settle(world)
    assert world.console("secondary").count("boot epoch") == 1
    assert violations(world) == {}


def test_a_frame_for_another_boot_is_refused_and_told() -> None:
    world = started()
    reply = world.reply("primary", freeze(world, "primary", epoch=99))
    assert reply.payload[0] == Status.STALE_EPOCH
    assert "control: warmstart refused: boot epoch is 1, not 99" in world.console("primary")
    assert world.full_duplex


def test_the_frame_again_after_the_restart_gets_the_same_answer_and_no_second_restart() -> None:
    world = started()
    payload = wire.FREEZE.pack(SERIAL_NUMBERS["primary"].encode(), 1, 0, INCIDENT)
    first = world.reply("primary", world.control("primary", Op.WARMSTART, payload, seq=900))
    settle(world)
    world.nodes["primary"].replies["control"].clear()
    again = world.reply("primary", world.control("primary", Op.WARMSTART, payload, seq=900))
    assert again == first
    world.run_for(1)
    assert world.controller("primary").boot_epoch == 2


def test_live_state_fits_into_a_frame() -> None:
    world = started()
    write_some(world, 400)
    settle(world)
    reply = world.reply("primary", world.control("primary", Op.GET_STATE))
    state = cbor2.loads(reply.payload[1:])
    assert tuple(state) == STATE_KEYS
    assert state["role"] == Role.PRIMARY and state["last_writes"]


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_a_power_cycle_keeps_sets_and_flushed_data(side: str) -> None:
    world = started()
    write_some(world, 20)
    world.flush()
    freeze(world, side, Op.STATE_SAVE)
    settle(world)
    entries = world.controller(side).sets.entries()
    world.power_off(side)
    world.run_for(0.2)
    world.power_on(side)
    settle(world)
    assert world.controller(side).sets.entries() == entries
    assert world.controller(side).boot_epoch == 2
    assert world.content("primary") == world.content("secondary")
    assert world.content("primary")[: 20 * 4096] == random.Random(7).randbytes(20 * 4096)


@pytest.mark.parametrize("kind", ["write", "trim"])
@pytest.mark.parametrize("fua", [False, True])
def test_what_is_written_with_fua_is_on_the_medium_when_it_is_answered(
    kind: str, fua: bool
) -> None:
    world = started()
    write_some(world, 4)
    world.flush()
    settle(world)
    data = b"\xa5" * 4096 if kind == "write" else b""
    request = world.connect_host("primary").request(kind, 8192, 4096, data, fua=fua)
    world.run_until(lambda: request.done)
    assert world.controller("primary").store.dirty_bytes == (0 if fua else 4096)
    # The flush before was the primary's alone: a barrier does not empty the secondary's cache.
    assert world.controller("secondary").store.dirty_bytes == (0 if fua else 16384)


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_a_warmstart_leaves_nothing_in_the_cache(side: str) -> None:
    """The power may go before the next flush."""
    world = started()
    write_some(world, 20)
    world.run_until(lambda: not any(world.drain()))
    controller = world.controller(side)
    assert controller.store.dirty_bytes == 20 * 4096
    freeze(world, side)
    world.run_until(lambda: controller.phase is not Phase.RUNNING)
    assert controller.store.dirty_bytes == 0


def test_a_secondary_that_loses_power_with_a_full_cache_is_repaired() -> None:
    world = started()
    write_some(world, 50)
    world.run_until(lambda: not any(world.drain()))
    world.power_cycle("secondary")
    settle(world)
    assert world.content("primary") == world.content("secondary")


def test_lost_connections_and_a_cut_link_heal() -> None:
    world = started()
    write_some(world, 30)
    world.run_for(0.001)
    world.drop_connections()
    write_some(world, 30, seed=9, first=30)
    settle(world)
    world.cut_link()
    write_some(world, 5, seed=10)
    world.run_for(2)
    world.heal_link()
    settle(world, 60)
    assert world.content("primary") == world.content("secondary")
    assert not [item for item in world.requests if item.error]


def test_a_hung_warmstart_is_silent_until_the_power_is_cycled() -> None:
    world = started()
    write_some(world, 20)
    settle(world)
    arm(world, "primary", "hung_warmstart")
    assert world.reply("primary", freeze(world, "primary")).payload[0] == Status.OK
    before = world.console("primary")
    world.control("primary", Op.IDENTIFY)
    world.run_for(5)
    assert world.console("primary") == before
    world.power_cycle("primary")
    settle(world)
    assert len(sets_of(world, "primary")) == 1
    assert world.content("primary") == world.content("secondary")
    assert world.content("primary")[: 20 * 4096] == random.Random(7).randbytes(20 * 4096)


def test_a_break_ends_a_hung_warmstart_and_the_host_was_held() -> None:
    world = started()
    write_some(world, 20)
    settle(world)
    arm(world, "primary", "hung_warmstart")
    assert world.reply("primary", freeze(world, "primary")).payload[0] == Status.OK
    write_some(world, 20, seed=8, first=20)
    world.run_for(5)
    assert world.controller("primary").phase is Phase.HUNG and any(world.drain())
    world.send_break("primary")
    settle(world)
    assert violations(world) == {}
    assert len(sets_of(world, "primary")) == 1
    assert world.content("primary")[: 20 * 4096] == random.Random(7).randbytes(20 * 4096)


def test_a_break_does_not_end_a_warmstart_that_hangs_again() -> None:
    world = started()
    arm(world, "secondary", "hung_warmstart", count=2)
    assert world.reply("secondary", freeze(world, "secondary")).payload[0] == Status.OK
    world.send_break("secondary")
    world.run_for(5)
    assert world.controller("secondary").phase is Phase.HUNG
    world.power_cycle("secondary")
    settle(world)
    assert len(sets_of(world, "secondary")) == 1


def test_a_break_restarts_who_runs_with_a_set_of_no_incident_and_not_who_boots() -> None:
    world = started()
    write_some(world, 20)
    world.send_break("secondary")
    world.run_until(lambda: world.controller("secondary").phase is Phase.BOOTING)
    booting = world.controller("secondary").boot_epoch
    world.send_break("secondary")
    settle(world)
    assert world.controller("secondary").boot_epoch == booting
    (content,) = sets_of(world, "secondary")
    assert content["header"]["incident_id"] == bytes(16)
    assert violations(world) == {}


@pytest.mark.parametrize("size", [1, 2, 7, 31, 32, 33, 500])
def test_the_nulls_of_a_break_are_found_once_in_any_pieces(size: int) -> None:
    frame = encode(Frame(Op.IDENTIFY, 1, bytes(64)))
    data = frame * 3 + bytes(wire.BREAK_NULS) + frame + bytes(wire.BREAK_NULS + 40) + b"x" + frame
    for quiet in (frame * 3, bytes(wire.BREAK_NULS - 1) + b"x" + bytes(wire.BREAK_NULS - 1)):
        detector = BreakDetector()
        pieces = [quiet[at : at + size] for at in range(0, len(quiet), size)]
        assert not any(detector.feed(piece) for piece in pieces)
    detector = BreakDetector()
    found = sum(detector.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert found == (1 if size >= len(data) else 2)


@pytest.mark.parametrize(
    ("kind", "side", "line"),
    [
        ("bit_flip_sender", "secondary", "Digest integrity check FAILED"),
        ("bit_flip_receiver", "secondary", "Digest integrity check FAILED"),
        ("bit_flip_store", "secondary", "Out of sync: start="),
        ("lost_write", "secondary", "Out of sync: start="),
        ("misdirected_write", "secondary", "Out of sync: start="),
        ("wrong_barrier_count", "primary", "BAD! BarrierAck"),
    ],
)
def test_a_fault_is_told_and_warmstarts_repair_it(kind: str, side: str, line: str) -> None:
    world = started()
    arm(world, FAULTS[FaultKind(kind)].side, kind, at_write=20)
    write_some(world, 40)
    world.run_until(lambda: line in world.console(side), limit_s=10)
    for target in ("primary", "secondary"):
        freeze(world, target)
    world.run_for(0.01)
    write_some(world, 10, seed=3, first=60)
    settle(world)
    found = violations(world)
    found.pop("consoles_tell_no_error")
    if FaultKind(kind) in STORE_KINDS:
        assert len(found.pop("acks_follow_stores")) == 1, "the write whose storing went wrong"
    assert found == {}
    fired = sets_of(world, FAULTS[FaultKind(kind)].side)[0]
    assert EventCode.FAULT_FIRED in [record[2] for record in RECORD.iter_unpack(fired["events"])]


@pytest.mark.parametrize("kind", ["neg_ack", "late_ack", "repeated_ack", "stall", "lost_ack"])
def test_an_answer_fault_leaves_the_pair_repairable(kind: str) -> None:
    world = started()
    arm(world, "secondary", kind, at_write=20, delay_ms=300)
    write_some(world, 40)
    world.run_for(0.4)
    for target in ("primary", "secondary"):
        freeze(world, target)
    world.run_for(0.01)
    settle(world)
    assert world.content("primary") == world.content("secondary")
    assert not [item for item in world.requests if item.error]


def test_garbled_console_output_is_not_text() -> None:
    world = started()
    arm(world, "secondary", "console_garble", at_write=5)
    write_some(world, 10)
    settle(world)
    console = world.nodes["secondary"].console
    assert any(byte >= 0x80 for byte in console)
    assert 0 not in console


# --- autonomic mode ----------------------------------------------------------------------------------------
ANSWER_FAULTS = [str(kind) for kind in (*ACK_KINDS, FaultKind.WRONG_BARRIER_COUNT)]


@pytest.mark.parametrize("kind", ["bit_flip_sender", "bit_flip_store", *ANSWER_FAULTS])
def test_the_secondary_alone_instructs_the_primary(kind: str) -> None:
    world = started(autonomic=True)
    delay = {"delay_ms": 2000} if FAULTS[FaultKind(kind)].has_delay else {}
    arm(world, FAULTS[FaultKind(kind)].side, kind, at_write=20, **delay)
    write_some(world, 40)
    world.run_until(
        lambda: all(
            world.console(side).count("boot epoch") == 2 for side in ("primary", "secondary")
        ),
        10,
    )
    settle(world)
    (first,) = sets_of(world, "primary")
    (second,) = sets_of(world, "secondary")
    assert first["header"]["reason"] == Reason.PEER_TRIGGER
    assert second["header"]["reason"] == Reason.SELF
    assert first["header"]["incident_id"] == second["header"]["incident_id"]
    assert world.content("primary") == world.content("secondary")
    assert not [item for item in world.requests if item.error]


def test_autonomic_mode_is_quiet_on_a_healthy_pair() -> None:
    world = started(autonomic=True)
    write_some(world, 100)
    settle(world)
    world.run_for(5)
    assert violations(world) == {}
    assert all(world.controller(side).boot_epoch == 1 for side in ("primary", "secondary"))


def test_autonomic_mode_finds_the_primary_again_after_its_restart() -> None:
    world = started(autonomic=True)
    freeze(world, "primary")
    world.run_for(0.2)
    settle(world)
    arm(world, "secondary", "neg_ack")
    write_some(world, 3)
    world.run_until(lambda: world.controller("primary").boot_epoch == 3, 10)


# --- mutants -----------------------------------------------------------------------------------------------
def exercise(world: World) -> None:
    """One run that a healthy pair passes without a violation."""
    for side in ("primary", "secondary"):
        world.reply(side, world.control(side, Op.IDENTIFY))
    write_some(world, 40)
    world.flush()
    world.run_for(0.002)
    freeze(world, "primary", Op.STATE_SAVE)
    write_some(world, 40, seed=2, first=40)
    for side in ("primary", "secondary"):
        freeze(world, side)
    world.run_for(3)
    for side in ("primary", "secondary"):
        freeze(world, side, Op.STATE_SAVE)
    world.run_for(0.1)


def test_the_healthy_pair_passes_what_the_mutants_are_put_through() -> None:
    world = started()
    exercise(world)
    assert violations(world) == {}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_turns_its_check_red(name: str) -> None:
    side, firmware, check = MUTANTS[name]
    world = World(1, controllers={side: firmware})
    world.run_until(lambda: world.full_duplex, limit_s=10)
    exercise(world)
    assert check in violations(world), f"repeat: pytest -k 'each_mutant and {name}'"
