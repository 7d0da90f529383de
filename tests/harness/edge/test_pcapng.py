"""Capture files: what is written is read back, by us and by Wireshark's tools; a cut file ends
cleanly."""

import contextlib
import os
import resource
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.link.skim import Buffer, encode
from freezeframe.harness.edge.pcapng import (
    END,
    MAX_BLOCK_BYTES,
    CapturedFrame,
    PcapngWriter,
    first_packet_at,
    read_frames,
    retire,
    run_frames,
    runs_of,
    whole_to,
)
from freezeframe.harness.errors import RigError, WireError

GOLDEN = Path(__file__).parents[2] / "golden" / "drbd"
T_NS = 1_795_394_356_942_025_123


def writer(path: Path) -> PcapngWriter:
    return PcapngWriter(
        path,
        interface="repl0",
        snaplen_bytes=0,
        hardware="board",
        system="Linux",
        application="test",
    )


def write(one: PcapngWriter, frames: list[tuple[int, bytes, int]]) -> bool:
    return one.write(encode(frames), len(frames))


def close(one: PcapngWriter) -> None:
    one.close(start_ns=T_NS, end_ns=T_NS + 10**9, frames_received=9, frames_dropped=4)


def plain(frames: list[CapturedFrame]) -> list[tuple[int, bytes, int]]:
    return [(frame.t_ns, frame.data, frame.original_length) for frame in frames]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 2**63 - 1), st.binary(max_size=200), st.integers(0, 2**32 - 1)
            ),
            max_size=6,
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read(tmp_path_factory, batches) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("capture") / "link.pcapng"
    one = writer(path)
    for batch in batches:
        assert write(one, batch)
    close(one)
    assert one.frames == sum(map(len, batches))
    assert plain(list(read_frames(path))) == [frame for batch in batches for frame in batch]


def test_many_frames_in_one_batch(tmp_path: Path) -> None:
    frames = [(T_NS + n, n.to_bytes(3, "big"), 60) for n in range(3000)]
    one = writer(tmp_path / "x.pcapng")
    assert write(one, frames)
    close(one)
    assert plain(list(read_frames(tmp_path / "x.pcapng"))) == frames


