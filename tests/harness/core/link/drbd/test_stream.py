"""DRBD packets out of bytes: against tshark's dissection of real nodes' captures, and cut in every
way."""

import gzip
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.link.drbd.protocol import DrbdLink
from freezeframe.harness.core.link.drbd.stream import (
    BadBytes,
    DrbdPacket,
    DrbdStream,
    allowed_headers,
)
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import Reassembler, StreamData
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.wire import drbd, drbdnames
from freezeframe.harness.wire.drbd import Cmd

GOLDEN = Path(__file__).parents[4] / "golden" / "drbd"
CAPTURES = ("small-handshake", "small-failure")
TSHARK_OPTIONS = ("-T", "json", "--enable-heuristic", "drbd_tcp", "--disable-protocol", "tcpencap")


def seen_packets(path: Path) -> list[DrbdPacket]:
    seen: list[DrbdPacket] = []

    def tap(_: str, packet: DrbdPacket) -> None:
        body = memoryview(bytes(packet.body))
        seen.append(msgspec.structs.replace(packet, body=body))

    reassembler, follower = Reassembler(), Follower(DrbdLink(LinkOptions(), tap))
    for number, frame in enumerate(read_frames(path), 1):
        for event in reassembler.feed(frame.t_ns, frame.data, number):
            list(follower.on(event))
    assert reassembler.gaps == 0
    return seen


class Pairs(list[tuple[str, Any]]):
    """A JSON object as tshark writes it: names repeat."""


def tshark_packets(text: str) -> list[tuple[int, dict[str, list[Any]]]]:
    """(frame number, fields of one DRBD packet, each a list because names repeat), in order."""
    found = []
    for frame in json.loads(text, object_pairs_hook=Pairs):
        layers = dict(dict(frame)["_source"])["layers"]
        number = int(dict(dict(layers)["frame"])["frame.number"])
        for name, layer in layers:
            if name == "drbd":
                fields: dict[str, list[Any]] = {}
                for key, value in layer:
                    fields.setdefault(key, []).append(value)
                found.append((number, fields))
    return found


def as_tshark(packet: DrbdPacket) -> dict[str, list[Any]]:
    """Our fields under tshark 4.0's names and in its way of showing them."""
    ours = packet.fields()
    shown: dict[str, list[Any]] = {"command": [packet.command], "length": [packet.length]}
    if packet.header == 100:
        shown["volume"] = [packet.volume]
    for name, value in ours.items():
        match name:
            case (
                "block_id" | "barrier"
            ):  # opaque cookies, which tshark shows as little-endian numbers
                shown[name] = [int.from_bytes(value, "little")]
            case "blksize":
                shown["size"] = [value]
            case "history_uuid_0":
                shown["history_uuid"] = [value, ours["history_uuid_1"]]
            case (
                "history_uuid_1"
                | "pad"
                | "reserved"
                | "role"
                | "peer"
                | "conn"
                | "disk"
                | "pdsk"
                | "val"
            ):
                pass
            case _ if name in drbd.STATE_FIELDS or name == "mask":
                pass
            case _:
                shown[name] = [value]
    if packet.command in drbd.DIGESTED:
        shown["size"], shown["data"] = [len(packet.payload)], [bytes(packet.payload).hex(":")]
    return shown


TREES = ("uuid_flags_tree", "dp_flags_tree", "state_tree")
NOT_IN_84 = {"sender_node_id", "receiver_node_id"}
"""DRBD 9's meaning of bytes that are zero in 8.4."""


