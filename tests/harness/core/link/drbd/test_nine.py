"""DRBD 9 on the link: real nodes against tshark, silence on a healthy pair, and what is its own."""

import gzip
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from link_script import (
    BARRIER,
    RS_DATA_REPLY,
    RS_WRITE_ACK,
    P,
    Pair,
    S,
    cookie,
    features,
    h80,
    h100,
    p_ack,
    p_barrier,
    p_barrier_ack,
    protocol,
)

from freezeframe.harness.core.events import Trigger
from freezeframe.harness.core.link.drbd.protocol import DrbdLink
from freezeframe.harness.core.link.drbd.stream import DrbdPacket
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import Reassembler
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.edge.pcapng import CapturedFrame, read_frames
from freezeframe.harness.wire import drbd

GOLDEN = Path(__file__).parents[4] / "golden" / "drbd9"
NAMES = ("drbd9-clean", "drbd9-digest")
TSHARK = (
    "--enable-heuristic", "drbd_tcp", "--disable-protocol", "tcpencap", "-Y", "drbd", "-T", "fields",
    "-e", "frame.number", "-e", "drbd.command", "-e", "drbd.length",
)  # fmt: skip
TWOPC_PREPARE, TWOPC_ABORT, DISCONNECT, CONFIRM_STABLE = 0x2E, 0x2F, 0x4B, 0x49
EVERY_EVENT = [LinkRule(name=event, event=event) for event in EVENTS]


