"""A rule that hits all the time fills neither memory nor the incident, and what is acted on is
never left out."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from opened_pair import finish, open_pair
from waiting import LIMIT_S

from freezeframe.fixtures.pair import Pair
from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.incidents.record import read_record
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.report.text import recheck_in_words
from freezeframe.harness.runs.recording import MAX_HITS

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
CONFIGS = Path(__file__).resolve().parents[2] / "bench_configs"
LINE = 199
"""So many characters in a line have one pair less: hits that overlap count."""
LINES = 7
NOISY = '\n[[rule]]\nname = "noisy"\nsource = "console"\nside = "secondary"\nliteral = "~~"\ninstruct = []\n'
STEADY = '\n[[rule]]\nname = "steady"\nsource = "console"\nside = "primary"\nliteral = "^^"\ninstruct = []\n'


def until(pair: Pair, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert time.monotonic() < deadline
        pair.settle(0.05)


def test_the_first_hits_are_kept_and_the_one_that_is_acted_on(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    rules = tmp_path / "configs" / "rules" / "sim.toml"
    text = rules.read_text()
    rules.write_text(text + NOISY + STEADY)
    bench = load_bench(tmp_path / "configs" / "sim.toml")
    pair = open_pair(bench, tmp_path, "bound")
    hits = pair.session.recording._hits
    flood = (LINE - 1) * LINES
    assert flood > MAX_HITS
    try:
        for _ in range(LINES):
            pair.secondary.print_line("~" * LINE)
            pair.primary.print_line("^" * LINE)
        until(pair, lambda: hits["noisy", "secondary"] == hits["steady", "primary"] == flood)
        kept = Counter(one.rule for one in pair.session.triggers)
        assert kept == {"noisy": MAX_HITS, "steady": MAX_HITS} and pair.session.collector is None

        # Now the rule instructs: its next hit is far behind the bound, and is the incident's.
        rules.write_text(text + NOISY.replace("instruct = []", 'instruct = ["secondary"]') + STEADY)
        until(pair, lambda: any("rules read again" in one for one in pair.incident.record["notes"]))
        pair.secondary.print_line("~~")
        pair.await_recovery()
        (acted_on,) = pair.session.causes
        pair.expected = list(pair.session.triggers)
        assert acted_on is pair.session.triggers[-1] and acted_on.instruct == ["secondary"]
        stored = StoredIncident.open(pair.incident.path)
        assert stored.record.triggers[0].offset_bytes == acted_on.offset_bytes
        rows = [row for row in stored.timeline() if row["event"] == "trigger"]
        assert Counter(row["rule"] for row in rows) == {"noisy": MAX_HITS + 1, "steady": MAX_HITS}
        assert rows[-1]["offset_bytes"] == acted_on.offset_bytes
    finally:
        unexpected = finish(pair)
    assert unexpected == []
    record = pair.incident.record
    assert record["counted_hits"] == {"noisy": flood - MAX_HITS, "steady": flood - MAX_HITS}
    # Either console may be read first.
    notes = sorted(one for one in record["notes"] if "more hits" in one)
    assert notes == [
        f"{rule}: {flood - MAX_HITS} more hits on the {side} than are listed here; they were only counted"
        for rule, side in (("noisy", "secondary"), ("steady", "primary"))
    ]
    assert pair.session.lost_evidence == []
    primary, secondary = recheck_in_words(read_record(record)[0]).split("; ")
    assert primary.startswith("primary agrees") and "not checked: steady, " in primary
    assert secondary.startswith("secondary agrees") and "not checked: noisy, " in secondary


def test_an_expected_hit_in_the_read_of_another_neither_takes_the_blame_nor_loses_its_excuse(
    tmp_path: Path,
) -> None:
    """Seen: the incident was the expected hit's, and the test failed for it."""
    pair = open_pair(load_bench("sim"), tmp_path, "blame")
    try:
        with pair.expects("digest-failed", within_s=LIMIT_S) as window:
            # One line, so one read; in two reads it would be the same.
            pair.secondary.print_line("Digest integrity check FAILED: 0s +4096, BAD! BarrierAck")
            pair.await_recovery()
        assert [one.rule for one in window.triggers] == ["digest-failed"]
        assert [one.rule for one in pair.session.causes] == ["bad-barrier-ack"]
    finally:
        unexpected = {one.rule for one in finish(pair)}
    assert "bad-barrier-ack" in unexpected and "digest-failed" not in unexpected
    assert pair.incident.record["trigger"]["rule"] == "bad-barrier-ack"