def compare(theirs: dict[str, list[Any]], packet: DrbdPacket) -> int:
    """Every field that tshark prints for this packet, against ours. Returns how many were
    compared."""
    ours, compared = as_tshark(packet), 0
    fields = packet.fields()
    for key, values in theirs.items():
        name = key.removeprefix("drbd.")
        if name in NOT_IN_84 or key.startswith("_ws"):
            continue
        if name == "state_tree":
            for part, value in values[0]:
                part = part.removeprefix("drbd.state.")
                if part == "quorum":
                    continue  # DRBD 9
                word = fields["state"] if "state" in fields else fields["val"]
                shift, width = drbd.STATE_FIELDS[part]
                assert int(value, 0) == word >> shift & (1 << width) - 1, (packet.name, part)
                compared += 1
        elif name in TREES:
            flags = drbd.UuidFlag if name == "uuid_flags_tree" else drbd.DpFlag
            word = fields[name.removesuffix("_tree")]
            for flag, value in values[0]:
                known = flags.__members__.get(flag.rsplit(".", 1)[1].upper(), 0)
                assert int(value, 0) == bool(word & int(known)), (packet.name, flag)
                compared += 1
        elif name in ours:
            shown = [value if isinstance(ours[name][0], str) else int(value, 0) for value in values]
            assert shown == ours[name], (packet.name, name)
            compared += len(values)
        elif name == "state":
            assert int(values[0], 0) in (fields.get("mask"), fields.get("val"))
        else:
            pytest.fail(f"tshark prints {key} = {values} for {packet.name}, which we do not know")
    return compared


def compare_all(text: str, capture: str) -> None:
    theirs, ours = tshark_packets(text), seen_packets(GOLDEN / f"{capture}.pcap")
    assert [(no, int(f["drbd.command"][0], 0)) for no, f in theirs] == [
        (packet.packet_no, packet.command) for packet in ours
    ]
    compared = sum(
        compare(fields, packet) for (_, fields), packet in zip(theirs, ours, strict=True)
    )
    assert compared > 100


@pytest.mark.parametrize("capture", CAPTURES)
def test_every_packet_and_field_is_what_tshark_printed(capture: str) -> None:
    compare_all(
        gzip.decompress((GOLDEN / f"{capture}.tshark.json.gz").read_bytes()).decode(), capture
    )


@pytest.mark.skipif(
    shutil.which("tshark") is None, reason="tshark (Debian package tshark) is not installed"
)
@pytest.mark.parametrize("capture", CAPTURES)
def test_every_packet_and_field_is_what_tshark_prints_now(capture: str) -> None:
    command = ["tshark", "-r", str(GOLDEN / f"{capture}.pcap"), *TSHARK_OPTIONS]
    compare_all(
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout,
        capture,
    )


# --- cutting, gaps, bad bytes ---------------------------------------------------------------------------------
def h80(cmd: int, body: bytes = b"") -> bytes:
    return struct.pack(">IHH", 0x83740267, cmd, len(body)) + body


def h95(cmd: int, body: bytes) -> bytes:
    return struct.pack(">HHI", 0x835A, cmd, len(body)) + body


def h100(cmd: int, body: bytes = b"", volume: int = 0) -> bytes:
    return struct.pack(">IHHII", 0x8620EC20, volume, cmd, len(body), 0) + body


def write(sector: int, data: bytes = bytes(512)) -> bytes:
    return struct.pack(">QQII", sector, sector + 1000, 1, 0x102) + data


STREAM = b"".join(
    [
        h80(Cmd.INITIAL_DATA),
        h80(Cmd.CONNECTION_FEATURES, struct.pack(">III60s", 86, 0, 101, b"")),
        h100(Cmd.DATA, write(8), volume=3),
        h100(Cmd.UNPLUG_REMOTE),
        h95(Cmd.DATA, write(16, bytes(range(256)) * 160)),
        h100(Cmd.BARRIER, bytes(8)),
    ]
)


def summary(found: list[DrbdPacket | BadBytes]) -> list[Any]:
    return [
        (p.offset, p.command, p.volume, p.header, bytes(p.body), p.tentative)
        if isinstance(p, DrbdPacket)
        else (p.offset, p.what)
        for p in found
    ]


WHOLE = summary(DrbdStream().feed(STREAM, 1, 1))


def test_whole_stream() -> None:
    assert [entry[1] for entry in WHOLE] == [0xFFF2, 0xFFFE, 0, 7, 0, 3]
    assert [entry[3] for entry in WHOLE] == [80, 80, 100, 100, 95, 100]
    assert WHOLE[2][2] == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=30), st.integers(1, 40))
def test_any_cutting_gives_the_same_packets(cuts: list[int], small: int) -> None:
    edges = sorted({0, *range(0, 200, small), *cuts, len(STREAM)})
    stream, found = DrbdStream(), []
    for number, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):  # noqa: RUF007
        found += stream.feed(STREAM[a:b], number, number)
    assert summary(found) == WHOLE


