"""The rule lab: recorded runs replayed against rule files."""

import json
from pathlib import Path
from typing import Any

import golden_incidents
import msgspec
import pytest
from golden_incidents import RECEIVER, SENDER
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app
from freezeframe.harness.core.console.rules import parse_rules
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.rulelab import HitPlace, compare, found, recorded, totals
from freezeframe.harness.incidents.store import StoredIncident

RULES = """
[[rule]]
name = "digest-failed"
source = "console"
side = "secondary"
literal = "Digest integrity check FAILED"

[[rule]]
name = "receive-error"
source = "console"
literal = "error receiving"

[[rule]]
name = "link-digest"
source = "link"
event = "digest-mismatch"

[[rule]]
name = "link-unacked-close"
source = "link"
event = "unacked-close"
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for name in (RECEIVER, SENDER):
        golden_incidents.unpack(name, folder)
    return folder


def opened(out: Path, scenario: str) -> Dossier:
    stored = [StoredIncident.open(path) for path in sorted(out.iterdir()) if path.is_dir()]
    return Dossier(next(one for one in stored if one.record.scenario == scenario))


@pytest.mark.parametrize("name", [RECEIVER, SENDER])
def test_the_same_rules_find_what_the_run_found_console_and_link(out: Path, name: str) -> None:
    """The run's own hits are the oracle: found live, by other processes, with other chunks of
    time."""
    evidence = opened(out, name)
    result = compare(evidence, parse_rules(RULES, "r.toml"), None)
    assert result.is_same and result.problems == ()
    assert result.kept == 3 + (name == SENDER)
    sources = [place.source for place in recorded(evidence)]
    assert sources.count("link") == 1 + (name == SENDER)


def test_new_and_lost_hits_are_told_apart(out: Path) -> None:
    changed = RULES.replace('name = "receive-error"', 'name = "renamed"').replace(
        "unacked-close", "late-ack", 0
    )
    changed += '\n[[rule]]\nname = "resync"\nsource = "console"\nregex = \'Began resync as Sync(Target|Source)\'\n'
    changed = changed.replace(
        'event = "unacked-close"', 'event = "late-ack"\ndeadline_ms = 1'
    ).replace("link-unacked-close", "slow")
    result = compare(opened(out, RECEIVER), parse_rules(changed, "r.toml"), None)
    assert {place.rule for place, _ in result.lost} == {"receive-error", "link-unacked-close"}
    new = {place.rule: text for place, text in result.new}
    assert {"renamed", "resync"} <= set(new) and "Began resync as Sync" in new["resync"]
    assert any(
        place == HitPlace("console", "secondary", place.where, "resync") for place, _ in result.new
    )
    counts = totals([result, result])
    assert counts["receive-error"] == (0, 2) and counts["resync"][0] == 4


def test_hits_that_the_run_only_counted_are_named(out: Path) -> None:
    evidence = opened(out, RECEIVER)
    evidence.record = msgspec.structs.replace(evidence.record, counted_hits={"noisy\x1b": 7})
    rules = parse_rules(RULES, "r.toml")
    assert compare(evidence, rules, None).problems == (
        "noisy\\x1b: 7 hits were only counted then; what is new of this rule may be some of these",
    )
    assert compare(evidence, rules, rules).problems == ()


def test_against_another_file(out: Path) -> None:
    rules = parse_rules(RULES, "r.toml")
    one = opened(out, SENDER)
    assert compare(one, rules, rules).is_same
    only = parse_rules(
        RULES.split("[[rule]]", 2)[0] + "[[rule]]" + RULES.split("[[rule]]", 2)[1], "r.toml"
    )
    assert {place.rule for place, _ in compare(one, only, rules).lost} == {
        "receive-error", "link-digest", "link-unacked-close"
    }  # fmt: skip


def test_rules_of_time_are_replayed_with_the_recorded_times(out: Path) -> None:
    """Silence and rate count by when the reads returned, not by how fast they are replayed."""
    text = """
    [[rule]]
    name = "quiet"
    source = "console"
    side = "secondary"
    literal = "copy:"
    absent_ms = {absent_ms}
    """
    evidence = opened(out, RECEIVER)
    assert found(evidence, parse_rules(text.format(absent_ms=600_000), "r.toml")) == {}
    assert len(found(evidence, parse_rules(text.format(absent_ms=50), "r.toml"))) >= 1


def test_the_command(out: Path, tmp_path: Path) -> None:
    rules = tmp_path / "r.toml"
    rules.write_text(RULES.replace("FAILED", "NOT THERE"))

    def invoke(*arguments: object) -> Any:
        return CliRunner().invoke(
            app, ["rules", "test", *map(str, arguments)], env={"COLUMNS": "300"}
        )

    done = invoke(rules, "--out", out)
    assert done.exit_code == 0, done.output
    assert (
        "- digest-failed, secondary console" in done.stdout
        and "digest-failed: 0 new, 2 lost" in done.stdout
    )
    told = json.loads(invoke(rules, "--out", out, "--json").stdout)
    assert told["rules"] == {"digest-failed": {"new": 0, "lost": 2}} and len(told["incidents"]) == 2
    assert invoke(rules, "--out", out, "--against", rules).stdout.startswith(
        "incidents: 2, unchanged: 2"
    )
    rules.write_text(RULES + "[[rule]]\nname = 7\n")
    assert invoke(rules, "--out", out).exit_code == 2
    assert invoke(tmp_path / "none.toml", "--out", out).exit_code == 2
    rules.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in invoke(rules, "--out", out).stderr
    rules.write_text(RULES)
    assert "no incidents in this folder" in invoke(rules, "--out", tmp_path / "none").stderr
