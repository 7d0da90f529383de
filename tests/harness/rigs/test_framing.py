"""The injector on the links of mirrors: what it counts and changes in captures of real nodes, as the
product's own reading of the protocols sees it afterwards."""

import gzip
from pathlib import Path

import pytest
from capture_forms import pcap
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.events import Side
from freezeframe.harness.core.link.linkevidence import LinkEvidence, LinkWrite
from freezeframe.harness.core.link.linkview import LinkEnds
from freezeframe.harness.edge.pcapng import read_runs
from freezeframe.harness.rigs.framing import FRAMINGS
from freezeframe.harness.rigs.injector import Injector, has_payload

GOLDEN = Path(__file__).parents[2] / "golden" / "mirrors"
PRIMARY = bytes([10, 99, 0, 1])
HOST_OFFSET_BYTES = 1 << 20
CAPTURES = {"nvme_tcp": "nvme-clean", "nbd": "nbd-clean"}
PORTS = {"nvme_tcp": 4420, "nbd": 10809}


def captured(name: str) -> list[tuple[int, Side, bytes]]:
    """(nanoseconds, sender, frame) of a little-endian pcap with microseconds."""
    data, at, found = gzip.decompress((GOLDEN / f"{name}.pcap.gz").read_bytes()), 24, []
    while at < len(data):
        seconds, micros, length, _ = (
            int.from_bytes(data[at + 4 * one : at + 4 * one + 4], "little") for one in range(4)
        )
        frame = data[at + 16 : at + 16 + length]
        sender: Side = "primary" if frame[26:30] == PRIMARY else "secondary"
        found.append((seconds * 10**9 + micros * 1000, sender, frame))
        at += 16 + length
    return found


def evidence(protocol: str, frames: list[tuple[int, bytes]], folder: Path) -> LinkEvidence:
    path = folder / "link.pcap"
    path.write_bytes(pcap(frames))
    ends = LinkEnds(protocol=protocol, ports=frozenset({PORTS[protocol]}))
    found = LinkEvidence(ends)
    for run in read_runs(path):
        found.feed(run, 0)
    found.close()
    return found


def played(
    protocol: str, folder: Path, *faults: dict[str, object], offset: int = HOST_OFFSET_BYTES
) -> tuple[Injector, LinkEvidence]:
    injector = Injector(protocol, offset)
    injector.arm(faults)
    out: list[tuple[int, bytes]] = []
    for t_ns, sender, frame in captured(CAPTURES[protocol]):
        out += [(t_ns, one) for one in injector.feed(sender, frame, t_ns)]
    return injector, evidence(protocol, out, folder)


def host_writes(found: LinkEvidence) -> list[LinkWrite]:
    first = HOST_OFFSET_BYTES // 512
    return [one for one in found.writes if one.row.kind == "write" and one.row.sector >= first]


@pytest.mark.parametrize("protocol", CAPTURES)
def test_it_counts_the_hosts_writes_and_changes_nothing(protocol: str, tmp_path: Path) -> None:
    injector, found = played(protocol, tmp_path)
    assert injector.writes == len(host_writes(found)) > 3
    _, all_writes = played(protocol, tmp_path, offset=0)
    everything, _ = played(protocol, tmp_path, offset=0)
    data_writes = [one for one in all_writes.writes if one.row.kind == "write"]
    assert everything.writes == len(data_writes) > injector.writes


@pytest.mark.parametrize("protocol", CAPTURES)
@pytest.mark.parametrize("at_write", [1, 3, 5])
def test_a_flipped_bit_is_in_the_middle_of_that_writes_data(
    protocol: str, at_write: int, tmp_path: Path
) -> None:
    _, before = played(protocol, tmp_path)
    injector, after = played(protocol, tmp_path, {"kind": "bit_flip_sender", "at_write": at_write})
    assert len(injector.fired) == 1
    changed = [
        (one.row.sector, old.row.sector)
        for one, old in zip(after.writes, before.writes, strict=True)
        if one.crc32c != old.crc32c
    ]
    due = host_writes(before)[at_write - 1]
    assert changed == [(due.row.sector, due.row.sector)]
    wrong = [one for one in after.writes if one.digest_is_right is False]
    assert len(wrong) == (protocol == "nvme_tcp")
    for one in wrong:
        at = one.size_bytes // 2
        assert one.row.sector == due.row.sector
        assert one.data[at] ^ 0x10 == _right(one, at)