def test_byte_by_byte_with_times_of_the_first_and_the_last_byte() -> None:
    stream, found = DrbdStream(), []
    data = h100(Cmd.UNPLUG_REMOTE) + h100(Cmd.DATA, write(1))
    for at in range(len(data)):
        found += stream.feed(data[at : at + 1], 100 + at, at)
    first, second = found
    assert isinstance(first, DrbdPacket)
    assert isinstance(second, DrbdPacket)
    assert (first.t_first_ns, first.t_ns, first.packet_no) == (100, 115, 15)
    assert (second.t_first_ns, second.t_ns, second.first_packet_no) == (
        116,
        100 + len(data) - 1,
        16,
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, len(STREAM) - 1), st.integers(1, 200))
def test_after_a_gap_the_next_header_is_found_and_nothing_is_malformed(at: int, lost: int) -> None:
    stream = DrbdStream()
    found = stream.feed(STREAM[:at], 1, 1)
    stream.gap(min(lost, len(STREAM) - at))
    found += stream.feed(STREAM[at + lost :], 2, 2)
    assert not [p for p in found if isinstance(p, BadBytes)]
    expected = {entry[0]: entry for entry in WHOLE}
    for entry in summary(found):
        assert entry[:5] == expected[entry[0]][:5]
    begin_behind = [offset for offset in expected if offset >= at + lost]
    assert set(begin_behind) <= {p.offset for p in found}


def tentative(found: list[DrbdPacket | BadBytes]) -> list[bool]:
    return [p.tentative for p in found if isinstance(p, DrbdPacket)]


def test_after_a_gap_packets_are_tentative_until_the_other_end_proves_one() -> None:
    stream = DrbdStream()
    stream.gap(10)
    found = stream.feed(b"xyz" + h100(Cmd.PING) + h100(Cmd.PING_ACK), 1, 1)
    assert tentative(found) == [True, True]
    stream.prove(found[0].offset)
    assert tentative(stream.feed(h100(Cmd.PING), 2, 2)) == [False]


def test_after_a_gap_packets_are_tentative_until_more_was_followed_than_one_packet_has() -> None:
    stream, data = DrbdStream(), h100(Cmd.DATA, write(1, bytes(65536)))
    stream.gap(10)
    found = stream.feed(b"xyz" + data * 20, 1, 1)
    sure_from = 10 + 16 + drbd.MAX_PAYLOAD_BYTES
    assert tentative(found) == [p.offset < sure_from for p in found]
    assert tentative(found)[-1] is False


def test_bytes_that_are_no_packet_after_a_gap_are_nobodys_fault_until_it_is_certain() -> None:
    stream = DrbdStream()
    stream.gap(10)
    pings, bad = h100(Cmd.PING) + h100(Cmd.PING_ACK), b"the end of a captured packet"
    stream.feed(pings, 1, 1)
    (wrong,) = stream.feed(bad, 1, 1)
    assert isinstance(wrong, BadBytes) and not wrong.is_certain
    (first, *_) = stream.feed(pings, 1, 1)
    stream.prove(first.offset)
    (wrong,) = stream.feed(bad, 1, 1)
    assert isinstance(wrong, BadBytes) and wrong.is_certain


def test_a_look_that_went_wrong_is_not_the_senders_fault() -> None:
    stream = DrbdStream()
    stream.gap(10)
    lure = h100(Cmd.PING) + b"this was data" * 3
    found = stream.feed(b"data" + lure + h100(Cmd.PING) + h100(Cmd.PING_ACK), 1, 1)
    assert [type(p) for p in found] == [DrbdPacket] * 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"garbage garbage garbage", "no magic"),
        (h100(0x0005), "unknown command 0x0005"),
        (h100(0x0037), "unknown command 0x0037"),
        (struct.pack(">IHHII", 0x8620EC20, 0, 0, 0xFFFFFFFF, 0), "P_DATA with length 4294967295"),
        (struct.pack(">IHHII", 0x8620EC20, 0, 0, 23, 0), "24 to"),
        (struct.pack(">IHHII", 0x8620EC20, 0, 0x13, 0, 7), "pad is 0x00000007"),
        (h100(Cmd.WRITE_ACK, bytes(25)), "P_WRITE_ACK with length 25"),
        (h100(Cmd.STATE, bytes(3)), "P_STATE with length 3"),
    ],
)
def test_bad_bytes_are_told_once_with_their_offset(bad: bytes, words: str) -> None:
    stream = DrbdStream()
    found = stream.feed(h100(Cmd.PING) + bad + h100(Cmd.PING_ACK) + h100(Cmd.PING), 7, 9)
    wrong = [p for p in found if isinstance(p, BadBytes)]
    assert len(wrong) == 1
    assert wrong[0].offset == 16
    assert words in wrong[0].what
    assert (wrong[0].t_ns, wrong[0].packet_no) == (7, 9)
    assert [p.command for p in found if isinstance(p, DrbdPacket)] == [
        Cmd.PING,
        Cmd.PING_ACK,
        Cmd.PING,
    ]


