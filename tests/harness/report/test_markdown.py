"""An incident as a ticket: the answer first, and nothing of a device outside of fenced code."""

import json
import re
from pathlib import Path

import golden_incidents
import pytest
from golden_incidents import RECEIVER, SENDER
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.redaction import RedactedDossier
from freezeframe.harness.report.markdown import fenced, ticket


def unfenced(text: str) -> list[str]:
    """The lines outside of fenced code, as CommonMark sees them; each fence is closed."""
    outside, fence = [], ""
    for line in text.splitlines():
        if fence:
            fence = "" if re.fullmatch(rf" {{0,3}}{fence}`*[ \t]*", line) else fence
        elif (opened := re.match(r" {0,3}(`{3,})[^`]*$", line)) is not None:
            fence = opened[1]
        else:
            outside.append(line)
    assert not fence
    return outside


@given(st.lists(st.text(alphabet="`~ a\t#"), max_size=6))
def test_nothing_gets_out_of_a_fence(lines: list[str]) -> None:
    assert unfenced(f"before\n{fenced(lines)}\nafter") == ["before", "after"]


@pytest.mark.parametrize("name", [RECEIVER, SENDER])
def test_the_answer_comes_first_and_the_console_shows_the_trigger(
    tmp_path: Path, name: str
) -> None:
    dossier = Dossier(golden_incidents.unpack(name, tmp_path))
    text = ticket(dossier)
    lines = text.splitlines()
    assert lines[0] == "## PASS: FreezeFrame incident"
    assert [line[:14].strip() for line in lines[3:6]] == ["what happened", "why", "what to do now"]
    assert dossier.verdict.text in lines[4]
    (marked,) = (line for line in lines if line.startswith("> "))
    assert "Digest integrity check FAILED" in marked
    assert all(line == "" or line.startswith("##") for line in unfenced(text))


def test_a_devices_text_stays_text(tmp_path: Path) -> None:
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    hostile = "\n```\n# owned @everyone ![x](http://x)\x1b[2J<img src=x>"
    record = json.loads((stored.path / "incident.json").read_text())
    record |= {"notes": [hostile], "reasons": [hostile], "bench": hostile}
    record["trigger"] |= {"excerpt": hostile, "rule": hostile}
    (stored.path / "incident.json").write_text(json.dumps(record))
    text = ticket(Dossier(type(stored).open(stored.path)))
    assert "owned" in text and "\x1b" not in text
    assert all(line == "" or line.startswith("##") for line in unfenced(text))
    assert not [line for line in unfenced(text) if "owned" in line]


def test_the_preview_says_what_the_redaction_does(tmp_path: Path) -> None:
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    whole, bare = Dossier(stored), RedactedDossier(stored, key=b"k" * 32)
    shown = bare.preview()
    assert shown.serial_numbers and all(
        len(one) == len(other) and one != other for one, other in shown.serial_numbers.items()
    )
    pairs = list(zip(whole.frames(), bare.frames(), strict=True))
    assert shown.frames == len(pairs)
    assert shown.captured_bytes == sum(len(one.data) for one, _ in pairs)
    changed = [(one.data, other.data) for one, other in pairs if one.data != other.data]
    assert shown.masked_frames == len(changed) > 0
    assert shown.masked_bytes == sum(
        one != other for before, after in changed for one, other in zip(before, after, strict=True)
    )
    for serial, places in shown.occurrences.items():
        for side in ("primary", "secondary"):
            there = sum(line.data.count(serial.encode()) for line in whole.consoles[side])
            assert places.get(f"{side}'s console", 0) == there
            assert not any(serial.encode() in line.data for line in bare.consoles[side])
