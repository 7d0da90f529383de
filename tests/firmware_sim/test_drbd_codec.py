"""The packet codec: by itself, on hostile bytes, and on the streams of two real Linux nodes."""

import contextlib
import gzip
import json
import struct
import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.utils import rdpcap

from freezeframe.firmware_sim.bitmap import Bitmap, BitmapReceiver
from freezeframe.firmware_sim.drbd_codec import (
    MAX_BODY_BYTES,
    DecodeError,
    Decoder,
    Packet,
    digest_function,
    encode,
    encode_ack,
    encode_data_head,
    encode_header,
    header_bytes,
    max_data_bytes,
)
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.drbd import Cmd

GOLDEN = Path(__file__).parents[1] / "golden" / "drbd"
ALL = drbd.DATA_SOCKET | drbd.META_SOCKET
VERSIONS = [0, 86, 94, 95, 99, 100, 101]
ID = b"\x01\x02\x03\x04\x05\x06\x07\x08"


def plain(packets: list[Packet]) -> list[tuple[int, tuple[Any, ...], bytes]]:
    return [(command, fields, bytes(body)) for command, fields, body in packets]


@st.composite
def streams(
    draw: st.DrawFn,
) -> tuple[int, bytes, list[tuple[int, tuple[Any, ...], bytes]], list[int]]:
    """(version, the bytes, the packets in them, where to cut the bytes)."""
    version = draw(st.sampled_from(VERSIONS))
    stream, packets = b"", []
    for _ in range(draw(st.integers(1, 6))):
        command = draw(st.sampled_from(sorted(drbd.LAYOUTS.keys() - drbd.DRBD9_COMMANDS)))
        layout, _, has_body = drbd.LAYOUTS[command]
        fields = layout.unpack(draw(st.binary(min_size=layout.size, max_size=layout.size)))
        body = draw(st.binary(max_size=min(24, MAX_BODY_BYTES[command]))) if has_body else b""
        if command is Cmd.DATA and version >= 95 and draw(st.booleans()):
            body = bytes(40_000)
        stream += encode(version, command, *fields, body=body)
        packets.append((command, fields, body))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return version, stream, packets, cuts


@settings(max_examples=60)
@given(streams())
def test_any_stream_however_split(
    case: tuple[int, bytes, list[tuple[int, tuple[Any, ...], bytes]], list[int]],
) -> None:
    version, stream, packets, cuts = case
    whole = Decoder(ALL, version)
    assert plain(whole.feed(stream)) == packets
    assert whole.held_bytes == 0
    pieces = Decoder(ALL, version)
    found = []
    port = bytearray(len(stream))
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        # All through one buffer, which is overwritten as soon as what was in it has been used.
        port[: end - start] = stream[start:end]
        found += plain(pieces.feed(memoryview(port)[: end - start]))
        pieces.keep()
        port[:] = b"?" * len(port)
    assert found == packets


@pytest.mark.parametrize("version", [0, 95, 101])
def test_byte_by_byte(version: int) -> None:
    stream = encode(version, Cmd.PING) + encode(version, Cmd.DATA, 8, ID, 1, 2, body=b"x" * 600)
    decoder = Decoder(ALL, version)
    packets = [packet for at in range(len(stream)) for packet in decoder.feed(stream[at : at + 1])]
    assert plain(packets) == [(Cmd.PING, (), b""), (Cmd.DATA, (8, ID, 1, 2), b"x" * 600)]


def test_a_long_packet_byte_by_byte_costs_a_small_multiple_of_its_size() -> None:
    stream = encode(101, Cmd.DATA, 8, ID, 1, 2, body=bytes(20_000))
    decoder = Decoder(ALL, 101)
    tracemalloc.start()
    try:
        for at in range(len(stream) - 1):
            decoder.push(memoryview(stream)[at : at + 1])
            decoder.keep()
        assert tracemalloc.get_traced_memory()[1] < 8 * len(stream)
    finally:
        tracemalloc.stop()
    (packet,) = decoder.feed(stream[-1:])
    assert packet[2] == bytes(20_000)


