"""The incident folder: whole after a close, readable after a kill, valid after a full disk."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freezeframe.harness.core import timeline
from freezeframe.harness.core.events import FrameFailed, FrameSent, Trigger
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.incident import MAX_LISTED, Incident
from freezeframe.harness.incidents.store import StoredIncident, find, incidents
from freezeframe.harness.roles import Reply, RootCauseSet

ROOT = Path(__file__).resolve().parents[3]
TRIGGER = Trigger(
    t_ns=1_500, rule="digest-failed", source="console", side="secondary", offset_bytes=812,
    t_arrival_ns=1_000, t_match_ns=1_500, excerpt=b"Digest \x1b[31mFAILED", instruct=["primary", "secondary"],
)  # fmt: skip
SENT = FrameSent(t_ns=2_000, side="primary", seq=7, t_done_ns=62_000, frame=b"\x00\x05\xf5\x00")
REPLY = Reply(ok=True, status="ok", set_id=3, boot_epoch=2, t_received_ns=90_000)
PULLED = RootCauseSet(
    header={"set_id": 3, "incident_id": b"\x01\x02"},
    state={"role": 1, "last_writes": [[1, 2, 512, 99, b"\xff", 5, 3]]},
    events=[
        {
            "seq": 4,
            "uptime_ns": 12_000_000_345,
            "name": "BOOT",
            "level": "INFO",
            "boot_epoch": 1,
            "t": "a\nb",
        }
    ],
)


def create(out: Path, **fields: Any) -> Incident:
    return Incident.create(
        out,
        bench="sim",
        seed=7,
        scenario="clean",
        versions={"freezeframe": "0"},
        rules=["a.toml"],
        **fields,
    )


def test_a_finished_incident_is_whole(tmp_path: Path) -> None:
    incident = create(tmp_path)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", incident.path.name)
    assert incident.path.name.endswith(incident.incident_id.hex()[:8])
    incident.console_path("secondary").write_bytes(b"boot\n")
    incident.link_path.write_bytes(b"pcap")
    incident.triggered(TRIGGER)
    incident.acted(SENT)
    incident.acted(FrameFailed(t_ns=3_000, side="secondary", error="gone\x07"))
    incident.replied("primary", REPLY, 95_000)
    incident.replied("secondary", None, 96_000)
    incident.step(97_000, "primary", "up", "boot epoch 2")
    for part in (b"abc", b"def"):
        incident.append_set("primary", part)
    assert (
        incident.received_set("primary") == b"abcdef" and incident.received_set("secondary") == b""
    )
    incident.store_set("primary", PULLED)
    incident.missing_set("secondary", "no answer")
    incident.note("two capture drops")
    incident.finish("fail", data_equal=True, lost_acked_writes=0, capture={"drops": 2})

    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=incident.path, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    assert {line.split(":")[0] for line in checked.stdout.splitlines()} == {
        "incident.json", "link.pcapng", "timeline.jsonl", "primary/events.log", "primary/set.zst",
        "primary/state.json", "secondary/console.log",
    }  # fmt: skip
    assert not list(incident.path.rglob(".*"))

    stored = Incident.open(incident.path)
    record: Any = stored.raw
    assert stored.outcome == record["outcome"] == "fail" and stored.problems == ()
    assert record["trigger"]["excerpt"] == "Digest \\x1b[31mFAILED"
    assert record["trigger"]["reaction_us"] == 61.0 and record["trigger"]["t_ack_ns"] == 90_000
    assert [action["reply"]["status"] for action in record["actions"]] == ["ok", "no answer"]
    assert (
        record["actions"][0]["frame_hex"] == "0005f500"
        and record["actions"][1]["error"] == "gone\\x07"
    )
    assert record["sets"]["primary"] == {
        "bytes": 6, "complete": True, "events": 1, "path": "primary/set.zst",
        "sha256": "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721",
    }  # fmt: skip
    assert record["sets"]["secondary"] == {
        "bytes": 0, "complete": False, "path": "", "sha256": "", "reason": "no answer",
    }  # fmt: skip
    assert record["notes"] == ["two capture drops"] and record["recovery"][0]["step"] == "up"
    state = json.loads((incident.path / "primary/state.json").read_text())
    assert state["header"]["incident_id"] == "0102" and state["state"]["last_writes"][0][4] == "ff"
    assert (incident.path / "primary/events.log").read_text() == (
        "         4       12.000000345 INFO  BOOT boot_epoch=1 t=a\\nb\n"
    )
    rows = stored.timeline()
    assert [row["event"] for row in rows] == [
        "trigger",
        "frame-sent",
        "frame-failed",
        "reply",
        "reply",
        "up",
    ]
    assert rows[0]["where"] == "console" and rows[1]["frame_hex"] == "0005f500"
    assert stored.altered() == []
    (incident.path / "link.pcapng").write_bytes(b"other")
    assert stored.altered() == ["link.pcapng was altered since the incident was closed"]


def test_the_whole_line_of_a_console_trigger_is_told(tmp_path: Path) -> None:
    incident = create(tmp_path)
    log = b"boot\r\n[ 1.5] drbd0: Out of sync: start=24, size=8 \x1b[1m(sectors)\r\n[ 1.6] next\r\n"
    incident.console_path("secondary").write_bytes(log)
    end = log.index(b"start=") + 6
    incident.triggered(msgspec.structs.replace(TRIGGER, offset_bytes=end, excerpt=log[:end]))
    incident.finish("fail")
    line = Incident.open(incident.path).record.triggers[0].line
    assert line == r"[ 1.5] drbd0: Out of sync: start=24, size=8 \x1b[1m(sectors)"


def test_a_clean_run_leaves_nothing(tmp_path: Path) -> None:
    incident = create(tmp_path)
    incident.console_path("primary").write_bytes(b"text")
    incident.discard()
    assert list(tmp_path.iterdir()) == [] and incidents(tmp_path) == []


def test_later_triggers_are_listed_and_the_first_stays(tmp_path: Path) -> None:
    incident = create(tmp_path)
    incident.triggered(TRIGGER)
    incident.acted(SENT)
    incident.triggered(Trigger(t_ns=9, rule="neg-ack", source="link", side="primary", offset_bytes=1,
                               t_arrival_ns=9, t_match_ns=9))  # fmt: skip
    incident.acted(FrameSent(t_ns=70_000, side="secondary", seq=8, t_done_ns=80_000, frame=b""))
    assert incident.record["trigger"]["rule"] == "digest-failed"
    assert incident.record["trigger"]["t_frame_done_ns"] == 62_000
    assert [one["rule"] for one in incident.record["more_triggers"]] == ["neg-ack"]


def test_later_triggers_do_not_wait_for_the_disk_each(tmp_path: Path) -> None:
    incident = create(tmp_path)
    for offset in (1, 2, 3):
        incident.triggered(msgspec.structs.replace(TRIGGER, offset_bytes=offset))

    def listed() -> list[int | None]:
        return [one.offset_bytes for one in Incident.open(incident.path).record.triggers]

    assert listed() == [1]
    assert [row["offset_bytes"] for row in Incident.open(incident.path).timeline()] == [1, 2, 3]
    incident.acted(SENT)
    assert listed() == [1, 2, 3]


def test_a_damaged_set_is_kept_beside(tmp_path: Path) -> None:
    incident = create(tmp_path)
    for text in (b"bad", b"worse"):
        incident.append_set("primary", text)
        incident.set_aside("primary")
    incident.append_set("primary", b"good")
    names = sorted(path.name for path in (incident.path / "primary").iterdir())
    assert names == ["set.damaged-1.zst", "set.damaged-2.zst", "set.zst"]
    assert incident.received_set("primary") == b"good" and len(incident.record["notes"]) == 2


KILLED = """
import sys
from pathlib import Path
from freezeframe.harness.core.events import Trigger
from freezeframe.harness.incidents.incident import MAX_LISTED, Incident
incident = Incident.create(Path(sys.argv[1]), bench="sim", seed=1)
incident.triggered(Trigger(t_ns=5, rule="r", source="link", side="primary", offset_bytes=0,
                           t_arrival_ns=5, t_match_ns=5))
