"""A plain block device as the host's volume: nothing but the disk that the bench file means is ever
written to."""

import contextlib
import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from workload_process import starter

from freezeframe.drivers.hosts.blockdev import BlockDeviceConnection, BlockDeviceHost, parse_uri
from freezeframe.harness.core.blocks.compare import compare
from freezeframe.harness.core.events import WorkloadDone
from freezeframe.harness.errors import HarnessError, RigError, UsageError, WrongDeviceError

SIZE_BYTES = 16 << 20
BLKPG = 0x1269
"""linux/blkpg.h: add a partition (1) or take it away (2), whether or not the kernel reads any
partition table."""


def command(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "volume.img"
    path.write_bytes(bytes(SIZE_BYTES))
    return path


@pytest.fixture
def disk(file: Path) -> Iterator[str]:
    """A loop device over ``file``."""
    made = subprocess.run(
        ["losetup", "-P", "-f", "--show", str(file)], capture_output=True, text=True, timeout=200
    )
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    yield made.stdout.strip()
    command("losetup", "-d", made.stdout.strip())


def change_partition(disk: str, operation: int) -> None:
    partition = ctypes.create_string_buffer(
        struct.pack("<qqi64s64s4x", 1 << 20, SIZE_BYTES - (1 << 20), 1, b"", b"")
    )
    asked = struct.pack("<iii4xQ", operation, 0, len(partition) - 1, ctypes.addressof(partition))
    with open(disk, "rb") as device:
        fcntl.ioctl(device, BLKPG, asked)


def of_disk(disk: str, file: Path) -> str:
    return f"blockdev://{disk}?serial={file}&size_bytes={SIZE_BYTES}"


@pytest.mark.parametrize(
    "uri",
    ["/dev/sdb", "blockdev:///dev/sdb", "blockdev://host/dev/sdb?size_bytes=1", "blockdev:dev?size_bytes=512",
     "blockdev:///dev/sdb?size_bytes=-5", "blockdev:///dev/sdb?size_bytes=1e9", "blockdev:///dev/sdb?size_bytes=512&x=1",
     "nbd://host/"],
)  # fmt: skip
def test_an_address_that_does_not_say_how_large_the_device_is_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="size_bytes"):
        parse_uri(uri)


def test_a_file_is_read_written_and_flushed(file: Path) -> None:
    host = BlockDeviceHost(f"blockdev://{file}?size_bytes={SIZE_BYTES}")
    data = os.urandom(3 << 20)
    host.write(512, data, fua=True)
    host.flush()
    assert host.read(512, len(data)) == data
    assert file.read_bytes()[512 : 512 + len(data)] == data
    with pytest.raises(RigError, match="ends there"):
        host.read(SIZE_BYTES - 512, 1024)
    host.close()


def test_a_disk_is_read_and_written_past_the_page_cache(disk: str, file: Path) -> None:
    host = BlockDeviceHost(of_disk(disk, file))
    data = os.urandom(1 << 20)
    host.write(4096, data)
    host.flush()
    assert host.read(4096, len(data)) == data
    host.close()
    assert file.read_bytes()[4096 : 4096 + len(data)] == data


def refusal(uri: str) -> HarnessError:
    """Both ways in refuse for the same reason."""
    reasons = []
    for way in (BlockDeviceHost, BlockDeviceConnection):
        with pytest.raises(HarnessError) as refused:
            way(uri)
        reasons.append(refused.value)
    assert str(reasons[0]) == str(reasons[1])
    assert type(reasons[0]) is type(reasons[1])
    return reasons[0]


def test_another_disk_than_the_bench_file_means_is_never_opened(disk: str, file: Path) -> None:
    assert isinstance(refusal(f"blockdev://{disk}?size_bytes={SIZE_BYTES}"), UsageError)
    error = refusal(f"blockdev://{disk}?serial=OTHER&size_bytes={SIZE_BYTES}")
    assert isinstance(error, WrongDeviceError)
    assert "the bench file says 'OTHER'" in str(error)
    error = refusal(f"blockdev://{disk}?serial={file}&size_bytes={SIZE_BYTES + 512}")
    assert isinstance(error, WrongDeviceError)
    assert f"{SIZE_BYTES} bytes" in str(error)
    assert file.read_bytes() == bytes(SIZE_BYTES)


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    assert "No such file" in str(refusal(f"blockdev://{tmp_path}/none?size_bytes=512"))
    assert isinstance(refusal(f"blockdev://{tmp_path}?size_bytes=512"), UsageError)
    assert isinstance(refusal("blockdev:///dev/null?size_bytes=512"), UsageError)