@pytest.fixture
def capture(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"{request.param}.pcap"
    path.write_bytes(gzip.decompress((GOLDEN / f"{request.param}.pcap.gz").read_bytes()))
    return path


def listed(text: str) -> list[tuple[int, int, int]]:
    """(frame, command, length) of each packet that tshark lists."""
    found = []
    for line in text.splitlines():
        number, commands, lengths = line.split("\t")
        pairs = zip(commands.split(","), lengths.split(","), strict=True)
        found += [(int(number), int(command, 0), int(length, 0)) for command, length in pairs]
    return found


def ours(path: Path) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []

    def tap(_: str, packet: DrbdPacket) -> None:
        found.append((packet.packet_no, packet.command, packet.length))

    reassembler, follower = Reassembler(), Follower(DrbdLink(LinkOptions(), tap))
    for number, frame in enumerate(read_frames(path), 1):
        for event in reassembler.feed(frame.t_ns, frame.data, number):
            list(follower.on(event))
    return found


@pytest.mark.parametrize("capture", NAMES, indirect=True)
def test_every_packet_is_the_one_that_tshark_listed(capture: Path) -> None:
    told = listed((GOLDEN / f"{capture.stem}.tshark.tsv").read_text())
    assert ours(capture) == told
    assert len(told) >= 74


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("capture", NAMES, indirect=True)
def test_every_packet_is_the_one_that_tshark_lists_now(capture: Path) -> None:
    command = ["tshark", "-r", str(capture), *TSHARK]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
    assert ours(capture) == listed(told)


def watched(frames: Iterator[CapturedFrame]) -> tuple[LinkView, list[Trigger]]:
    view = LinkView(LinkEnds(ports=frozenset({drbd.PORT})), EVERY_EVENT)
    triggers: list[Trigger] = []
    t_ns = 0
    for number, frame in enumerate(frames, 1):
        t_ns = frame.t_ns
        triggers += view.tick(t_ns)
        triggers += view.feed(t_ns, frame.data, number, t_ns)
    triggers += view.tick(t_ns + 10_000_000_000)
    return view, triggers + view.close(t_ns)


@pytest.mark.parametrize("capture", NAMES[:1], indirect=True)
def test_a_healthy_pair_triggers_nothing(capture: Path) -> None:
    view, triggers = watched(read_frames(capture))
    assert triggers == []
    totals = view.ledger.totals
    assert (totals.writes, totals.acks, totals.digests_checked, totals.digests_wrong) == (
        6,
        6,
        6,
        0,
    )
    assert totals.barriers_checked == 6


@pytest.mark.parametrize("capture", NAMES[1:], indirect=True)
def test_its_digest_failure_is_named_to_the_bit_and_its_resync_is_none(capture: Path) -> None:
    view, triggers = watched(read_frames(capture))
    assert [one.rule for one in triggers] == ["digest-mismatch", "unacked-close"]
    assert triggers[0].sector == 1280
    assert triggers[0].detail.endswith("bit 4 of byte 32768")
    assert view.ledger.totals.resync_messages == 5


# --- its own ways, in virtual time ----------------------------------------------------------------
NODE_A, NODE_B, NODE_C = 0, 1, 2


def nine_features(sender: int, receiver: int) -> bytes:
    return h80(0xFFFE, struct.pack(">IIIII52x", 118, 0x3FF, 124, sender, receiver))


def connected() -> Pair:
    pair = Pair()
    pair.open("data")
    pair.send("data", P, h80(0xFFF2))
    pair.open("meta")
    pair.send("meta", S, h80(0xFFF1))
    pair.send("data", P, nine_features(NODE_A, NODE_B))
    pair.send("data", S, nine_features(NODE_B, NODE_A))
    for end in (P, S):
        pair.send("data", end, protocol())
    pair.epoch(1, 3)
    return pair


def state_change(command: int, initiator: int, target: int, conn: int) -> bytes:
    """A two-phase state change as of FEATURE_2PC_V2."""
    ids = struct.pack(">IIHbb", 7, 1 << 31, 0, initiator, target)
    return h100(command, ids + struct.pack(">QQII", 3, 0, 0x1F << 4, conn << 4))


@pytest.mark.parametrize("command", [0x05, 0x5A, 0x7F, 0xFE])
@pytest.mark.parametrize(("socket", "sender"), [("data", P), ("meta", S)])
def test_a_command_beyond_the_tables_is_no_error_of_a_session_of_drbd_9(
    command: int, socket: str, sender: str
) -> None:
    pair = connected()
    pair.send(socket, sender, h100(command, b"of a newer version"))
    pair.epoch(10, 3)
    pair.wait(2000)
    assert pair.hits == []
    assert pair.ledger.totals.writes == pair.ledger.totals.acks == 6


def test_the_same_bytes_are_an_error_of_a_session_of_drbd_8() -> None:
    pair = Pair()
    pair.connect()
    pair.send("data", P, h100(0x5A, b"of a newer version"))
    assert pair.hits == ["malformed"]


@pytest.mark.parametrize("command", sorted(drbd.DRBD9_COMMANDS), ids=lambda one: one.name)
@pytest.mark.parametrize(("socket", "sender"), [("data", P), ("meta", S)])
def test_no_command_of_its_own_is_judged_by_the_socket_that_it_came_on(
    command: drbd.Cmd, socket: str, sender: str
) -> None:
    pair = connected()
    pair.send(socket, sender, h100(command, bytes(drbd.LAYOUTS[command][0].size)))
    pair.wait(2000)
    assert "malformed" not in pair.hits


def test_a_write_on_the_meta_socket_is_an_error_all_the_same() -> None:
    pair = connected()
    pair.send("meta", P, h100(BARRIER, bytes(8)))
    assert pair.hits == ["malformed"]


def test_resync_is_answered_with_ids_of_its_own() -> None:
    """From protocol 118 on its block_id is the requester's, not the all-ones of 8.4."""
    pair = connected()
    body = struct.pack(">Q", 1280) + cookie(77) + struct.pack(">II", 0, 0)
    pair.send("data", P, h100(RS_DATA_REPLY, body + b"sums" + bytes(4096)))
    pair.send("meta", S, p_ack(77, 1280, 4096, cmd=RS_WRITE_ACK))
    pair.wait(2000)
    assert pair.hits == []
    pair.send("meta", S, p_ack(78, 1280, 4096))
    pair.wait(2000)
    assert pair.hits == ["unknown-ack"]


def cut_off(*before: bytes) -> list[str]:
    """What is hit when the session closes with a write unanswered, after ``before``."""
    pair = connected()
    pair.send("data", P, *before)
    pair.write(50, 400)
    pair.close("meta", S)
    return pair.hits


@pytest.mark.parametrize("conn", [0, 1])
def test_who_says_that_it_disconnects_may_leave_writes_unanswered(conn: int) -> None:
    assert cut_off(state_change(TWOPC_PREPARE, NODE_A, NODE_B, conn)) == []
    assert cut_off(h100(DISCONNECT)) == []
    assert cut_off() == ["unacked-close"]


def test_a_state_change_that_was_called_off_or_is_about_another_node_excuses_nothing() -> None:
    prepare = state_change(TWOPC_PREPARE, NODE_A, NODE_B, 1)
    assert cut_off(prepare, state_change(TWOPC_ABORT, NODE_A, NODE_B, 1)) == ["unacked-close"]
    assert cut_off(state_change(TWOPC_PREPARE, NODE_A, NODE_C, 1)) == ["unacked-close"]
    assert cut_off(state_change(TWOPC_PREPARE, NODE_A, NODE_B, 10)) == ["unacked-close"]


def test_an_epoch_that_was_confirmed_in_part_has_no_count_to_be_held_to() -> None:
    pair = connected()
    for number in (20, 21, 22):
        pair.write(number, number * 8)
        pair.ack(number, number * 8)
    stable = cookie(20) + cookie(21) + struct.pack(">II", 2, 0)
    pair.send("meta", S, h100(CONFIRM_STABLE, stable))
    pair.send("data", P, p_barrier(20))
    pair.send("meta", S, p_barrier_ack(20, 1))
    assert pair.hits == []
    pair.epoch(30, 3)
    pair.write(40, 320)
    pair.ack(40, 320)
    pair.send("data", P, p_barrier(40))
    pair.send("meta", S, p_barrier_ack(40, 2))
    assert pair.hits == ["barrier-count"]


def test_versions_below_have_no_such_features() -> None:
    pair = Pair()
    pair.open("data")
    pair.send("data", P, features(101))
    pair.send("data", S, features(124))
    pair.send("data", P, h100(TWOPC_PREPARE, bytes(36)))
    assert pair.hits == ["malformed"]
