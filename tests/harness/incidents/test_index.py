"""The index: made from the folders, made anew when in doubt, searched, counted, pruned."""

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import golden_incidents
import pytest
from golden_incidents import RECEIVER, SENDER

from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents.benchhistory import Wanted
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.index import FILE, Index
from freezeframe.harness.incidents.quota import plan, prune, size_of
from freezeframe.harness.incidents.store import incidents


def copy_of(stored: Path, name: str, **changes: Any) -> Path:
    """Another incident of the same kind, later."""
    other = stored.with_name(name)
    shutil.copytree(stored, other)
    record = json.loads((other / "incident.json").read_text())
    number = int(name.rpartition("-")[2])
    record["clock"]["wall_ns"] += number * 86_400 * 10**9
    record["created"] = f"2027-01-{number:02d}T00:00:00.000Z"
    (other / "incident.json").write_text(json.dumps(record | changes))
    return other


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for name in (RECEIVER, SENDER):
        golden_incidents.unpack(name, tmp_path)
    return tmp_path


def names(out: Path) -> list[str]:
    with Index(out) as index:
        return [one.name for one in index.incidents()]


def test_it_says_what_the_folders_say(out: Path) -> None:
    with Index(out) as index:
        found = index.incidents()
    assert [one.name for one in found] == [one.id for one in incidents(out)]
    assert [one.scenario for one in found] == [RECEIVER, SENDER]
    assert {one.line for one in found} == {"block drbd#: Digest integrity check FAILED: #s +#"}
    assert {(one.rule, one.side, one.firmware, one.listed["data_equal"]) for one in found} == {
        ("digest-failed", "secondary", "1.0.0", True)
    }
    assert (
        found[0].signature == found[1].signature
    )  # the same line, and no verdict yet that tells them apart
    assert (out / FILE).is_file()


def test_it_follows_the_folders(out: Path) -> None:
    first, second = names(out)
    record = json.loads((out / first / "incident.json").read_text())
    (out / first / "incident.json").write_text(json.dumps(record | {"scenario": "renamed"}))
    copy_of(out / second, "20270101T000000Z-1")
    with Index(out) as index:
        assert [one.scenario for one in index.incidents()] == ["renamed", SENDER, SENDER]
        assert [one.name for one, _ in index.search("renamed")] == [first]
    shutil.rmtree(out / first)
    assert names(out) == [second, "20270101T000000Z-1"]
    with Index(out) as index:
        assert index.search("renamed") == []


def test_an_open_incident_is_looked_at_again(tmp_path: Path) -> None:
    incident = Incident.create(tmp_path, bench="sim", seed=1)
    with Index(tmp_path) as index:
        assert [one.outcome for one in index.incidents()] == ["open"]
    incident._release()  # as when its process is killed: nothing in the folder changes
    with Index(tmp_path) as index:
        assert [one.outcome for one in index.incidents()] == ["interrupted"]


@pytest.mark.parametrize("damage", ["rubbish", "empty", "old", "trigger", "folder", "link"])
def test_a_damaged_or_foreign_index_is_made_anew(
    out: Path, tmp_path_factory: pytest.TempPathFactory, damage: str
) -> None:
    expected, path = names(out), out / FILE
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "precious"
    elsewhere.write_bytes(b"precious")
    if damage == "rubbish":
        path.write_bytes(os.urandom(50_000))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "link":
        path.unlink()
        path.symlink_to(elsewhere)
    else:
        with sqlite3.connect(path) as db:
            evil = "CREATE TRIGGER t AFTER DELETE ON incident BEGIN DELETE FROM incident; END"
            db.execute("PRAGMA user_version = 99" if damage == "old" else evil)
        db.close()
    assert names(out) == expected == names(out)
    assert elsewhere.read_bytes() == b"precious"


def test_where_nothing_can_be_written_it_is_kept_in_memory(out: Path) -> None:
    path = out / FILE
    path.mkdir()  # as unwritable as a place can be, for root too
    assert len(names(out)) == 2 and names(out / "none") == []


def test_search_finds_words_and_their_beginnings(out: Path) -> None:
    with Index(out) as index:
        first, second = (one.name for one in index.incidents())
        assert {one.name for one, _ in index.search("digest integr")} == {first, second}
        found = index.search(RECEIVER)
        assert [one.name for one, _ in found] == [first]
        assert "integrity check FAILED" in index.search("integrity FAILED")[0][1]
        assert index.search("digest nonesuch") == []
        for odd in ('"', "a AND", "NEAR(", "*", "-x", "col:x", "'; DROP TABLE incident; --", "\0"):
            try:
                index.search(odd)
            except UsageError:
                continue
        assert len(index.incidents()) == 2
        with pytest.raises(UsageError, match="no word"):
            index.search("  ")


def test_kinds_are_counted(out: Path) -> None:
    first, _ = names(out)
    for number in (1, 2):
        copy_of(out / first, f"20270101T000000Z-{number}")
    with Index(out) as index:
        recurrences = index.recurrences()
    assert len(recurrences) == 1
    (kind,) = recurrences.values()
    assert kind.text == "seen 4 times, first 2026-11-23 on firmware 1.0.0, last 2027-01-02"


def test_pruning_keeps_the_first_and_the_newest_of_each_kind(out: Path) -> None:
    first, other = names(out)
    verdict = {"verdict": {"conclusive": True, "stage": "on the link"}}
    record = json.loads((out / other / "incident.json").read_text())
    (out / other / "incident.json").write_text(json.dumps(record | verdict))
    for number in range(1, 5):
        copy_of(out / first, f"20270101T000000Z-{number}")
    outside = out.parent / "outside.bin"
    outside.write_bytes(bytes(100))
    (out / "20270101T000000Z-2" / "evil").symlink_to(outside)
    size = size_of(out / first)

    kept = prune(out, 4 * size, dry_run=True)
    assert [name for name, _ in kept.remove] == [
        "20270101T000000Z-1",
        "20270101T000000Z-2",
    ] and kept.is_enough
    assert len(names(out)) == 6
    done = prune(out, 0, dry_run=False)
    assert names(out) == [first, other, "20270101T000000Z-4"] and not done.is_enough
    assert done.left_bytes == sum(size_of(out / name) for name in names(out))
    assert outside.exists() and not list(out.glob(".deleting-*"))
    assert prune(out, 0, dry_run=False).remove == ()


def test_an_open_incident_is_never_pruned(tmp_path: Path) -> None:
    open_ones = [Incident.create(tmp_path, bench="sim", seed=number) for number in range(3)]
    assert prune(tmp_path, 0, dry_run=False).remove == ()
    for one in open_ones:
        one.finish("fail")
    assert len(prune(tmp_path, 0, dry_run=False).remove) == 1
    assert plan([], {}, 0).is_enough


def test_what_is_being_recorded_counts_as_an_incident_once_something_triggered(out: Path) -> None:
    """Seen: ``list`` and ``stats`` counted the record of a watch that nothing had triggered."""
    with Index(out) as index:
        kinds = index.recurrences()
    recording = Incident.create(
        out, bench="sim", bench_id="sim-1", pair_id="p", seed=0, scenario="", versions={}, rules=[],
        incident_id=bytes(16),
    )  # fmt: skip
    with Index(out) as index:
        everything = index.incidents()
        assert [one.name for one in everything if one.is_recording] == [recording.path.name]
        assert recording.path.name not in [one.name for one in Wanted().select(everything)]
        assert index.recurrences(everything) == kinds
    recording.finish("interrupted")
