"""The audit journal: each line whole, or apart from the next."""

import json
from pathlib import Path

import pytest
from full_disk import full_disk

from freezeframe.harness.runs.audit import AuditJournal


@pytest.mark.parametrize("room_bytes", [0, 1, 40])
def test_a_line_that_a_full_disk_cuts_short_does_not_take_the_next_one_with_it(
    room_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: the next line was appended to the rest of it, and neither could be read."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    journal = AuditJournal("lab", "watch", Path("lab.toml"))
    journal.add("arm", "first")
    with full_disk(journal.path.stat().st_size + room_bytes):
        journal.add("strike", "cut short")
    assert journal.problem == f"{journal.path}: File too large"
    journal.add("disarm", "after it")
    journal.add("end", "last")
    lines = journal.path.read_text().splitlines()
    whole = [json.loads(one)["about"] for one in lines if one.endswith("}")]
    assert whole == ["first", "after it", "last"] and len(lines) == 3 + bool(room_bytes)
