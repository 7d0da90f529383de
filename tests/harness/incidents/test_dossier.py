"""Dossier: a recorded incident is read to the byte, and a damaged one is told, not believed."""

import json
import os
import struct
from itertools import pairwise
from pathlib import Path

import golden_incidents
import pytest
import zstandard
from golden_incidents import RECEIVER, SENDER

from freezeframe.harness.core.blocks.blockdiff import hex_rows
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.store import StoredIncident, open_inside
from freezeframe.harness.report.html import page
from freezeframe.harness.report.perfetto import trace


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Dossier:
    return Dossier(golden_incidents.unpack(RECEIVER, tmp_path_factory.mktemp("receiver")))


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Dossier:
    return Dossier(golden_incidents.unpack(SENDER, tmp_path_factory.mktemp("sender")))


@pytest.mark.parametrize("name", [RECEIVER, SENDER])
def test_the_failing_write_is_followed_from_the_host_to_the_sets(
    name: str, request: pytest.FixtureRequest
) -> None:
    evidence: Dossier = request.getfixturevalue("receiver" if name == RECEIVER else "sender")
    assert evidence.problems == []
    steps = [step.name for step in evidence.path.steps]
    assert steps[:5] == [
        "host writes",
        "primary takes the write from the host",
        "primary sends the copy",
        "the copy on the link" + (", digest wrong" if name == SENDER else ""),
        "secondary finds the digest wrong",
    ]
    assert steps[5:7] == ["log line arrives", "trigger digest-failed"]
    assert {"control frame to the primary", "secondary answers", "primary's set pulled"} <= set(
        steps
    )
    by_name = {step.name: step for step in evidence.path.steps}
    order = [by_name[one] for one in ("host writes", "primary sends the copy", "log line arrives")]
    for earlier, later in pairwise(order):
        assert earlier.t_ns - earlier.error_ns < later.t_ns + later.error_ns
    # One arrow into every step but the first: nothing hangs in the air.
    assert sorted(to for _, to in evidence.path.arrows) == list(range(1, len(steps)))


def test_the_flipped_bit_of_the_receiver_is_rebuilt_from_two_checksums(receiver: Dossier) -> None:
    diff = receiver.diff
    assert diff is not None and len(diff.expected) == 4096
    assert (
        len(diff.offsets) == 1
        and (diff.expected[diff.offsets[0]] ^ diff.found[diff.offsets[0]]).bit_count() == 1
    )
    assert "CRC-32C" in diff.found_from
    assert receiver.failing is not None and receiver.failing.digest_is_right is True
    assert receiver.failing.data == diff.expected


def test_the_flipped_bit_of_the_sender_stands_on_the_link(sender: Dossier) -> None:
    diff = sender.diff
    assert diff is not None and diff.found_from.startswith("what was on the link")
    assert len(diff.offsets) == 1
    assert sender.failing is not None and sender.failing.digest_is_right is False
    assert any("digest wrong" in text for text in sender.link.marks[sender.failing.packet_no])
    rows = hex_rows(diff)
    different = [row for row in rows if row is not None and row.expected != row.found]
    assert len(different) == 1 and different[0].offset == diff.offsets[0] // 16 * 16


def test_the_trigger_stands_in_its_line_of_the_console(receiver: Dossier) -> None:
    assert receiver.trigger_line is not None
    side, at = receiver.trigger_line
    line = receiver.consoles[side][at]
    assert side == "secondary" and b"Digest integrity check FAILED" in line.data
    assert line.rules == ("digest-failed",) and line.t_ns == receiver.record.trigger.t_arrival_ns
    assert all(one.t_ns for one in receiver.consoles["primary"])


def test_cut_evidence_leaves_less_and_never_fails(tmp_path: Path) -> None:
    stored = golden_incidents.unpack(SENDER, tmp_path)
    capture = stored.path / "link.pcapng"
    capture.write_bytes(capture.read_bytes()[:600_001])
    (stored.path / "secondary" / "set.zst").write_bytes(b"\x28\xb5\x2f\xfd rubbish")
    (stored.path / "primary" / "console.times").write_bytes(b"\xff" * 40)
    journal = stored.path / "host.journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    evidence = Dossier(stored)
    assert evidence.link.frames > 100 and evidence.consoles["primary"]
    assert evidence.verdict.write is not None
    assert [step.lane for step in evidence.path.steps]
    assert any("secondary's set cannot be read" in problem for problem in evidence.problems)
    for name in ("link.pcapng", "host.journal", "incident.json"):
        (stored.path / name).unlink()
    bare = Dossier(StoredIncident.open(stored.path))
    assert bare.diff is None and bare.failing is None and bare.path.steps == ()
    assert bare.link.frames == 0 and "there is no capture of the link" in bare.problems


