"""The writer's plan in virtual time."""

import msgspec
import pytest

from freezeframe.drivers.hosts.workload import WriteGenerator, WriterConfig
from freezeframe.harness.core.blocks.blockstamp import decode
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.errors import UsageError

VOLUME_BYTES = 1 << 20


def make(**settings: object) -> WriteGenerator:
    defaults: dict[str, object] = {"bytes_total": 64 << 10, "write_bytes": 4096, "queue_depth": 4}
    given = {"uri": "nbd://x", "journal_path": "j", **defaults, **settings}
    return WriteGenerator(msgspec.convert(given, WriterConfig), VOLUME_BYTES)


def places(workload: WriteGenerator) -> list[int]:
    """Run it to the end, each write answered before the next; the lbas in order."""
    found = []
    while (flight := workload.next_write(0)) is not None:
        found.append(flight.write.lba)
        workload.acknowledge(flight.write.write_id, 0)
    return found


def test_sequential_goes_round_its_span() -> None:
    workload = make(start_offset_bytes=8192, span_bytes=12288 + 512)
    assert places(workload) == [16, 24, 32] * 5 + [16]
    assert (workload.acked, workload.bytes_acked, workload.all_sent) == (16, 64 << 10, True)
    assert workload.span_sectors == 24


def test_random_is_decided_by_the_seed() -> None:
    one, same, other = (places(make(pattern="random", seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) > 8


def test_every_sector_says_what_it_is() -> None:
    workload = make(seed=2**40 + 9, volume=3)
    workload.next_write(0)
    flight = workload.next_write(77)
    assert flight is not None
    found = decode(flight.data[512:1024])
    assert found is not None
    assert (
        found.volume,
        found.seed,
        found.lba,
        found.write_id,
        found.write_lba,
        found.time_ns,
    ) == (
        3,
        9,
        9,
        1,
        8,
        77,
    )


def test_queue_depth_and_places_in_flight_hold_the_next_write_back() -> None:
    workload = make(queue_depth=3)
    flights = [workload.next_write(0) for _ in range(4)]
    assert flights[3] is None
    workload.acknowledge(1, 0)
    assert workload.next_write(0) is not None

    narrow = make(queue_depth=8, span_bytes=8192)
    assert [narrow.next_write(0) is not None for _ in range(3)] == [True, True, False]
    narrow.acknowledge(1, 0)
    assert narrow.next_write(0) is None, "write 2 goes where write 0 is still in flight"
    narrow.acknowledge(0, 0)
    again = narrow.next_write(0)
    assert again is not None
    assert (again.write.write_id, again.write.lba) == (2, 0)


def test_rate_limit_without_catching_up() -> None:
    workload = make(rate_limit_bytes_s=4096 * 10)
    assert workload.next_write(0) is not None
    assert workload.next_write(NS_PER_S // 10 - 1) is None
    assert workload.next_deadline(0) == NS_PER_S // 10
    assert workload.next_write(50 * NS_PER_S) is not None
    assert workload.next_write(50 * NS_PER_S) is None
    assert workload.next_deadline(50 * NS_PER_S) == 50 * NS_PER_S + NS_PER_S // 10
    assert make().next_deadline(0) is None


def test_longest_hold_counts_those_that_still_wait() -> None:
    workload = make()
    workload.next_write(100)
    workload.next_write(200)
    workload.acknowledge(0, 350)
    assert workload.longest_hold_ns(400) == 250
    assert workload.longest_hold_ns(1000) == 800
    workload.stopped = True
    assert workload.next_write(1000) is None


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"write_bytes": 0}, "write_bytes"), ({"write_bytes": 1000}, "multiple of 512"),
        ({"write_bytes": 64 << 20}, "32 MiB"), ({"start_offset_bytes": 100}, "start_offset_bytes"),
        ({"start_offset_bytes": -512}, "start_offset_bytes"), ({"span_bytes": 2 << 20}, "volume's size"),
        ({"start_offset_bytes": 1 << 20}, "room for one write"), ({"bytes_total": 5000}, "whole writes"),
        ({"bytes_total": -4096}, "not negative"), ({"queue_depth": 0}, "queue_depth"),
        ({"queue_depth": 1025}, "queue_depth"), ({"volume": -1}, "32 bits"),
        ({"rate_limit_bytes_s": -1}, "rate_limit"), ({"reconnect_limit_s": -1.0}, "reconnect_limit_s"),
    ],
)  # fmt: skip
def test_wrong_configurations_name_the_key(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        make(**settings)