@pytest.mark.parametrize("version", [0, 94, 95, 99, 100, 101])
@pytest.mark.parametrize("size", [512, 32768 - 24, 32768 - 23, 40_000])
def test_the_fast_encoders_agree_with_the_general_one(version: int, size: int) -> None:
    if size > 32768 and version < 95:
        return
    body = bytes(size)
    head = encode_data_head(version, Cmd.DATA, 89600, ID, 781, 0x102, size)
    assert head + body == encode(version, Cmd.DATA, 89600, ID, 781, 0x102, body=body)
    assert encode_ack(version, Cmd.WRITE_ACK, 89600, ID, size, 5) == encode(
        version, Cmd.WRITE_ACK, 89600, ID, size, 5
    )


def test_headers_by_version() -> None:
    assert encode_header(0, Cmd.INITIAL_DATA, 0) == bytes.fromhex("83740267fff20000")
    assert encode_header(99, Cmd.DATA, 32768) == bytes.fromhex("8374026700008000")
    assert encode_header(99, Cmd.DATA, 32769) == bytes.fromhex("835a000000008001")
    assert encode_header(100, Cmd.PING, 0) == bytes.fromhex("8620ec20000000130000000000000000")
    assert [header_bytes(version) for version in (0, 99, 100)] == [8, 8, 16]
    assert [max_data_bytes(version) for version in (94, 99, 100)] == [32 << 10, 128 << 10, 1 << 20]


def test_digests() -> None:
    crc, size = digest_function("crc32c")
    assert crc and crc(b"123456789") == struct.pack("<I", 0xE3069283) and size == 4
    assert digest_function("") == (None, 0)
    sha, size = digest_function("sha256")
    assert sha and len(sha(b"")) == size == 32
    with pytest.raises(ValueError):
        digest_function("nonsense")


# --- bad input ----------------------------------------------------------------------------------------------------

