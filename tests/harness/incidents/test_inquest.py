"""From a folder to the verdict: poor, damaged and hostile incidents are judged or refused, and harm
nothing."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import golden_incidents
import msgspec
import pytest
import zstandard

from freezeframe.harness.core.verdict.failingblock import NOT_SHOWN, BlockRead, FailingBlock
from freezeframe.harness.core.verdict.ringdepth import ring_depth
from freezeframe.harness.errors import WireError
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.inquest import conclude, event_logs, plain, verdict_of
from freezeframe.harness.incidents.store import StoredIncident, link_runs

GOLDEN = Path(__file__).parents[2] / "golden"

TRIGGER = {
    "rule": "digest-failed",
    "source": "console",
    "side": "secondary",
    "t_match_ns": 5,
    "t_arrival_ns": 4,
}


def incident(folder: Path, **record: Any) -> StoredIncident:
    for side in ("primary", "secondary"):
        (folder / side).mkdir(parents=True)
    (folder / "incident.json").write_text(json.dumps({"outcome": "fail", **record}))
    return StoredIncident.open(folder)


def test_a_bare_record_is_inconclusive_and_says_what_is_missing(tmp_path: Path) -> None:
    verdict = verdict_of(incident(tmp_path / "one", trigger=TRIGGER))
    assert not verdict.conclusive
    assert verdict.evidence_grade == "F"
    lacks = " ".join(verdict.evidence_lacks)
    for part in ("primary's root cause", "secondary's root cause", "capture", "journal", "console"):
        assert part in lacks


def test_the_console_alone_says_what_is_possible(tmp_path: Path) -> None:
    stored = incident(tmp_path / "one", trigger=TRIGGER)
    line = b"[    1.2] block drbd0: Digest integrity check FAILED: 640s +4096\r\n"
    (stored.path / "secondary" / "console.log").write_bytes(line)
    verdict = verdict_of(stored)
    assert not verdict.conclusive and (verdict.write_lba, verdict.write_sectors) == (
        640,
        8,
    )
    assert verdict.candidates == ("primary after digest", "on the link", "secondary before check")


@pytest.mark.parametrize(
    "record",
    [
        {"trigger": 7},
        {"trigger": TRIGGER | {"t_match_ns": "soon"}},
        {"trigger": TRIGGER, "actions": "all"},
        {
            "trigger": TRIGGER,
            "actions": [{"side": "primary", "reply": {"uptime_ns": 5, "t_ack_ns": "x"}}],
        },
        {"clock": {"wall_ns": [], "monotonic_ns": {}}},
        {"clock": {"wall_ns": 1, "monotonic_ns": 1}, "clock_end": {"wall_ns": "1"}},
        {"controllers": {"primary": {"uptime_ns": "a", "t_asked_ns": 1, "t_answered_ns": 2}}},
        {"comparison": {"first_difference": {"side": 5}}},
        {"sets": [1, 2]},
        {"link": {"ports": "7788"}},
        {"recovery": [1, 2, 3]},
    ],
)
def test_a_record_that_makes_no_sense_is_refused_or_judged(
    record: dict[str, Any], tmp_path: Path
) -> None:
    stored = incident(tmp_path / "one", **record)
    try:
        verdict = verdict_of(stored)
    except WireError as error:
        assert "makes no sense" in str(error)
    else:
        assert not verdict.conclusive


def hostile_set(**state: Any) -> bytes:
    header = dict.fromkeys(
        ("set_id", "kind", "reason", "incident_id", "model", "serial_number", "firmware_version", "boot_epoch",
         "uptime_ns", "wall_ns", "first_seq", "next_seq"), 0,
    )  # fmt: skip
    keys = (
        "role", "pair_state", "conn", "disk", "peer_disk", "uuids", "dirty_blocks", "epoch", "epoch_writes",
        "queues", "cache", "last_writes", "bitmap", "diagnostics", "faults", "boot_epoch", "uptime_ns",
        "protocol_version",
    )  # fmt: skip
    content = {
        "format": "freezeframe-root-cause-data-set/1", "header": header, "state": dict.fromkeys(keys, 0) | state,
        "events": b"",
    }  # fmt: skip
    return zstandard.ZstdCompressor(write_content_size=True).compress(cbor2.dumps(content))


@pytest.mark.parametrize(
    "state",
    [
        {"last_writes": [[1, 2, 3, 4, 10**15, 6, 7]]},
        {"last_writes": [[]], "uuids": ["x"]},
        {"last_writes": {"a": 1}, "diagnostics": [1]},
        {"diagnostics": {"damaged_blocks": [[1, 2], ["a", b""], 5, [1, b"x" * 100]]}},
        {"pair_state": "\x1b[2J<script>", "conn": [1, 2, 3]},
    ],
)
def test_a_hostile_set_harms_nothing(state: dict[str, Any], tmp_path: Path) -> None:
    stored = incident(tmp_path / "one", trigger=TRIGGER)
    for side in ("primary", "secondary"):
        (stored.path / side / "set.zst").write_bytes(hostile_set(**state))
    verdict = verdict_of(stored)
    assert not verdict.conclusive
    assert json.dumps(plain(verdict)).isascii()


def test_a_file_that_is_a_link_or_a_pipe_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"Digest integrity check FAILED: 640s +4096")
    stored = incident(tmp_path / "one", trigger=TRIGGER)
    (stored.path / "secondary" / "console.log").symlink_to(secret)
    (stored.path / "host.journal").symlink_to("/dev/zero")
    os.mkfifo(stored.path / "link.pcapng")
    verdict = verdict_of(stored)
    assert verdict.lba is None and verdict.evidence_grade == "F"


def test_a_damaged_capture_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    stored = incident(tmp_path / "one", trigger=TRIGGER)
    (stored.path / "link.pcapng").write_bytes(b"\x0a\x0d\x0d\x0a" + b"\xff" * 64)
    assert any("link.pcapng" in lack for lack in verdict_of(stored).evidence_lacks)


@pytest.mark.parametrize(
    ("protocol", "capture", "port", "rejoin"),
    [
        ("nvme_tcp", "mirrors/nvme-clean", 4420, "not known"),
        ("nbd", "mirrors/nbd-clean", 10809, "not known"),
        ("iscsi", "mirrors/iscsi-nodigest", 3260, "not known"),
        ("drbd", "drbd9/drbd9-clean", 7788, "before"),
    ],
)
def test_a_block_is_from_before_the_rejoin_only_where_the_protocol_shows_rejoins(
    protocol: str, capture: str, port: int, rejoin: str, tmp_path: Path
) -> None:
    """Read at the end of a whole capture of a real pair, of one session, that a failure follows."""
    frames = gzip.decompress((GOLDEN / f"{capture}.pcap.gz").read_bytes())
    made = Incident.create(tmp_path, bench="none", seed=0, incident_id=bytes(16))
    (made.path / "link.pcapng").write_bytes(frames)
    last_ns = max(run.t_last_ns for run in link_runs(made.path))
    read = BlockRead(
        path="primary/block.bin", sha256="0", t_asked_ns=last_ns - 2, t_read_ns=last_ns
    )
    block = FailingBlock(sector=8, sectors=8, named_by="rule", sides={"primary": read})
    made.update(
        trigger=TRIGGER | {"t_match_ns": last_ns - 3, "t_arrival_ns": last_ns - 4},
        clock={"wall_ns": 0, "monotonic_ns": 0, "error_ns": 0},
        link={"protocol": protocol, "ports": [port]},
        failing_block=msgspec.to_builtins(block),
    )
    conclude(made)
    judged = StoredIncident.open(made.path).record.failing_block
    assert judged is not None
    assert judged.sides["primary"].rejoin == rejoin
    assert judged.sides["primary"].reason == (NOT_SHOWN if rejoin == "not known" else "")


def test_what_was_logged_after_the_trigger_is_counted_from_the_triggers_arrival(
    tmp_path: Path,
) -> None:
    dossier = Dossier(golden_incidents.unpack("bit_flip_receiver", tmp_path))
    verdict = dossier.verdict
    trigger = dossier.record.trigger
    assert trigger is not None
    for side, depth in event_logs(dossier, verdict).items():
        expected = ring_depth(dossier.sets[side], trigger.t_arrival_ns, verdict, side)
        assert depth == expected and depth.since_trigger is not None
    untriggered = replace(
        dossier,
        stored=replace(
            dossier.stored, record=msgspec.structs.replace(dossier.record, trigger=None)
        ),
    )
    assert {one.since_trigger for one in event_logs(untriggered, verdict).values()} == {None}