def test_the_interface_statistics_say_what_was_received_and_dropped(tmp_path: Path) -> None:
    """Read by the format's own description (section 4.6): a file that hides its losses is taken for
    a whole one."""
    one = writer(tmp_path / "x.pcapng")
    close(one)
    data = (tmp_path / "x.pcapng").read_bytes()
    (size,) = struct.unpack("<I", data[-4:])
    statistics = data[-size:-4]
    assert struct.unpack_from("<III", statistics) == (5, size, 0)
    counts, at = {}, 20  # type, length, interface, and the time in two halves
    while at < len(statistics):
        code, length = struct.unpack_from("<HH", statistics, at)
        if length == 8 and code in (4, 7):  # isb_ifrecv, isb_osdrop
            (counts[code],) = struct.unpack_from("<Q", statistics, at + 4)
        at += 4 + -(-length // 4) * 4
    assert counts == {4: 9, 7: 4}


@given(
    ticks=st.integers(0, 2**64 - 1),
    tsresol=st.integers(0, 255),
    offset_s=st.integers(-(2**63), 2**63 - 1),
)
def test_a_time_that_no_clock_gives_can_be_written_again(
    tmp_path_factory: pytest.TempPathFactory, ticks: int, tsresol: int, offset_s: int
) -> None:
    """Whatever unit and offset a foreign file says."""
    path = tmp_path_factory.mktemp("capture") / "x.pcapng"
    options = struct.pack("<HHB3xHHqHH", 9, 1, tsresol, 14, 8, offset_s, 0, 0)
    described = struct.pack("<IIHHI", 1, 20 + len(options), 1, 0, 0) + options
    packet = struct.pack("<IIIIIII", 6, 36, 0, ticks >> 32, ticks & 0xFFFFFFFF, 4, 4) + b"data"
    section = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    described += struct.pack("<I", 20 + len(options))
    path.write_bytes(section + described + packet + struct.pack("<I", 36))
    (frame,) = read_frames(path)
    assert 0 <= frame.t_ns < 2**63
    one = writer(path.with_name("again.pcapng"))
    assert write(one, [(frame.t_ns, bytes(frame.data), 4)])
    one.close(start_ns=frame.t_ns, end_ns=frame.t_ns, frames_received=1, frames_dropped=0)
    assert plain(list(read_frames(path.with_name("again.pcapng")))) == [(frame.t_ns, b"data", 4)]


def in_growing(path: Path) -> list[tuple[int, bytes, int]]:
    with path.open("rb") as file:
        return plain(
            [one for run in runs_of(file, "x", is_growing=True) for one in run_frames(run)]
        )


class Killed(Exception):
    pass


class Mortal(PcapngWriter):
    """Dies in the middle of the write in which ``budget`` bytes are used up. A kill cannot divide a
    word."""

    budget = 1 << 62

    def _write(self, at: int, *parts: Buffer) -> None:
        whole = b"".join(parts)
        data = whole[: self.budget] if len(whole) > 8 else whole[: self.budget & ~3]
        assert at % 4 == 0
        os.pwrite(self._fd, data, at)
        self.budget -= len(whole)
        if self.budget <= 0:
            raise Killed


def test_a_writer_killed_anywhere_in_an_older_file_leaves_its_own_whole_runs_and_nothing_of_the_old(
    tmp_path: Path,
) -> None:
    """The older frames have the lengths of the new ones, so that half of a new one would fit the
    rest of an old one."""

    def runs(mark: bytes) -> list[list[tuple[int, bytes, int]]]:
        return [
            [(T_NS + n, mark * (n + 20), n + 20) for n in range(at, at + 2)]
            for at in range(0, 8, 2)
        ]

    path = tmp_path / "x.pcapng"
    old = writer(path)
    for run in runs(b"o"):
        write(old, run)
    close(old)
    older, head_bytes = path.read_bytes(), first_packet_at(path.read_bytes())
    counts = []
    for budget in range(1, len(older) + 64):
        path.write_bytes(older)
        retire(path)
        written, one = 0, None
        try:
            Mortal.budget = budget
            one = Mortal(
                path,
                interface="repl0",
                snaplen_bytes=0,
                hardware="board",
                system="Linux",
                application="test",
            )
            for run in runs(b"n"):
                write(one, run)
                written += 1
        except Killed:
            pass
        if one is not None:  # as the kernel does for who is killed
            os.close(one._fd)
        data = path.read_bytes()
        if data[4:8] == END[4:]:
            assert written == 0
            continue
        found = in_growing(path)
        counts.append(len(found) // 2)
        assert found == [frame for run in runs(b"n")[: counts[-1]] for frame in run]
        assert counts[-1] in (written, written + 1)  # killed behind the last byte, it is whole
        at = first_packet_at(data)
        assert at == head_bytes
        assert len(data[at : whole_to(data, at)]) == sum(
            len(encode(run)) for run in runs(b"n")[: counts[-1]]
        )
    assert sorted(set(counts)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("old_frames", [1, 40, 400])
@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_file_written_over_is_as_a_new_one(
    tmp_path: Path, old_frames: int, is_given_up: bool
) -> None:
    old, new = tmp_path / "old.pcapng", tmp_path / "new.pcapng"
    one = writer(old)
    write(one, [(T_NS, b"old" * 50, 150)] * old_frames)
    close(one)
    if is_given_up:
        retire(old)
    for path in (old, new):
        one = writer(path)
        for n in range(30):
            assert write(one, [(T_NS + n, bytes([n]) * 100, 100)])
            assert in_growing(path)[-1] == (T_NS + n, bytes([n]) * 100, 100)
            assert (
                is_given_up or path.stat().st_size == one.size_bytes
            )  # only what was given up is used again
        close(one)
    assert old.read_bytes() == new.read_bytes()


def test_a_length_of_zero_in_a_finished_file_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    one = writer(path)
    for n in range(3):
        write(one, [(T_NS + n, bytes(100), 100)])
    close(one)
    data = bytearray(path.read_bytes())
    at = first_packet_at(data) + 132
    data[at : at + len(END)] = END
    path.write_bytes(data)
    with pytest.raises(WireError, match="block of 0 bytes"):
        list(read_frames(path))


def test_a_file_cut_anywhere_ends_behind_a_whole_frame(tmp_path: Path) -> None:
    frames = [(T_NS + n, bytes(20 + n), 20 + n) for n in range(5)]
    one = writer(tmp_path / "x.pcapng")
    write(one, frames)  # never closed: as a killed writer leaves it
    whole = (tmp_path / "x.pcapng").read_bytes()
    assert plain(list(read_frames(tmp_path / "x.pcapng"))) == frames
    cut = tmp_path / "cut.pcapng"
    before = -1
    for size in range(len(whole) - 300, len(whole), 7):
        cut.write_bytes(whole[:size])
        found = plain(list(read_frames(cut)))
        assert found == frames[: len(found)]
        assert len(found) >= before
        before = len(found)
    close(one)


def test_a_full_disk_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    one = writer(path)
    write(one, [(T_NS, bytes(100), 100)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (one.size_bytes + 150, limits[1]))
        assert not write(one, [(T_NS, bytes(100), 100)] * 3)
        assert not write(one, [])
        assert one.full == os.strerror(27)  # EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    close(one)
    assert len(list(read_frames(path))) == 1


def test_a_place_that_can_neither_be_written_nor_cut_back_is_named() -> None:
    with pytest.raises(RigError, match="/dev/full: No space left"):
        writer(Path("/dev/full"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="no/such"):
        writer(tmp_path / "no" / "such" / "x.pcapng")


@pytest.mark.skipif(
    shutil.which("capinfos") is None, reason="capinfos (Debian package wireshark-common) missing"
)
def test_wireshark_reads_names_times_and_drops(tmp_path: Path) -> None:
    one = writer(tmp_path / "x.pcapng")
    write(one, [(T_NS, bytes(60), 60), (T_NS + 1, bytes(60), 61)])
    close(one)
    command = ["capinfos", "-M", "-S", str(tmp_path / "x.pcapng")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    assert "Number of packets:   2" in told
    assert "1795394356.942025123" in told
    assert "nanoseconds (9)" in told
    assert "Name = repl0" in told
    assert "Capture application: test" in told


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_of_both_byte_orders_and_resolutions(
    tmp_path: Path, order: str, magic: int, unit_ns: int
) -> None:
    path = tmp_path / "x.pcap"
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(head + struct.pack(order + "IIII", 5, 7, 3, 60) + b"abc" + b"\0\0")
    assert plain(list(read_frames(path))) == [(5 * 10**9 + 7 * unit_ns, b"abc", 60)]


def block(kind: int, body: bytes, order: str = ">") -> bytes:
    total = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + total + body + total


def test_big_endian_pcapng_with_other_blocks_and_resolutions(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    section = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
    micro = block(1, struct.pack(">HHI", 1, 0, 0))
    binary = block(1, struct.pack(">HHIHHB3xHHq", 1, 0, 0, 9, 1, 0x8A, 14, 8, 100))
    packets = block(6, struct.pack(">IIIII", 0, 0, 7, 2, 2) + b"ab\0\0")
    packets += block(6, struct.pack(">IIIII", 1, 0, 512, 2, 2) + b"cd\0\0")
    path.write_bytes(
        section
        + micro
        + binary
        + block(0x0BAD, b"skip")
        + packets
        + block(3, struct.pack(">I", 2) + b"ef\0\0")
    )
    assert plain(list(read_frames(path))) == [
        (7000, b"ab", 2),
        (100_500_000_000, b"cd", 2),
        (0, b"ef", 2),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not a capture", "neither pcap nor pcapng"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0, 147), "link type 147 is not read"),
        (
            struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0, 1)
            + struct.pack("<IIII", 0, 0, 2**31, 0),
            "frame of 2147483648 bytes",
        ),
        (block(0x0A0D0D0A, b"\1\2\3\4" + bytes(12)), "byte-order magic"),
        (
            block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
            + struct.pack(">II", 6, MAX_BLOCK_BYTES + 4),
            "block of",
        ),
        (
            block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(6, bytes(20)),
            "interface 0",
        ),
        (
            block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
            + block(1, struct.pack(">HHI", 1, 0, 0))
            + block(6, struct.pack(">IIIII", 0, 0, 0, 99, 99)),
            "packet of 99 bytes",
        ),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(WireError, match=words):
        list(read_frames(path))


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 400), patch=st.binary(min_size=1, max_size=6))
def test_damaged_files_only_raise_wire_errors(tmp_path_factory, at, patch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("damaged") / "x.pcapng"
    one = writer(path)
    write(one, [(T_NS, bytes(60), 60)] * 2)
    close(one)
    data = bytearray(path.read_bytes())
    data[at : at + len(patch)] = patch
    path.write_bytes(data)
    with contextlib.suppress(WireError):
        assert len(list(read_frames(path))) <= 2


def test_golden_capture_is_read_whole() -> None:
    frames = list(read_frames(GOLDEN / "small-handshake.pcap"))
    assert len(frames) == 60
    assert frames[0].t_ns == 1_795_394_356_942_025_000
