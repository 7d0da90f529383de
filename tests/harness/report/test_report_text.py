"""The report of an incident in words: each line of it says what the record holds, and nothing that
acts on a terminal."""

import json
from typing import Any

import golden_incidents
import pytest
from golden_incidents import RECEIVER
from rich.console import Console

from freezeframe.harness.core.verdict.record import Verdict, WayStep
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.record import read_record
from freezeframe.harness.report.html import page
from freezeframe.harness.report.summary import summary
from freezeframe.harness.report.text import canaries_in_words, recheck_in_words, verdict_report

CANARIES = {
    "primary": {"seen": True, "round_trip_us": 4321, "arrival_to_match_us": 37.4},
    "secondary": {"seen": False, "reason": "its controller cannot be asked to print"},
}
RECHECK = {
    "primary": {
        "checked_bytes": 4096, "hits": 3, "missed": [], "unfounded": [], "not_checked": ["beat"], "agrees": True,
    },
    "secondary": {
        "checked_bytes": 10, "hits": 1, "missed": [["torn", 8]], "unfounded": [["ghost\x1b[31m", 9]] * 7,
        "not_checked": [], "agrees": False,
    },
}  # fmt: skip
SAID = (
    "primary heard 4.3 ms after it was asked for, 37 us after it was read; "
    "secondary NOT HEARD: its controller cannot be asked to print",
    "primary agrees (4.0 KiB, 3 hits), not checked: beat; secondary DIFFERS, missed: torn at byte 8, "
    "reported but not there: " + ", ".join(["ghost\\x1b[31m at byte 9"] * 5) + " and 2 more",
)


def printed(record: dict[str, Any]) -> str:
    console = Console(width=600, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(read_record(record)[0], "pass", verbose=True))
    return capture.get()


def test_the_proofs_of_the_watching_have_a_row_each() -> None:
    record: dict[str, Any] = {"canaries": CANARIES, "recheck": RECHECK}
    typed, damage = read_record(record)
    assert not damage and (canaries_in_words(typed), recheck_in_words(typed)) == SAID
    rows = {
        line.split()[0]: line.split(maxsplit=1)[1].strip() for line in printed(record).splitlines()
    }
    assert (rows["canaries"], rows["recheck"]) == SAID


def test_the_page_shows_them_too(tmp_path: Any) -> None:
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    told = {**stored.raw, "canaries": CANARIES, "recheck": RECHECK}
    (stored.path / "incident.json").write_text(json.dumps(told))
    shown = page(Dossier(type(stored).open(stored.path)))
    assert "<dt>canaries</dt><dd>" + SAID[0] in shown and "<dt>recheck</dt><dd>" + SAID[1] in shown


@pytest.mark.parametrize(
    "bad", [None, [], 4, {"primary": None}, {"primary": {"seen": 1, "agrees": "\x1b"}}]
)
def test_a_record_without_them_or_with_nonsense_is_shown(bad: Any) -> None:
    assert "result" in printed({"canaries": bad, "recheck": bad})
    assert "canaries" not in printed({}) and "recheck" not in printed({})
    wrong = {"recheck": {"primary": {"agrees": False, "missed": 3, "unfounded": [7, [1, []]]}}}
    said = recheck_in_words(read_record(wrong)[0])
    assert said.startswith("primary DIFFERS")


def test_the_steps_of_a_write_stand_in_the_order_of_their_times() -> None:
    steps = tuple(
        WayStep(at=name, source="link", t_ns=t_ns, error_ns=0)
        for name, t_ns in (("a", 9_000_000), ("b", None), ("c", 4_000_000), ("d", 4_000_000))
    )
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(verdict_report(Verdict(route=steps)))
    lines = [line.split() for line in capture.get().splitlines() if line.startswith("way")]
    assert "zero: the first step" in " ".join(lines[0])
    assert [line[-1] for line in lines[1:]] == ["c", "d", "a", "b"]
    assert lines[1][1] == "+0.000" and lines[3][1] == "+5.000"


def test_an_import_has_no_scenario_and_no_seed() -> None:
    assert "imported evidence" in printed({"bench": "import", "scenario": "import", "seed": 0})
    assert "seed 3" in printed({"bench": "import-lab", "scenario": "clean", "seed": 3})


def test_verbose_names_one_place_of_the_trigger() -> None:
    on_link = {"rule": "r", "source": "link", "side": "primary", "offset_bytes": 7633}
    assert printed({"trigger": on_link}).count("packet 7633") == 2  # next, trigger at
    on_console = {
        **on_link,
        "source": "console",
        "excerpt_hex": b"x\nline".hex(),
        "excerpt": "line",
    }
    assert "console.log at byte 7629, its match ends at byte 7633" in printed(
        {"trigger": on_console}
    )
