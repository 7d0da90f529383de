"""The documents against the code: what a person can write in a file stands in docs/bench-files.md;
links lead somewhere."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from freezeframe.harness.bench.benchfile import Bench, Scenario
from freezeframe.harness.core.console import rules
from freezeframe.harness.core.linkevents import EVENTS
from freezeframe.harness.wire.faults import FaultKind

ROOT = Path(__file__).parents[1]
BENCH_FILES = (ROOT / "docs" / "bench-files.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def keys(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(name)
        for inner in re.findall(r"\b\w*(?:Table|Overrides)\b", str(field.annotation)):
            found |= keys(vars(__import__(model.__module__, fromlist=[inner]))[inner])
    return found


@pytest.mark.parametrize("model", [Bench, Scenario, rules._Rule])
def test_every_key_of_a_file_is_described(model: type[BaseModel]) -> None:
    missing = {key for key in keys(model) if not re.search(rf"(?<![\w]){key}(?![\w])", BENCH_FILES)}
    assert not missing


def test_every_fault_kind_and_link_event_is_described() -> None:
    for name in (*(kind.value for kind in FaultKind), *EVENTS):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", BENCH_FILES), name


def test_every_link_leads_somewhere_and_every_module_named_is_there() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
        for module in re.findall(
            r"`((?:harness|drivers|firmware_sim|fixtures|core|edge)/[\w/]+\.py)`", text
        ):
            found = (ROOT / module).exists() or (ROOT / "harness" / module).exists()
            assert found, f"{document.name}: {module}"
