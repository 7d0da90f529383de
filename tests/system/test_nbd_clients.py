"""Independent NBD clients on our host port's session and store: each would notice if we had the
protocol wrong."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_test_server import NbdTestServer, served

pytestmark = pytest.mark.system

SIZE_BYTES = 64 << 20
PACKAGES = {"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "qemu-io": "qemu-utils", "fio": "fio"}


def run(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is missing: apt install {PACKAGES[argv[0]]}")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (
        f"{argv[0]} exits with {done.returncode}: {done.stdout}{done.stderr}"
    )
    return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdTestServer]:
    with served(tmp_path, SIZE_BYTES) as server:
        yield server


def test_nbdinfo_reads_what_we_offer(server: NbdTestServer) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", server.uri))["exports"]
    assert export["export-size"] == SIZE_BYTES
    expected = {
        "is_rotational": False, "is_read_only": False,
        "can_cache": True, "can_df": False, "can_fast_zero": False, "can_flush": True, "can_fua": True,
        "can_multi_conn": True, "can_trim": True, "can_zero": True,
    }  # fmt: skip
    assert {name: export.get(name) for name in expected} == expected
    sizes = [export[f"block_size_{name}"] for name in ("minimum", "preferred", "maximum")]
    assert sizes == [512, 4096, 32 << 20]


def test_nbdinfo_lists_the_export_and_a_read_only_one_says_so(tmp_path: Path) -> None:
    with served(tmp_path, SIZE_BYTES, read_only=True) as server:
        (export,) = json.loads(run("nbdinfo", "--list", "--json", server.uri))["exports"]
        assert export["export-name"] == ""
        assert export["is_read_only"] is True


def test_nbdcopy_in_and_out_over_several_connections(server: NbdTestServer, tmp_path: Path) -> None:
    before, after = tmp_path / "in", tmp_path / "out"
    data = bytearray()
    for i in range(SIZE_BYTES // 65536):
        data += bytes(65536) if i % 5 == 0 else (i.to_bytes(8, "big") * 8192)
    before.write_bytes(data)
    run("nbdcopy", "--connections=4", "--flush", str(before), server.uri)
    assert server.store.flushes >= 1
    run("nbdcopy", "--connections=4", server.uri, str(after))
    assert after.read_bytes() == data
    assert server.store.scrub(1 << 20) == []


def test_qemu_io_patterns_flush_discard_and_zeroes(server: NbdTestServer) -> None:
    commands = [
        "write -P 0xa5 0 1M", "write -P 0x5a 1M 64k", "write -f -P 0x11 4M 4k", "flush", "read -P 0xa5 0 1M",
        "read -P 0x5a 1M 64k", "discard 512k 256k", "read -P 0 512k 256k", "read -P 0xa5 768k 256k",
        "write -z 1M 4k", "read -P 0 1M 4k", "read -P 0x5a 1028k 60k", "write -P 7 67108352 512",
        "read -P 7 67108352 512", "aio_write -P 1 8M 64k", "aio_write -P 2 9M 64k", "aio_flush",
        "read -P 1 8M 64k", "read -P 2 9M 64k",
    ]  # fmt: skip
    said = run("qemu-io", "-f", "raw", *[word for c in commands for word in ("-c", c)], server.uri)
    assert "verification failed" not in said
    assert "error" not in said.lower()
    assert server.store.flushes >= 2
    assert server.store.read(67108352, 512) == b"\x07" * 512


def test_fio_verifies_random_overwrites(server: NbdTestServer) -> None:
    run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bs=4k-64k",
        "--bs_unaligned=0", "--size=16m", "--io_size=24m", "--iodepth=16", "--verify=crc32c",
        "--verify_fatal=1", "--fsync=64", "--randseed=7", "--eta=never", "--verify_state_save=0",
    )  # fmt: skip
    assert server.store.flushes >= 1
    assert server.store.scrub(1 << 20) == []