def test_a_mounted_disk_is_refused(disk: str, file: Path, tmp_path: Path) -> None:
    command("mkfs.ext4", "-q", disk)
    point = tmp_path / "point"
    point.mkdir()
    command("mount", disk, str(point))
    try:
        error = refusal(of_disk(disk, file))
    finally:
        command("umount", str(point))
    assert isinstance(error, RigError)
    assert f"mounted on {point}" in str(error)


def test_a_disk_of_which_a_partition_is_mounted_is_refused_and_so_is_the_partition(
    disk: str, file: Path, tmp_path: Path
) -> None:
    change_partition(disk, 1)
    part = f"{disk}p1"
    if not Path(part).exists():
        number = Path(f"/sys/class/block/{Path(part).name}/dev").read_text().strip()
        command("mknod", part, "b", *number.split(":"))
    size = int(Path(f"/sys/class/block/{Path(part).name}/size").read_text()) * 512
    assert "is a partition" in str(refusal(f"blockdev://{part}?serial={file}&size_bytes={size}"))
    command("mkfs.ext4", "-q", part)
    point = tmp_path / "point"
    point.mkdir()
    command("mount", part, str(point))
    try:
        assert f"mounted on {point}" in str(refusal(of_disk(disk, file)))
    finally:
        command("umount", str(point))
        with contextlib.suppress(FileNotFoundError):
            Path(part).unlink()
        change_partition(disk, 2)


def test_a_swap_device_is_refused(disk: str, file: Path) -> None:
    command("mkswap", disk)
    command("swapon", disk)
    try:
        assert "used for swapping" in str(refusal(of_disk(disk, file)))
    finally:
        command("swapoff", disk)


def test_the_writer_holds_the_disk_alone_and_readers_may_look(disk: str, file: Path) -> None:
    connection = BlockDeviceConnection(of_disk(disk, file))
    try:
        with pytest.raises(RigError, match="busy"):
            BlockDeviceConnection(of_disk(disk, file))
        reader = BlockDeviceHost(of_disk(disk, file))
        assert reader.read(0, 512) == bytes(512)
        reader.close()
    finally:
        connection.close()


def test_requests_in_flight_are_answered_each_with_its_own_result(file: Path) -> None:
    connection = BlockDeviceConnection(f"blockdev://{file}?size_bytes={SIZE_BYTES}")
    blocks = {at: os.urandom(4096) for at in range(0, 1 << 20, 4096)}
    cookies = {connection.submit("write", at, data=data): at for at, data in blocks.items()}
    bad = connection.submit("read", SIZE_BYTES, 512)
    assert connection.outstanding == len(blocks) + 1
    done = []
    while connection.outstanding:
        done += connection.pump(10)
    assert {one.cookie for one in done} == {*cookies, bad}
    assert [one.error for one in done if one.cookie == bad] == [5]
    assert not any(one.error for one in done if one.cookie != bad)
    cookie, answers = connection.submit("read", 4096, 8192), []
    while connection.outstanding:  # the last of the writes' wake-ups may come now
        answers += connection.pump(10)
    (answer,) = answers
    assert (answer.cookie, answer.data) == (cookie, blocks[4096] + blocks[8192])
    connection.close()


@pytest.mark.system
def test_the_stamped_writer_on_a_disk_keeps_its_promises(
    disk: str, file: Path, tmp_path: Path
) -> None:
    uri = of_disk(disk, file)
    with starter(tmp_path, "freezeframe.drivers.hosts.writer") as runs:
        run = runs(
            uri,
            pattern="random",
            bytes_total=8 << 20,
            write_bytes=8192,
            queue_depth=32,
            span_bytes=1 << 20,
        )
        done = run.finish()
        assert (done.ok, done.error, done.writes_acked) == (True, "", 1024)
        host = BlockDeviceHost(uri)
        verdict = compare(run.journal(), None, host.read, host.read, host.size_bytes)
        host.close()
    assert (verdict.data_equal, verdict.lost_acked_writes, verdict.acked_writes) == (True, 0, 1024)
    assert not run.journal().at_risk


@pytest.mark.system
def test_writes_that_are_smaller_than_the_disks_blocks_are_a_wrong_bench_file_and_no_failed_device(
    file: Path, tmp_path: Path
) -> None:
    made = subprocess.run(
        ["losetup", "-b", "4096", "-f", "--show", str(file)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    disk = made.stdout.strip()
    try:
        with starter(tmp_path, "freezeframe.drivers.hosts.writer") as runs:
            run = runs(of_disk(disk, file), bytes_total=64 << 10, write_bytes=1024)
            done = run.hear(WorkloadDone)
            assert isinstance(done, WorkloadDone)
            assert (done.ok, done.whose) == (False, "caller")
            assert "write_bytes: a multiple of 4096" in done.error
            assert runs(of_disk(disk, file), bytes_total=64 << 10, write_bytes=8192).finish().ok
    finally:
        command("losetup", "-d", disk)
