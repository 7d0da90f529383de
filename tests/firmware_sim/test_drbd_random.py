"""Random schedules: writes, flushes, cuts, power losses, any splitting of the streams; in the end
the data are equal."""

import random

from drbd_world import MS, SIZE_BYTES, S, Side, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.harness.wire.control import PairState
from freezeframe.harness.wire.drbd import Role

SECTOR = 512


def splitter(seed: int) -> "type[list[bytes]]":
    """Cuts what is sent at random places; long pieces seldom, to stay fast."""
    generator = random.Random(seed)

    def split(data: bytes) -> list[bytes]:
        if generator.random() < 0.5 or len(data) > 200_000:
            return [data]
        pieces, at = [], 0
        while at < len(data) and len(pieces) < 200:
            step = generator.choice([1, 7, 100, 5000, 70_000])
            pieces.append(data[at : at + step])
            at += step
        return [*pieces, data[at:]] if at < len(data) else pieces

    return split  # type: ignore[return-value]


writes = st.tuples(
    st.just("write"),
    st.integers(0, SIZE_BYTES // SECTOR - 1),
    st.sampled_from([1, 3, 8, 8, 8, 16, 128, 600]),
    st.booleans(),
)
trims = st.tuples(
    st.just("trim"),
    st.integers(0, SIZE_BYTES // SECTOR - 1),
    st.sampled_from([1, 8, 40]),
    st.just(False),
)
waits = st.tuples(st.just("wait"), st.sampled_from([50_000, 200_000, MS, 10 * MS, 400 * MS, S]))
others = st.tuples(st.sampled_from(["flush", "cut", "cut", "kill primary", "kill secondary"]))
steps = st.lists(st.one_of(writes, writes, writes, trims, waits, waits, others), max_size=40)


def power_loss(world: World, side: Side, primary: Side, promote_first: bool) -> None:
    world.kill(side)
    side.peer.start(world.now)
    if side is primary:
        if not promote_first:
            world.run(2 * S)
        side.peer.set_role(world.now, Role.PRIMARY)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=steps,
    seed=st.integers(0, 1 << 32),
    version=st.sampled_from([95, 97, 99, 100, 101]),
    algorithm=st.sampled_from(["crc32c", "", "sha256"]),
    name=st.sampled_from("ab"),
)
def test_the_sides_end_equal(
    steps: list[tuple[object, ...]], seed: int, version: int, algorithm: str, name: str
) -> None:
    generator = random.Random(seed)
    world = World(
        seed,
        split=splitter(seed),  # type: ignore[arg-type]
        both={"protocol_max": version, "integrity_alg": algorithm},
    )
    primary = world.side(name)
    world.a.peer.start(world.now)
    world.b.peer.start(world.now)
    primary.peer.set_role(world.now, Role.PRIMARY)
    asked: set[int] = set()
    for number, step in enumerate(steps, 1):
        match step:
            case ("write" | "trim" as kind, int(sector), int(sectors), fua):
                offset = min(sector * SECTOR, SIZE_BYTES - sectors * SECTOR)
                if kind == "trim":
                    primary.trim(number, offset, sectors * SECTOR)
                else:
                    primary.write(number, offset, generator.randbytes(sectors * SECTOR), fua=fua)
                asked.add(number)
            case ("wait", int(duration_ns)):
                world.run(duration_ns)
            case ("flush",):
                primary.peer.close_epoch(world.now)
            case ("cut",):
                world.cut()
            case ("kill primary",):
                power_loss(world, primary, primary, generator.random() < 0.5)
                asked &= {write_no for write_no, _ in primary.completions}
            case ("kill secondary",):
                power_loss(world, primary.other, primary, False)
        world.collect()
    world.run(10 * S)
    assert world.a.peer.pair_state is world.b.peer.pair_state is PairState.FULL_DUPLEX
    assert world.equal()
    answered = [write_no for write_no, _ in primary.completions]
    assert len(answered) == len(set(answered)) and asked <= set(answered)
    assert world.a.backend.metadata.bitmap.count == world.b.backend.metadata.bitmap.count == 0
