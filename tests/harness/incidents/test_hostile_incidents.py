"""Whole incidents damaged at random: every reader of them answers or refuses, within its errors."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from golden_incidents import LINUX, RECEIVER, unpack

from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.adopt import adopt
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.inquest import plain, timeline_of, verdict_of
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.report.html import page
from freezeframe.harness.report.pcapng import write_pcapng
from freezeframe.harness.report.perfetto import trace

WRONG: tuple[Any, ...] = (
    None, -1, 0, 2**70, -(2**63), "x", "\x1b[2J", [], [1], {}, {"a": 1}, 1.5, True, float("inf"), float("nan"),
)  # fmt: skip


def mutated(value: Any, dice: random.Random) -> Any:
    """The same with one thing in it taken away or made something else."""
    if isinstance(value, dict) and value:
        key = dice.choice(list(value))
        if dice.random() < 0.15:
            return {name: one for name, one in value.items() if name != key}
        return value | {
            key: dice.choice(WRONG) if dice.random() < 0.3 else mutated(value[key], dice)
        }
    if isinstance(value, list) and value:
        at = dice.randrange(len(value))
        return [mutated(one, dice) if number == at else one for number, one in enumerate(value)]
    return dice.choice(WRONG)


def damage(folder: Path, dice: random.Random) -> None:
    record = folder / "incident.json"
    told = json.loads(record.read_text())
    if dice.random() < 0.5:
        for _ in range(dice.randint(1, 4)):
            told = mutated(told, dice)
    else:
        path = dice.choice(
            sorted(one for one in folder.rglob("*") if one.is_file() and one != record)
        )
        data = bytearray(path.read_bytes())
        for _ in range(dice.randint(1, 20)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data[: dice.randrange(len(data))] if dice.random() < 0.3 else data)
        for one in told["sets"].values():
            one["complete"] = False  # its sum is then not compared, and its content is read
    record.write_text(json.dumps(told))


@pytest.mark.parametrize("name", [RECEIVER, LINUX])
def test_a_damaged_incident_is_read_or_refused(name: str, tmp_path: Path) -> None:
    whole = unpack(name, tmp_path).path
    for seed in range(12):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        damage(folder, random.Random(f"{name}/{seed}"))
        try:
            stored = StoredIncident.open(folder)
        except HarnessError:
            continue
        try:
            dossier = Dossier(stored)
            verdict = verdict_of(dossier)
            json.dumps(plain(verdict))
            timeline_of(dossier, verdict, whole=True)
            adopt(stored.record, verdict, dossier.evidence)
        except HarnessError as error:
            assert str(error), seed
        # The exports never refuse: what cannot be read is a sentence on the page.
        assert not set(page(Dossier(stored))) & set("\x1b\x07")
        assert trace(Dossier(stored))
        write_pcapng(Dossier(stored), tmp_path / "out.pcapng")