BAD = {
    "magic": (0, b"GET / HTTP/1.1\r\n", "Wrong magic value 0x47455420 in protocol version 80"),
    "h80 at 101": (101, encode_header(0, Cmd.PING, 0) + bytes(8), "Wrong magic"),
    "h100 at 99": (99, encode_header(101, Cmd.PING, 0), "Wrong magic"),
    "h95 at 94": (94, drbd.HEADER_H95.pack(drbd.MAGIC_H95, 0, 600), "Wrong magic"),
    "pad": (101, drbd.HEADER_H100.pack(drbd.MAGIC_H100, 0, 0x13, 0, 1), "padding is not zero"),
    "unknown": (101, encode_header(101, 0x4242, 0), r"Unexpected \w+ packet Unknown \(0x4242\)"),
    "no handler": (101, encode_header(101, Cmd.BECOME_SYNC_SOURCE, 0), "BecomeSyncSource"),
    "too short": (
        101,
        encode_header(101, Cmd.STATE, 3),
        "unexpected packet size, expected:4 received:3",
    ),
    "too long": (101, encode_header(101, Cmd.STATE, 5), "No payload expected ReportState l:1"),
    "huge": (101, encode_header(101, Cmd.DATA, 0xFFFFFFFF), "No payload expected Data"),
    "huge name": (101, encode_header(101, Cmd.PROTOCOL, 24 + 65), "No payload expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_hostile_headers_are_refused_before_their_payload(name: str) -> None:
    version, data, text = BAD[name]
    with pytest.raises(DecodeError, match=text):
        Decoder(ALL, version).feed(data)


def test_an_unknown_packet_on_the_meta_socket_is_final() -> None:
    with pytest.raises(DecodeError, match="Unexpected meta packet Data") as caught:
        Decoder(drbd.META_SOCKET, 101).feed(encode_header(101, Cmd.DATA, 24))
    assert caught.value.final


@given(st.sampled_from(VERSIONS), st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(version: int, data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        Decoder(ALL, version).feed(data)


# --- the streams of real nodes --------------------------------------------------------------------------------------


def tcp_streams(name: str) -> list[tuple[tuple[Any, ...], bytes]]:
    """Each direction's bytes in sequence order, up to the first hole; as (ends, bytes)."""
    segments: dict[tuple[Any, ...], dict[int, bytes]] = defaultdict(dict)
    for frame in rdpcap(str(GOLDEN / name)):
        if TCP in frame:
            ip, tcp = frame[IP], frame[TCP]
            data = bytes(tcp.payload)[: ip.len - ip.ihl * 4 - tcp.dataofs * 4]
            if data:
                segments[ip.src, tcp.sport, ip.dst, tcp.dport][tcp.seq] = data
    streams = []
    for ends, pieces in segments.items():
        data, expected = b"", None
        for seq in sorted(pieces):
            if expected is None:
                expected = seq
            if seq > expected:
                break
            data += pieces[seq][expected - seq :]
            expected = max(expected, seq + len(pieces[seq]))
        streams.append((ends, data))
    return streams


def decode_stream(data: bytes) -> tuple[list[Packet], Decoder]:
    """All packets; the version follows the magics, as the features of the other direction are not
    at hand."""
    magic = struct.unpack(">I", data[:4])[0]
    decoder = Decoder(ALL, 101 if magic == drbd.MAGIC_H100 else 0)
    decoder.push(data)
    packets: list[Packet] = []
    while True:
        packet = decoder.next()
        if packet is None:
            return packets, decoder
        packets.append(packet)
        if packet[0] in (Cmd.CONNECTION_FEATURES, Cmd.INITIAL_META):
            decoder.version = 101


def tshark_counts(name: str) -> Counter[int]:
    """Commands as tshark's own dissection of the same capture names them."""
    counts: Counter[int] = Counter()

    def look(node: Any, key: str = "") -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                look(value, name)
        elif isinstance(node, list):
            for value in node:
                look(value, key)
        elif key == "drbd.command":
            counts[int(node, 16)] += 1

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        """tshark's JSON repeats keys: one per packet in the frame."""
        found: dict[str, Any] = {}
        for key, value in items:
            found.setdefault(key, []).append(value)
        return found

    with gzip.open(GOLDEN / name) as file:
        look(json.load(file, object_pairs_hook=pairs))
    return counts


def decodable(name: str) -> list[tuple[list[Packet], Decoder]]:
    """Streams that begin at a packet: small-failure.pcap begins in the middle of some."""
    starts = (drbd.MAGIC_H80, drbd.MAGIC_H100)
    return [
        decode_stream(data)
        for _, data in tcp_streams(name)
        if len(data) >= 8 and struct.unpack(">I", data[:4])[0] in starts
    ]


def test_every_packet_of_the_real_handshakes() -> None:
    decoded = decodable("small-handshake.pcap")
    counts = Counter(command for packets, _ in decoded for command, _, _ in packets)
    assert counts == tshark_counts("small-handshake.tshark.json.gz")
    # The capture ends inside of a write.
    assert sorted(decoder.held_bytes for _, decoder in decoded) == [0, 0, 0, 8688]


def test_every_packet_around_the_real_failure() -> None:
    decoded = decodable("small-failure.pcap")
    counts = Counter(command for packets, _ in decoded for command, _, _ in packets)
    expected = tshark_counts("small-failure.tshark.json.gz")
    assert {command: counts[command] for command in expected} == dict(expected)


def test_the_digest_that_failed_on_the_real_node() -> None:
    digest, size = digest_function("crc32c")
    assert digest
    found = [
        (fields[0], len(body) - size, digest(body[size:]) == bytes(body[:size]))
        for packets, _ in decodable("small-failure.pcap")
        for command, fields, body in packets
        if command in drbd.DIGESTED
    ]
    assert (89600, 65536, False) in found
    assert all(good for sector, _, good in found if sector != 89600)


def test_the_real_bitmaps() -> None:
    totals = []
    for packets, _ in decodable("small-failure.pcap"):
        for command, _, body in packets:
            if command == Cmd.COMPRESSED_BITMAP:
                bitmap = Bitmap(130992 * 512)
                assert BitmapReceiver(bitmap, 16).compressed(body)
                totals.append(bitmap.count)
    assert totals == [264, 264] or sorted(totals) == [0, 264]
