"""A run proves that its watching works: canaries before, the record searched again afterwards,
rules read again."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, cast

import pytest
from opened_pair import finish, open_pair
from waiting import LIMIT_S

from freezeframe.fixtures.pair import Pair
from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.record import read_record
from freezeframe.harness.report.text import canaries_in_words, recheck_in_words
from freezeframe.harness.roles import Controller, Reply
from freezeframe.harness.runs.selfcheck import MAX_RECHECKED_BYTES

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
CONFIGS = Path(__file__).resolve().parents[2] / "bench_configs"
RULE = '\n[[rule]]\nname = "late-comer"\nsource = "console"\nliteral = "after the reload"\ninstruct = []\n'


class Mute:
    """A controller that cannot be asked to print."""

    def __init__(self, real: Controller) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name == "print_line":
            raise AttributeError(name)
        return getattr(self._real, name)


class Refusing(Mute):
    def print_line(self, text: str, deadline_ns: int) -> Reply:
        return Reply(ok=False, status="bad\x1b[31m operation")


class Silent(Mute):
    """Says that it has printed, and nothing comes in: its console is another line."""

    def print_line(self, text: str, deadline_ns: int) -> Reply:
        return Reply(ok=True, status="ok")


def copied_pair(tmp_path: Path) -> Pair:
    """With rule files that a test may change."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    return open_pair(load_bench(tmp_path / "configs" / "sim.toml"), tmp_path, "selfcheck")


def test_canaries_reload_and_recheck(tmp_path: Path) -> None:
    pair = copied_pair(tmp_path)
    try:
        assert {side: one["seen"] for side, one in pair.incident.record["canaries"].items()} == {
            "primary": True,
            "secondary": True,
        }
        rules = tmp_path / "configs" / "rules" / "sim.toml"
        with rules.open("a") as file:
            file.write(RULE)
        # One rule comes new, another has changed.
        rules.write_text(
            rules.read_text().replace("Digest integrity check FAILED", "Digest integrity check F")
        )
        deadline = time.monotonic() + LIMIT_S
        while not pair.session.triggers and time.monotonic() < deadline:
            pair.primary.print_line("after the reload")
            pair.settle(0.1)
        assert pair.session.triggers[0].rule == "late-comer"
        pair.expected = list(pair.session.triggers)
    finally:
        unexpected = finish(pair)
    assert unexpected == []
    for side in ("primary", "secondary"):
        found = pair.incident.record["recheck"][side]
        assert found["agrees"], found
        assert found["checked_bytes"] > 0
        # Changed, new, and what a reload may miss: a regular expression. The other literals are.
        assert {"digest-failed", "late-comer", "console-garbled"} <= set(found["not_checked"])
        assert "out-of-sync" not in found["not_checked"]
    heard = r"heard \S+ .s after it was asked for, \d+ us after it was read"
    said = canaries_in_words(read_record(pair.incident.record)[0])
    assert re.fullmatch(f"primary {heard}; secondary {heard}", said), said
    assert "primary agrees (" in recheck_in_words(read_record(pair.incident.record)[0])


def test_a_console_too_long_to_be_searched_again_is_told(tmp_path: Path) -> None:
    pair = copied_pair(tmp_path)
    try:
        os.truncate(
            pair.incident.console_path("primary"), MAX_RECHECKED_BYTES + 1
        )  # a hole: no disk is filled
    finally:
        assert finish(pair) == []
    notes = [one for one in pair.incident.record["notes"] if "not searched again" in one]
    assert (
        len(notes) == 1 and "of the primary console" in notes[0] and "at most 256 MiB" in notes[0]
    )
    said = recheck_in_words(read_record(pair.incident.record)[0])
    assert said.startswith("primary NOT DONE: it has ") and "secondary agrees (" in said


def test_a_controller_that_gives_no_canary_is_told(tmp_path: Path) -> None:
    pair = copied_pair(tmp_path)
    real = dict(pair.opened.controllers)
    try:
        pair.opened.controllers["primary"] = cast(Controller, Mute(real["primary"]))
        pair.opened.controllers["secondary"] = cast(Controller, Refusing(real["secondary"]))
        pair.session._sing()
    finally:
        pair.opened.controllers.update(real)
        assert finish(pair) == []
    notes = [one for one in pair.incident.record["notes"] if "no canary" in one]
    assert [one.split(":")[0] for one in notes] == ["primary", "secondary"]
    assert notes[1].endswith("would not print: bad\\x1b[31m operation")
    assert canaries_in_words(read_record(pair.incident.record)[0]) == (
        "primary NOT HEARD: its controller cannot be asked to print; "
        "secondary NOT HEARD: its controller would not print: bad\\x1b[31m operation"
    )


def test_a_canary_that_does_not_come_in_is_the_rigs_trouble(tmp_path: Path) -> None:
    pair = copied_pair(tmp_path)
    real = dict(pair.opened.controllers)
    try:
        pair.opened.controllers["secondary"] = cast(Controller, Silent(real["secondary"]))
        with pytest.raises(RigError, match="the secondary controller printed a line that did not"):
            pair.session._sing()
    finally:
        pair.opened.controllers.update(real)
        finish(pair)


def test_a_line_that_the_reflex_did_not_report_takes_the_proof_from_a_run(tmp_path: Path) -> None:
    """The record holds more than the reflex has seen: whatever else the run says, its watching did
    not work."""
    pair = copied_pair(tmp_path)
    try:
        with pair.incident.console_path("secondary").open("ab") as file:
            file.write(b"block drbd0: Digest integrity check FAILED: 8s +4096\n")
    finally:
        finish(pair)
    record = pair.incident.record
    assert record["recheck"]["secondary"]["agrees"] is False
    assert record["outcome"] == "rig-trouble", record["reasons"]
    assert any("the record of the secondary console" in one for one in record["reasons"])