def test_a_header_of_another_version_is_malformed_once_one_is_agreed() -> None:
    stream = DrbdStream()
    stream.headers = allowed_headers(101)
    (wrong,) = stream.feed(h80(Cmd.PING) + bytes(20), 1, 1)
    assert isinstance(wrong, BadBytes)
    assert "h80" in wrong.what
    stream = DrbdStream(headers=allowed_headers(96))
    assert len(stream.feed(h80(Cmd.PING) + h95(Cmd.DATA, write(1, bytes(33280))), 1, 1)) == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=8), st.booleans())
def test_junk_never_raises_and_holds_little(pieces: list[bytes], from_start: bool) -> None:
    stream = DrbdStream(from_start=from_start)
    for piece in pieces:
        stream.feed(piece + b"\x83", 1, 1)
        assert len(stream._held) <= 16
    assert stream.offset == sum(len(piece) + 1 for piece in pieces)


def test_a_mid_stream_start_on_a_header_is_believed() -> None:
    (packet,) = DrbdStream(from_start=False).feed(h100(Cmd.DATA, write(1)), 1, 1)
    assert isinstance(packet, DrbdPacket)
    assert not packet.tentative


def test_the_golden_stream_gives_the_same_packets_byte_by_byte() -> None:
    whole, single = DrbdStream(from_start=False), DrbdStream(from_start=False)
    reassembler = Reassembler()
    a: list[DrbdPacket | BadBytes] = []
    b: list[DrbdPacket | BadBytes] = []
    for number, frame in enumerate(read_frames(GOLDEN / "small-failure.pcap"), 1):
        for event in reassembler.feed(frame.t_ns, frame.data, number):
            if isinstance(event, StreamData) and event.flow.destination_port == 48055:
                data = bytes(event.data)
                a += whole.feed(data, event.t_ns, number)
                for at in range(len(data)):
                    b += single.feed(data[at : at + 1], event.t_ns, number)
    assert summary(a) == summary(b)
    assert len(a) == 2


@pytest.mark.parametrize("command", sorted(drbd.DRBD9_COMMANDS), ids=lambda command: command.name)
def test_what_drbd_9_says_of_its_own_is_a_packet_there_and_nothing_below(command: Cmd) -> None:
    """By the published headers; none of it was run."""
    fixed, names, _ = drbd.LAYOUTS[command]
    data = h100(command, bytes(fixed.size)) + h100(Cmd.PING)
    nine = DrbdStream(headers=allowed_headers(118)).feed(data, 1, 1)
    assert [packet.name for packet in nine if isinstance(packet, DrbdPacket)] == [
        f"P_{command.name}",
        "P_PING",
    ]
    assert isinstance(nine[0], DrbdPacket)
    assert set(nine[0].fields()) == set(names)
    eight = DrbdStream(headers=allowed_headers(101)).feed(data, 1, 1)
    assert isinstance(eight[0], BadBytes)
    assert eight[0].what == f"unknown command 0x{command:04x}, length {fixed.size}"


def test_the_names_of_states_in_drbd_9() -> None:
    assert drbdnames.DISK_NAMES_9[2] == "Detaching"
    assert drbdnames.DISK_NAMES_9[9] == "UpToDate"
    assert drbdnames.CONN_NAMES_9[10] == "Established"
