"""The recorded incidents of ``tests/golden/incidents`` get the verdicts that ``expected.json`` lists.

The folder holds incidents that version 0.1.0 wrote (commit fba93b1, or earlier), and what ``freezeframe replay --json`` of
that commit said of each. A later version must read them, and must not give a worse verdict.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import golden_incidents
import pytest

from freezeframe.harness.incidents.inquest import plain, verdict_of

EXPECTED: Final[Mapping[str, Mapping[str, Any]]] = json.loads(
    (golden_incidents.FOLDER / "expected.json").read_text("utf-8")
)

BLIND_RESYNC: Final = (
    "the resync after the warmstart copied acknowledged blocks that nobody had read back (the controllers "
    "of that version did not): it may have hidden an older divergence, so nothing is certain"
)
TRUER: Final[Mapping[str, str]] = dict.fromkeys(
    (
        "bit_flip_receiver", "shared_line_neg_ack", "small_bit_flip_receiver", "small_bit_flip_sender",
        "small_console_garble", "small_hung_warmstart", "small_neg_ack", "small_stall",
        "small_wrong_barrier_count", "standing_1_bit_flip_receiver", "standing_2_wrong_barrier_count",
        "twice_late_ack", "twice_wrong_barrier_count",
    ),
    BLIND_RESYNC,
)  # fmt: skip
"""Incident -> why this version is less sure than ``expected.json``, in one sentence. All else is the
same."""


def compared(verdict: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``verdict`` that ``expected`` holds: where, which write, which bits, and how sure. Sentences are not
    compared: they may be worded better."""
    also = [
        [one[key] for key in ("stage", "kind", "side", "write_id", "lba")]
        for one in verdict["also"]
    ]
    return {"verdict": {key: verdict.get(key) for key in expected["verdict"]}, "also": also}


def test_each_archive_has_an_expected_verdict_and_is_unchanged() -> None:
    archives = {
        path.name.removesuffix(".tar.zst"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in golden_incidents.FOLDER.glob("*.tar.zst")
    }
    assert archives == {name: one["sha256"] for name, one in EXPECTED.items()}


def test_every_truer_verdict_is_of_a_known_incident() -> None:
    assert set(TRUER) <= set(EXPECTED)
    assert all(TRUER.values()), "each entry gives its reason"


@pytest.mark.parametrize("name", EXPECTED)
def test_the_incident_is_read_as_it_was_recorded(name: str, tmp_path: Path) -> None:
    stored, recorded = golden_incidents.unpack(name, tmp_path), EXPECTED[name]["recorded"]
    assert (stored.id, stored.outcome) == (recorded["id"], recorded["outcome"])
    assert list(stored.problems) == recorded["problems"]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_verdict_is_the_expected_one(name: str, tmp_path: Path) -> None:
    expected = EXPECTED[name]
    found = compared(plain(verdict_of(golden_incidents.unpack(name, tmp_path))), expected)
    listed = {"verdict": expected["verdict"], "also": expected["also"]}
    if name in TRUER:
        assert listed["verdict"]["confidence"] == "certain"
        listed["verdict"] = listed["verdict"] | {"confidence": "likely"}
    assert found == listed
