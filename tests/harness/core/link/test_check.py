"""The conformance kit: DRBD and a made-up vendor's protocol keep the guarantees of the seam, and each
broken protocol is found out."""

from __future__ import annotations

import gzip
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from vendor_link import (
    ANSWER,
    HELLO,
    PORT,
    VendorDirection,
    VendorLink,
    message,
    part,
    write,
)

from freezeframe.harness.core.link import byname
from freezeframe.harness.core.link.check import ExpectedOnLink, check_protocol
from freezeframe.harness.core.link.drbd.protocol import DrbdLink
from freezeframe.harness.core.link.messages import LinkMessage
from freezeframe.harness.core.link.protocol import LinkOptions, Opening, Tell
from freezeframe.harness.edge.pcapng import read_frames

GOLDEN = Path(__file__).parents[3] / "golden"
NS_PER_MS = 1_000_000
A, B = "10.0.0.1", "10.0.0.2"


def frames_of(path: Path, scratch: Path) -> list[tuple[int, bytes]]:
    if path.suffix == ".gz":
        scratch.write_bytes(gzip.decompress(path.read_bytes()))
        path = scratch
    return [(one.t_ns, one.data) for one in read_frames(path)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("drbd/small-handshake.pcap", ExpectedOnLink(digests_wrong=0)),
        (
            "drbd/small-failure.pcap",
            ExpectedOnLink(digests_wrong=1, hits=frozenset({"digest-mismatch", "unacked-close"})),
        ),
        ("drbd9/drbd9-clean.pcap.gz", ExpectedOnLink(writes=6, answers=6, digests_checked=6)),
        (
            "drbd9/drbd9-digest.pcap.gz",
            ExpectedOnLink(writes=5, answers=4, digests_wrong=1, hits=frozenset({"digest-mismatch", "unacked-close"})),
        ),
        ("field/service-port-58123-midstream.pcap", ExpectedOnLink(writes=12, answers=12)),
    ],
)  # fmt: skip
def test_drbd_keeps_the_guarantees(name: str, expected: ExpectedOnLink, tmp_path: Path) -> None:
    ports = frozenset({58123 if "58123" in name else 7788})
    check_protocol(
        DrbdLink, frames_of(GOLDEN / name, tmp_path / "x.pcap"), expected, ports=ports, trials=20,
        options=LinkOptions(must_match=True, integrity_alg="crc32c"),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["nvme_tcp", "iscsi", "nbd"])
def test_the_mirrors_protocols_keep_the_guarantees(name: str, tmp_path: Path) -> None:
    capture = GOLDEN / "mirrors" / f"{name.removesuffix('_tcp')}-clean.pcap.gz"
    check_protocol(
        byname.find(name), frames_of(capture, tmp_path / "x.pcap"), ExpectedOnLink(digests_wrong=0), trials=1
    )  # fmt: skip


# --- a vendor's -----------------------------------------------------------------------------------
class Wire:
    """One connection as frames, ``data`` in segments of 1000 bytes."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.seq = {A: 1000, B: 5000}
        self._segment(A, 2)
        self.seq[A] += 1
        self._segment(B, 18)
        self.seq[B] += 1

    def send(self, sender: str, *messages: bytes) -> None:
        data = b"".join(messages)
        for at in range(0, len(data), 1000):
            piece = data[at : at + 1000]
            self._segment(sender, 24, piece)
            self.seq[sender] += len(piece)
        self._segment(B if sender == A else A, 16)

    def _segment(self, sender: str, flags: int, data: bytes = b"") -> None:
        receiver = B if sender == A else A
        ports = (40000, PORT) if sender == A else (PORT, 40000)
        ends = socket.inet_aton(sender) + socket.inet_aton(receiver)
        fields = (*ports, self.seq[sender], self.seq[receiver], 0x50, flags, 65535)
        tcp = struct.pack(">HHIIBBHHH", *fields, 0, 0) + data
        tcp = (
            tcp[:16]
            + struct.pack(">H", _checksum(ends + struct.pack(">HH", 6, len(tcp)) + tcp))
            + tcp[18:]
        )
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
        t_ns = 10**18 + len(self.frames) * NS_PER_MS
        self.frames.append((t_ns, bytes(12) + b"\x08\x00" + ip + ends + tcp))


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def data_of(number: int, size: int) -> bytes:
    return bytes((number * 31 + at * 7) % 251 for at in range(size))


def exchange(*extra: bytes, answers: Iterable[bytes] = ()) -> list[tuple[int, bytes]]:
    """12 writes, each third one in pieces, all answered; then ``extra`` and ``answers``."""
    wire = Wire()
    wire.send(A, message(HELLO, 0, b"one"))
    wire.send(B, message(HELLO, 0, b"two"))
    for number in range(12):
        data = data_of(number, 4096)
        if number % 3:
            wire.send(A, write(number, number * 4096, 4096, data))
        else:
            wire.send(A, write(number, number * 4096, 4096, data[:512]))
            wire.send(A, part(number, 2048, data[2048:]), part(number, 512, data[512:2048]))
        wire.send(B, message(ANSWER, number))
    if extra:
        wire.send(A, *extra)
    for one in answers:
        wire.send(B, one)
    return wire.frames


HEALTHY = exchange()
HEALTHY_EXPECTED = ExpectedOnLink(writes=12, answers=12, digests_checked=20, digests_wrong=0)


def test_a_vendors_protocol_keeps_them_too_with_writes_in_pieces() -> None:
    check_protocol(VendorLink, HEALTHY, HEALTHY_EXPECTED, trials=20)


@pytest.mark.parametrize(
    ("extra", "answers", "hits"),
    [
        ((write(50, 0, 512, bytes(512), crc=7),), (message(ANSWER, 50),), {"digest-mismatch"}),
        (
            (write(50, 0, 1024, data_of(1, 512)), part(50, 512, data_of(2, 512), crc=7)),
            (message(ANSWER, 50),),
            {"digest-mismatch"},
        ),
        ((write(50, 0, 512, data_of(1, 512)),), (message(ANSWER, 50, status=1),), {"neg-ack"}),
        (
            (write(50, 0, 512, data_of(1, 512)),),
            (message(ANSWER, 50), message(ANSWER, 50)),
            {"repeated-ack"},
        ),
        ((), (), set()),
    ],
)
def test_what_is_wrong_on_a_vendors_link_is_hit(
    extra: tuple[bytes, ...], answers: tuple[bytes, ...], hits: set[str]
) -> None:
    expected = ExpectedOnLink(hits=frozenset(hits))
    check_protocol(VendorLink, exchange(*extra, answers=answers), expected, trials=8)


# --- what the kit finds out -----------------------------------------------------------------------
class Broken(VendorLink):
    """A vendor's protocol whose directions are of another class."""

    direction: type[VendorDirection] = VendorDirection

    def connection(self, opening: Opening) -> VendorDirection | None:
        good = super().connection(opening)
        assert good is not None
        return self.direction(good.session, opening)