def _right(write: LinkWrite, at: int) -> int:
    """The byte that makes the data fit their digest."""
    from crc32c import crc32c

    data = bytearray(write.data)
    data[at] ^= 0x10
    assert crc32c(bytes(data)) == int.from_bytes(write.row.digest_wire, "little")
    return data[at]


@pytest.mark.parametrize("protocol", CAPTURES)
def test_a_refusal_is_whole_its_header_digest_too(protocol: str, tmp_path: Path) -> None:
    injector, found = played(protocol, tmp_path, {"kind": "neg_ack", "at_write": 2})
    assert len(injector.fired) == 1
    assert found.malformed == []
    (refused,) = [one for one in found.writes if one.row.answer == "refused"]
    assert refused is host_writes(found)[1]
    assert refused.ack.endswith("internal error" if protocol == "nvme_tcp" else "5") or refused.ack


@pytest.mark.parametrize("protocol", FRAMINGS)
@settings(max_examples=60)
@given(data=st.binary(max_size=400), opener=st.booleans(), pieces=st.integers(1, 30))
def test_any_bytes_make_progress_and_raise_nothing(
    protocol: str, data: bytes, opener: bool, pieces: int
) -> None:
    framing, head = FRAMINGS[protocol](b"connection", HOST_OFFSET_BYTES), b""
    for at in range(len(data)):
        head += data[at : at + 1]
        wanted = framing.wanted(opener, head)
        assert wanted >= len(head)
        if wanted == len(head):
            piece = framing.message(opener, head)
            if piece is None:
                return
            assert piece.length_bytes >= 0
            head = b""


def test_a_write_that_was_refused_for_its_digest_and_sent_again_is_no_lost_write(
    tmp_path: Path,
) -> None:
    frames = [(t_ns, frame) for t_ns, _, frame in captured("nvme-ddgst-write")]
    found = evidence("nvme_tcp", frames, tmp_path)
    (wrong,) = [one for one in found.writes if one.digest_is_right is False]
    assert not wrong.is_acked
    assert wrong.resent_as is not None and wrong.resent_as.is_acked
    assert wrong.resent_as.row.session is not wrong.row.session
    assert wrong.resent_as.row.sector == wrong.row.sector
    assert [one for one in found.writes if one.resent_as] == [wrong]


def test_a_held_lane_is_reset_for_its_sender_alone_and_delivered_later() -> None:
    """Of a real capture: the first write that comes with its data. Nothing of that connection passes from
    there on; once released, what carried data comes in its order, and the rest passes again."""
    injector = Injector("nvme_tcp", HOST_OFFSET_BYTES)
    injector.hold_lane()
    held: list[bytes] = []
    resets: list[tuple[Side, bytes]] = []
    opened: dict[bytes, bytes] = {}
    for _, sender, frame in captured("nvme-clean"):
        out = injector.feed(sender, frame, 0)
        ports = frame[34:38]
        if sender == "primary" and frame[47] & 2:
            opened[ports] = frame
        if not held and not out:
            resets = injector.unseen()
        if not out and has_payload(frame):
            held.append(frame)
        assert bool(out) == (not held or sender == "secondary")
    assert len(held) > 1 and injector.unseen() == []
    ((sender, reset),) = resets
    assert (sender, reset[26:34]) == ("secondary", held[0][30:34] + held[0][26:30])
    assert reset[34:38] == held[0][36:38] + held[0][34:36] and held[0][34:38] in opened
    assert reset[47] == 4 and tcp_sum(reset) == 0xFFFF
    # What the sender expects next: it has acknowledged as much in the held frame.
    assert reset[38:42] == held[0][42:46]
    assert injector.release_lane() == len(held)
    assert injector.release(0) == [("primary", frame) for frame in held]
    assert injector.feed("primary", held[0], 0) == [held[0]]


def tcp_sum(frame: bytes) -> int:
    """0xffff when the checksum is right (RFC 9293, 3.1)."""
    segment = frame[34:]
    data = frame[26:34] + b"\x00\x06" + len(segment).to_bytes(2, "big") + segment
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
