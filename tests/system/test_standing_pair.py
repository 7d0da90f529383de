"""Two incidents in a row on one standing pair of 2 MiB: each output of the second one speaks of the second one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outputs import contradicted
from record_keys import unread
from waiting import LIMIT_S, await_true

from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.inquest import verdict_of
from freezeframe.harness.incidents.store import StoredIncident

SCENARIO = """\
name = "{name}"
title = "On a small volume"
description = "On a small volume."
[[faults]]
kind = "{name}"
at_write = 6
[expect]
detected = true
"""
KINDS = {
    "bit_flip_receiver": ("secondary before check", "data changed"),
    "wrong_barrier_count": ("response", "wrong barrier"),
    "repeated_ack": ("response", "repeated"),
}
"""Scenario -> (stage, kind) of its verdict, in the order in which they run."""


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Path]:
    """The bench file of a simulated pair that outlives the runs on it."""
    text = (builtin_folder() / "sim.toml").read_text()
    text = text.replace('"rules/', f'"{builtin_folder() / "rules"}/')
    lines = [
        "size_mib = 2"
        if line.startswith("size_mib")
        else "bytes_mib = 1"
        if line.startswith("bytes_mib")
        else line
        for line in text.splitlines()
    ]
    (tmp_path / "small.toml").write_text("\n".join(lines) + "\n")
    pair = tmp_path / "pair"
    process = subprocess.Popen(
        [sys.executable, "-m", "freezeframe.harness.cli", "sim", "--bench", str(tmp_path / "small.toml"),
         "--dir", str(pair)],
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        await_true(
            lambda: (pair / "bench.toml").is_file() or process.poll() is not None,
            LIMIT_S,
            "the standing pair",
        )
        yield pair / "bench.toml"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        process.wait(LIMIT_S)


def ran(bench: Path, kind: str, seed: int, out: Path) -> Any:
    scenario = out.parent / f"{kind}.toml"
    scenario.write_text(SCENARIO.format(name=kind))
    done = subprocess.run(
        [sys.executable, "-m", "freezeframe.harness.cli", "run", str(scenario), "--bench", str(bench),
         "--seed", str(seed), "--out", str(out), "--json"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_incidents_in_a_row_do_not_speak_for_each_other(standing: Path, tmp_path: Path) -> None:
    for seed, (kind, wanted) in enumerate(KINDS.items(), 3):
        told = ran(standing, kind, seed, tmp_path / "incidents")
        dossier = Dossier(StoredIncident.open(Path(told["incident"])))
        verdict = verdict_of(dossier)
        assert (verdict.stage, verdict.kind) == wanted, verdict.text
        assert contradicted(dossier, verdict) == ""
        assert dossier.stored.altered() == []
        assert list(unread(dossier.stored.raw)) == []
        kept = dossier.record.judged_by
        assert kept is not None and kept.bench_file and kept.rule_files