class CutsMatter(VendorDirection):
    def feed(self, data: bytes | memoryview, t_ns: int, packet_no: int) -> list[LinkMessage]:
        if self.held:
            self.offset += len(self.held)
            self.held.clear()  # forgets what came before
        return super().feed(data, t_ns, packet_no)


class NeverLooks(VendorDirection):
    def gap(self, length_bytes: int, t_ns: int) -> list[LinkMessage]:
        self.offset += length_bytes
        return []  # goes on as if nothing were missing


class SaysNoHole(VendorDirection):
    def gap(self, length_bytes: int, t_ns: int) -> list[LinkMessage]:
        super().gap(length_bytes, t_ns)
        return []


class BelievesAtOnce(VendorDirection):
    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.trust, self.looking = 2, False


class Raises(VendorDirection):
    def _translate(self, kind: int, *rest: object) -> LinkMessage:  # type: ignore[override]
        if rest[0] > 1:  # type: ignore[operator]
            raise KeyError("status")
        return super()._translate(kind, *rest)  # type: ignore[arg-type]


class Hoards(VendorDirection):
    def feed(self, data: bytes | memoryview, t_ns: int, packet_no: int) -> list[LinkMessage]:
        kept = self.__dict__.setdefault("all", [])
        kept.append(bytes(data) + b"!")  # a copy, kept for ever
        return super().feed(data, t_ns, packet_no)


class GivesDataAway(VendorDirection):
    def _translate(self, *arguments: object) -> LinkMessage:  # type: ignore[override]
        import msgspec

        made = super()._translate(*arguments)  # type: ignore[arg-type]
        return msgspec.structs.replace(made, clear_bytes=2000)


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        (CutsMatter, "expected|in one piece"),
        (NeverLooks, "hole"),
        (SaysNoHole, "hole"),
        (BelievesAtOnce, "begun at event"),
        (Raises, "raise KeyError"),
        (Hoards, "bytes are held"),
        (GivesDataAway, "that it calls clear"),
    ],
)
def test_a_broken_protocol_is_found_out(direction: type[VendorDirection], words: str) -> None:
    broken = type(f"{direction.__name__}Link", (Broken,), {"direction": direction})
    with pytest.raises(AssertionError, match=words):
        check_protocol(broken, HEALTHY, HEALTHY_EXPECTED, trials=20)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ({"name": ""}, "name is ''"),
        ({"ports": (0,)}, "ports is"),
        ({"ports": (1 << 16,)}, "ports is"),
        ({"tells": frozenset({"write"})}, "tells is"),
        ({"tells": frozenset({Tell.ANSWER})}, "ANSWER without WRITE"),
        ({"refuses_by": "silence"}, "refuses_by is"),
    ],
)
def test_what_a_protocol_says_of_itself_is_held(says: dict[str, object], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_protocol(type("Odd", (VendorLink,), says), HEALTHY, HEALTHY_EXPECTED, trials=1)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (ExpectedOnLink(writes=13), "12 writes, expected 13"),
        (ExpectedOnLink(answers=11), "12 answers, expected 11"),
        (ExpectedOnLink(digests_wrong=1), "0 digests_wrong, expected 1"),
        (ExpectedOnLink(hits=frozenset({"neg-ack"})), "expected \\['neg-ack'\\]"),
    ],
)
def test_counts_are_held_against_what_was_expected(expected: ExpectedOnLink, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_protocol(VendorLink, HEALTHY, expected, trials=1)


def test_a_version_of_the_seam_that_is_not_ours_is_refused() -> None:
    old = type("Old", (VendorLink,), {"api_version": 0})
    with pytest.raises(AssertionError, match="api_version is 0"):
        check_protocol(old, HEALTHY, HEALTHY_EXPECTED)