incident.append_set("primary", b"part")
print(incident.path, flush=True)
sys.stdin.read()
"""


def test_a_killed_run_leaves_a_readable_incident(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().decode().strip())
    assert Incident.open(path).outcome == "open"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stored = Incident.open(path)
    assert stored.outcome == "interrupted" and stored.record.triggers[0].rule == "r"
    assert (path / "primary/set.zst").read_bytes() == b"part"
    assert [row["event"] for row in stored.timeline()] == ["trigger"]


FULL = """
import sys
from pathlib import Path
from freezeframe.harness.core import timeline
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.incident import MAX_LISTED, Incident
out = Path(sys.argv[1])
incident = Incident.create(out, bench="sim", seed=1)
for call in (
    lambda: incident.append_set("primary", bytes(1 << 20)),
    lambda: [incident.append(timeline.row(n, "x", "y", text="z" * 999)) for n in range(500)],
    lambda: incident.update(capture={"text": "c" * (1 << 19)}),
):
    try:
        call()
    except RigError as error:
        print("told:", error)
stored = Incident.open(incident.path)
rows = (incident.path / "timeline.jsonl").read_bytes()
print("valid:", stored.outcome, stored.record.seed, stored.problems, rows == b"" or rows.endswith(b"}\\n"))
print("left:", sorted(p.name for p in incident.path.iterdir()))
"""


def test_a_full_disk_is_told_and_leaves_what_was_valid(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    enter = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    shell = 'mount -t tmpfs -o size=200k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", *enter, "--mount", "sh", "-c", shell, "sh", str(mount), sys.executable, FULL],
        capture_output=True, text=True, cwd=ROOT, timeout=200,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("told:")]
    assert len(told) == 3, done.stdout + done.stderr
    for line, name in zip(
        told, ("primary/set.zst", "timeline.jsonl", "incident.json"), strict=True
    ):
        assert str(mount) in line and f"{name}: No space left on device" in line
    assert "valid: open 1 () True" in done.stdout
    assert (
        "left: ['.lock', 'incident.json', 'primary', 'secondary', 'timeline.jsonl']" in done.stdout
    )


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: there is already a file of that name"):
        create(tmp_path / "file")


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"x"', "[" * 100_000, '{"outcome": ["open"], "clock": 3}', "\xff"]
)
def test_a_hostile_record_is_read_without_a_fall(tmp_path: Path, text: str) -> None:
    (tmp_path / "incident.json").write_text(text, encoding="latin-1")
    (tmp_path / "timeline.jsonl").write_text('{"t_ns": 5}\n{"t_ns": "x"}\n[]\nhalf {"')
    stored = StoredIncident.open(tmp_path)
    assert stored.outcome == "interrupted"
    assert stored.started_ns == 0 and [row["t_ns"] for row in stored.timeline()] == [5]


def test_sums_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    incident = create(tmp_path / "out")
    incident.finish("pass")
    (incident.path / "SHA256SUMS").write_text(
        f"{'0' * 64}  ../../secret\n{'0' * 64}  /etc/passwd\n"
    )
    assert Incident.open(incident.path).altered()[:2] == [
        "../../secret is in no folder of the incident",
        "/etc/passwd is in no folder of the incident",
    ]


def test_incidents_are_found_by_what_a_person_types(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no incidents here"):
        find("last", tmp_path)
    (tmp_path / "other").mkdir()
    made = [create(tmp_path, incident_id=bytes([number]) * 16) for number in (0x11, 0x12, 0x33)]
    for incident in made:
        incident.finish("pass")
    assert [one.path for one in incidents(tmp_path)] == [one.path for one in made]
    assert find("last", tmp_path).path == made[2].path
    under_way = create(tmp_path, incident_id=bytes([0x44]) * 16)
    assert find("last", tmp_path).path == made[2].path, "a watch always has one more under way"
    assert find("44", tmp_path).path == under_way.path
    only = create(tmp_path / "other", incident_id=bytes([0x55]) * 16)
    assert find("last", tmp_path / "other").path == only.path
    under_way.discard()
    only.discard()
    assert find("12", tmp_path).path == made[1].path
    assert find(made[0].path.name, tmp_path).path == made[0].path
    assert find(str(made[0].path), tmp_path).path == made[0].path
    assert find(str(made[0].path / "incident.json"), tmp_path).path == made[0].path
    with pytest.raises(UsageError, match="1: fits 2 incidents, among them"):
        find("1", tmp_path)
    with pytest.raises(UsageError, match=r"no such incident in .*; the newest there: "):
        find("f", tmp_path)
    with pytest.raises(UsageError, match="no incident here"):
        find(str(tmp_path / "other"), tmp_path)


def test_rows_hold_only_json_and_escaped_text() -> None:
    row = timeline.row(1, "x", "y", "primary", text="a\x1b" + "b" * 9000, data=b"\x00\xff", level=3)
    assert row["text"].startswith("a\\x1bb") and len(row["text"]) < 5000
    assert row["data_hex"] == "00ff" and json.loads(json.dumps(row)) == row


def test_the_trigger_that_is_acted_on_is_the_incidents(tmp_path: Path) -> None:
    """Its time is the reaction's: one that instructs nobody, or that came too early, is listed
    behind it."""
    incident = create(tmp_path)
    early = msgspec.structs.replace(TRIGGER, rule="early", t_arrival_ns=1, instruct=[])
    for one in (early, TRIGGER, msgspec.structs.replace(TRIGGER, rule="later")):
        incident.triggered(one)
    assert incident.record["trigger"]["rule"] == "early"
    incident.acts_on(TRIGGER)
    incident.acted(SENT)
    assert incident.record["trigger"]["rule"] == TRIGGER.rule
    assert incident.record["trigger"]["reaction_us"] == 61.0
    assert [one["rule"] for one in incident.record["more_triggers"]] == ["early", "later"]
    incident.finish("fail")


@pytest.mark.parametrize(
    ("source", "budget_us", "is_slow"),
    [
        ("console", None, False), ("console", 61.0, False), ("console", 60.9, True), ("link", 60.9, True),
        ("operator", 60.9, False),  # saved later: nobody had to be quick
    ],
)  # fmt: skip
def test_a_reaction_slower_than_the_benchs_budget_is_noted_once(
    tmp_path: Path, source: Any, budget_us: float | None, is_slow: bool
) -> None:
    incident = create(tmp_path)
    incident.update(judged_by={"reaction_budget_us": budget_us})
    incident.triggered(msgspec.structs.replace(TRIGGER, source=source))
    said = [incident.acted(SENT), incident.acted(msgspec.structs.replace(SENT, side="secondary"))]
    slow = "slow reaction: the first frame was written 61.0 us after the trigger was read, 60.9 us are allowed"
    assert said == [slow if is_slow else "", ""]
    assert incident.record["notes"] == [one for one in said if one]
    incident.finish("fail")


@pytest.mark.parametrize("end", ["finish", "discard"])
def test_nobody_writes_into_a_closed_incident(tmp_path: Path, end: str) -> None:
    """A collector that outlives its run must not change what the sums were made of, nor write into
    descriptors that belong to somebody else by then."""
    incident = create(tmp_path)
    incident.append_set("primary", b"abc")
    _ = incident.finish("fail") if end == "finish" else incident.discard()
    for write in (
        lambda: incident.append_set("primary", b"def"),
        lambda: incident.missing_set("primary", "gone"),
        lambda: incident.step(1, "primary", "up"),
        incident.milestone,
    ):
        with pytest.raises(RigError, match="the incident is closed"):
            write()
    if end == "finish":
        assert StoredIncident.open(incident.path).altered() == []


def test_each_part_of_an_incident_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel was asked for, in order: after a power cut a part is whole or not there, and
    a finished incident is whole."""
    asked: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(fd: int) -> None:
        asked.append(("fsync", str(Path(f"/proc/self/fd/{fd}").readlink())))
        fsync(fd)

    def seen_replace(path: Path, target: Path) -> Path:
        asked.append(("rename", str(path)))
        asked.append(("named", str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    incident = create(tmp_path)
    incident.finish("pass")
    for at, (what, path) in enumerate(asked):
        if what == "rename":
            assert asked[at - 1] == ("fsync", path)
            named = asked[at + 1][1]
            assert asked[at + 2] == ("fsync", str(Path(named).parent))
    named_files = [Path(path).name for what, path in asked if what == "named"]
    assert {"incident.json", "SHA256SUMS"} <= set(named_files)
    timeline_at = asked.index(("fsync", str(incident.path / "timeline.jsonl")))
    assert timeline_at < asked.index(("named", str(incident.path / "SHA256SUMS")))


def test_what_an_incident_lists_is_bounded(tmp_path: Path) -> None:
    incident = create(tmp_path)
    for number in range(MAX_LISTED + 5):
        incident.note(f"note {number}")
    assert len(incident.record["notes"]) == MAX_LISTED
    incident.finish("pass")
