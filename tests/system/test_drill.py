"""`freezeframe drill`: the whole chain, and nobody restarts."""

import json
from pathlib import Path

import pytest
from command import freezeframe, told
from journal import journal

from freezeframe.harness.core.events import SIDES
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.wire.control import SetKind

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]


def test_a_drill_proves_the_chain_and_restarts_nobody(tmp_path: Path) -> None:
    done = freezeframe("drill", "--json", cwd=tmp_path)
    found = told(done)
    assert (found["outcome"], done.returncode) == ("drill", 0), done.stderr
    assert found["reasons"] == [] and found["trigger"]["rule"] == "freezeframe-drill"
    assert found["trigger"]["reaction_us"] > 0, "it went through the reflex"
    assert all(found["canaries"][side]["seen"] for side in SIDES)
    assert all(found["sets"][side]["complete"] for side in SIDES)
    stored = StoredIncident.open(Path(found["incident"]))
    assert stored.altered() == [] and stored.outcome == "drill"
    for side in SIDES:
        # The frames that would warmstart were tried out, and those that went out saved.
        assert stored.raw["armed"][side]["state"] == "armed"
        header = json.loads((stored.path / side / "state.json").read_text())["header"]
        assert header["kind"] == SetKind.STATE_SAVE
        console = (stored.path / side / "console.log").read_bytes()
        assert b"warmstart: set" not in console and b"boot epoch 2" not in console
    # Nobody writes: that the link is seen is not proved, and not called works beside BLIND.
    said = freezeframe("show", found["incident"], cwd=tmp_path).stdout
    assert "all works from a console's line to both decoded sets" in said
    assert "BLIND" not in said and "the whole chain" not in said
    (entry,) = journal()
    assert entry["action"] == "drill" and entry["result"] == "ok"
