"""Redaction: no data of the host and no serial number leaves, and the rest stays readable."""

import json
import subprocess
from pathlib import Path

import golden_incidents
import pytest
from golden_incidents import RECEIVER, SENDER
from link_script import P, features, h80
from link_wire import Wire
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app
from freezeframe.harness.cli.formats import FORMATS
from freezeframe.harness.core import frames
from freezeframe.harness.core.link.drbd.protocol import DrbdLink
from freezeframe.harness.core.link.follow import Follower
from freezeframe.harness.core.link.messages import Message
from freezeframe.harness.core.link.protocol import LinkOptions
from freezeframe.harness.core.link.tcpstream import Reassembler
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.redaction import (
    KEY_FILE,
    Pseudonyms,
    RedactedDossier,
    folder_key,
)
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.wire import blockstamp as stamps
from freezeframe.harness.wire.drbd import Cmd

SERIALS = ("FFSIM-P-0001", "FFSIM-S-0001")
FORMS = tuple(one.name for one in FORMATS if one.redacts)


def decoded(path: Path) -> list[str]:
    done = subprocess.run(
        ["tshark", "-r", str(path), "--enable-heuristic", "drbd_tcp", "-Y", "drbd or _ws.malformed",
         "-Tfields", "-edrbd.command", "-e_ws.malformed"],
        capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", [RECEIVER, SENDER])
def test_nothing_of_the_host_and_no_serial_number_is_exported(tmp_path: Path, name: str) -> None:
    stored = golden_incidents.unpack(name, tmp_path)
    assert stamps.MAGIC in (stored.path / "link.pcapng").read_bytes()
    assert SERIALS[0] in (stored.path / "primary" / "console.log").read_text()
    files = {form: tmp_path / f"x.{form}" for form in FORMS}
    whole = tmp_path / "whole.pcapng"
    asked = [part for form, path in files.items() for part in (f"--{form}", str(path))]
    for arguments in (["--redact", *asked], ["--pcapng", str(whole)]):
        done = CliRunner().invoke(app, ["export", "last", "--out", str(tmp_path), *arguments])
        assert done.exit_code == 0, done.output
    diff = Dossier(stored).diff
    assert diff is not None
    at = diff.offsets[0]
    around = diff.expected[at - 8 : at]
    for path in files.values():
        data = path.read_bytes()
        assert (
            stamps.MAGIC not in data and around not in data and around.hex(" ").encode() not in data
        )
        assert not any(
            serial.encode() in data or serial.encode().hex().encode() in data for serial in SERIALS
        )
    # The protocol is whole: the same packets in the same frames.
    assert decoded(files["pcapng"]) == decoded(whole) and len(decoded(whole)) > 200
    assert "Digest integrity check FAILED" in files["html"].read_text()


def test_control_frames_carry_the_other_number_and_a_right_checksum(tmp_path: Path) -> None:
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    redacted, whole = RedactedDossier(stored, key=b"k" * 32), Dossier(stored)
    for one, other in zip(redacted.control_frames, whole.control_frames, strict=True):
        here, there = frames.decode(one.frame), frames.decode(other.frame)
        assert (here.type, here.seq, len(here.payload)) == (
            there.type,
            there.seq,
            len(there.payload),
        )
        assert b"FFSIM" not in here.payload and here.payload[16:] == there.payload[16:]
    told = redacted.record.controllers["primary"].serial_number
    assert told != SERIALS[0] and len(told) == len(SERIALS[0])
    assert told in redacted.sets["primary"].header["serial_number"]
    assert any(told.encode() in line.data for line in redacted.consoles["primary"])


def test_the_findings_stay(tmp_path: Path) -> None:
    stored = golden_incidents.unpack(SENDER, tmp_path)
    redacted, whole = RedactedDossier(stored, key=b"k" * 32), Dossier(stored)
    assert redacted.link.marks == whole.link.marks and not any(
        one.data for one in redacted.link.writes
    )
    assert redacted.diff is not None and whole.diff is not None
    assert redacted.diff.offsets == whole.diff.offsets and not any(redacted.diff.expected)
    assert [step.name for step in redacted.path.steps] == [step.name for step in whole.path.steps]


def test_bytes_of_the_verdict_and_of_link_triggers_go(tmp_path: Path) -> None:
    stored = golden_incidents.unpack(SENDER, tmp_path)
    record = json.loads((stored.path / "incident.json").read_text())
    record["verdict"] = {
        "byte_offset": 1, "expected": "de47", "found": "d647", "stage": f"in {SERIALS[0].lower()}",
    }  # fmt: skip
    (stored.path / "incident.json").write_text(json.dumps(record))
    stored = StoredIncident.open(stored.path)
    redacted = RedactedDossier(stored, key=b"k" * 32)
    assert Dossier(stored).verdict.expected not in (None, "(redacted)")
    for verdict in (redacted.record.verdict, redacted.verdict):
        assert verdict is not None and verdict.expected == verdict.found == "(redacted)"
        assert "ffsim" not in (verdict.stage or "")
    link = [one for one in redacted.triggers if one.source == "link"]
    assert link and not any(one.excerpt or one.excerpt_hex for one in link)
    assert all("text" not in row for row in redacted.rows if row.get("where") == "link")


def test_frames_that_are_not_understood_lose_their_payload(tmp_path: Path) -> None:
    """A capture cut in its middle, and one whose frames come twice: what is kept is never more."""
    stored = golden_incidents.unpack(SENDER, tmp_path)
    capture = stored.path / "link.pcapng"
    whole = capture.read_bytes()
    # Interface and section blocks, then the capture from its middle on: no handshake, packets begun
    # before it.
    first = 0
    while int.from_bytes(whole[first : first + 4], "little") != 6:
        first += int.from_bytes(whole[first + 4 : first + 8], "little")
    blocks, at = [], first
    while at < len(whole):
        size = int.from_bytes(whole[at + 4 : at + 8], "little")
        blocks.append(whole[at : at + size])
        at += size
    capture.write_bytes(
        whole[:first] + b"".join(blocks[len(blocks) // 3 :]) + b"".join(blocks[: len(blocks) // 2])
    )
    seen = list(RedactedDossier(stored, key=b"k" * 32).frames())
    assert len(seen) > 500
    fill = Dossier(stored)
    assert not any(stamps.MAGIC in frame.data for frame in seen)
    assert sum(len(frame.data) for frame in seen) == sum(len(frame.data) for frame in fill.frames())


def test_the_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    key = folder_key(tmp_path)
    assert key == folder_key(tmp_path) and len(key) == 32
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / KEY_FILE).unlink()
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "elsewhere")
    assert len(folder_key(tmp_path)) == 32 and not (tmp_path / "elsewhere").exists()
    assert len(folder_key(tmp_path / "none")) == 32


def test_pseudonyms_keep_lengths_and_tell_units_apart() -> None:
    names = Pseudonyms(["ABCD-1", "ABCD-12"], b"k")
    one, other = names.text("ABCD-1"), names.text("abcd-12")
    assert len(one) == 6 and len(other) == 7 and one != other[:6]
    assert names.data(b"x ABCD-12 y") == b"x " + other.encode() + b" y"
    assert Pseudonyms(["ABCD-1"], b"l").text("ABCD-1") != one
    assert Pseudonyms([], b"k").text("\ud800 ABCD") == "\ud800 ABCD"


@pytest.mark.parametrize("command", [Cmd.AUTH_CHALLENGE, Cmd.AUTH_RESPONSE])
def test_of_a_proof_of_identity_only_the_header_is_clear(command: Cmd) -> None:
    """Challenge and response let a reader try passwords at home; what stands beside them is clear whole."""
    wire, proof = Wire(), b"\x5a" * 64
    wire.send("data", P, features(), h80(command, proof), h80(Cmd.UNPLUG_REMOTE))
    reassembler, follower = Reassembler(), Follower(DrbdLink(LinkOptions()))
    found = [
        message
        for number, frame in enumerate(wire.frames, 1)
        for event in reassembler.feed(number, frame, number)
        for message in follower.on(event)
        if isinstance(message, Message)
    ]
    starts = [one.stream_offset for one in found]
    clear = [one.clear_bytes for one in found]
    assert starts == [0, len(features()), len(features()) + 8 + len(proof)]
    assert clear == [len(features()), 8, 8]
