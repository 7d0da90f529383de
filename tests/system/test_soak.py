"""The soak's own checks, and a short soak; ``make soak`` plays an hour."""

from pathlib import Path

import pytest
from soak import Soak
from soaklines import Mark, holes
from waiting import LIMIT_S

from freezeframe.harness.edge.netns import missing_capabilities

CARRIED = b"".join(b"line %d\r\n" % number for number in range(10_000))


def at(offset: int) -> list[Mark]:
    return [Mark(offset, 0.0, "killed")]


def test_a_record_that_lacks_a_byte_is_found() -> None:
    assert holes(CARRIED, CARRIED, [], 64) == (0, [])
    short = CARRIED[:5000] + CARRIED[5100:]
    assert holes(CARRIED, short, at(5050), 64) == (100, [])
    for marks in ([], at(9000)):
        lost, (wrong,) = holes(CARRIED, short, marks, 64)
        assert lost == 100 and wrong.startswith("100 bytes from ")
    assert holes(CARRIED, CARRIED[:-50], at(len(CARRIED)), 64) == (50, [])
    assert holes(CARRIED, CARRIED[:-50], [], 64)[1] != []
    changed = CARRIED[:700] + b"x" + CARRIED[701:]
    assert holes(CARRIED, changed, at(700), 64)[1] != []
    twice = CARRIED[:700] + CARRIED[600:]
    assert holes(CARRIED, twice, at(700), 64)[1] != []


@pytest.mark.system
@pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces")
def test_a_short_soak(tmp_path: Path) -> None:
    soak = Soak(tmp_path, 5, only="console gone", rearm_s=LIMIT_S)
    soak.run(0.1)
    assert soak.tally.wrong == []
    assert soak.tally.done and all(one.kind == "console gone" for one in soak.tally.done)
    assert soak.tally.carried_bytes > 0