def test_only_plain_files_inside_the_folder_are_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    stored = golden_incidents.unpack(SENDER, tmp_path)
    (stored.path / "primary" / "console.log").unlink()
    (stored.path / "primary" / "console.log").symlink_to(secret)
    os.mkfifo(stored.path / "pipe")
    with pytest.raises(RigError, match="plain files"):
        open_inside(stored.path, "primary/console.log")
    with pytest.raises(RigError, match="not a regular file"):
        open_inside(stored.path, "pipe")
    with pytest.raises(RigError, match="plain files"):
        open_inside(stored.path, "primary")
    evidence = Dossier(stored)
    assert evidence.consoles["primary"] == [] and any(
        "console.log" in problem for problem in evidence.problems
    )
    (stored.path / "secondary").rename(tmp_path / "elsewhere")
    (stored.path / "secondary").symlink_to(tmp_path / "elsewhere")
    assert Dossier(stored).consoles["secondary"] == []


def test_a_record_full_of_wrong_types_is_read_all_the_same(tmp_path: Path) -> None:
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    for value in (None, [], "x", 1e308, {"trigger": 3}, [[[]]]):
        record = dict.fromkeys(stored.raw, value)
        (stored.path / "incident.json").write_text(json.dumps(record))
        evidence = Dossier(StoredIncident.open(stored.path))
        assert evidence.trigger_line is None and evidence.control_frames == []
        assert isinstance(evidence.path.steps, tuple)
    huge = dict(stored.raw)
    huge["clock"] = {"monotonic_ns": -(10**40), "wall_ns": 10**60}
    huge["trigger"] = {
        **huge["trigger"],
        "offset_bytes": 10**30,
        "t_match_ns": -5,
        "sector": 10**40,
    }
    (stored.path / "incident.json").write_text(json.dumps(huge))
    (stored.path / "secondary" / "console.times").write_bytes(struct.pack("<QQ", 2**64 - 1, 0))
    evidence = Dossier(StoredIncident.open(stored.path))
    assert evidence.link.frames and evidence.verdict.t_detect_ns is None
    assert any("trigger.t_match_ns" in problem for problem in evidence.stored.problems)


def test_bombs_and_floods_cost_little(tmp_path: Path) -> None:
    """A set that unpacks to more than any set may hold, a timeline and a console without end, a
    capture of lies."""
    stored = golden_incidents.unpack(SENDER, tmp_path)
    bomb = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 27)
    packed = b"".join(bomb.compress(bytes(1 << 24)) for _ in range(8)) + bomb.flush()
    assert len(packed) < 1 << 20
    (stored.path / "primary" / "set.zst").write_bytes(packed)
    undeclared = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    (stored.path / "secondary" / "set.zst").write_bytes(
        undeclared.compress(bytes(1 << 26)) + undeclared.flush()
    )
    with (stored.path / "timeline.jsonl").open("ab") as rows:
        rows.write(b'{"t_ns":1,"source":"a","event":"b"}\n' * 100_000)
    (stored.path / "primary" / "console.log").write_bytes(b"\n" * 50_000 + b"x" * 1_000_000)
    capture = stored.path / "link.pcapng"
    capture.write_bytes(capture.read_bytes() + struct.pack("<II", 6, 0xFFFFFFF0) + bytes(64))
    (stored.path / "host.journal").write_bytes(b"FFJRNL01" + b"\xff" * 100_000)
    evidence = Dossier(stored)
    shown = page(evidence)
    assert len(shown) < 2 << 20
    assert len(trace(evidence)) < 64 << 20
    assert evidence.sets == {} and evidence.link.frames > 100 and evidence.host_writes == []
    assert sum("set cannot be read" in one for one in evidence.problems) == 2
    assert any("link.pcapng" in one for one in evidence.problems)


def test_an_algorithm_that_nobody_named_is_given_up_where_most_digests_are_wrong(
    receiver: Dossier,
) -> None:
    link = receiver.link
    assert not link.ends.integrity_alg, (
        "the incident names none, and the capture lacks the handshake"
    )
    assert {one.digest_is_right for one in link.writes} == {True}
    for write in link.writes:
        write.row.digest_wire = bytes(4)
    assert {one.digest_is_right for one in link.writes} == {False}
    link.close()
    assert {one.digest_is_right for one in link.writes} == {None}
    assert not any("digest wrong" in text for texts in link.marks.values() for text in texts)
