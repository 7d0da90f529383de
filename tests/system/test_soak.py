"""The soak's own checks, and a short soak; ``make soak`` plays an hour."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import soak as soak_tool
from soak import Soak
from soaklines import Mark, ends_with, holes
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


def test_a_loss_long_ago_is_not_waited_for() -> None:
    """Seen: each end of a watch after a loss took 20 s longer."""
    short = CARRIED[:5000] + CARRIED[5100:]
    parts = [short[-100:], short[-150:-100], short[:-150]]
    assert ends_with(parts, CARRIED[-256:]) and ends_with([b"", *parts], CARRIED[-256:])
    assert not ends_with([one[:-1] for one in parts[:1]] + parts[1:], CARRIED[-256:])
    assert not ends_with(parts[1:], CARRIED[-256:]) and not ends_with([], CARRIED[-256:])
    assert ends_with([], b"")


@pytest.mark.system
@pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces")
def test_a_soak_that_is_interrupted_removes_its_folder() -> None:
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        with subprocess.Popen(
            [sys.executable, soak_tool.__file__, "--minutes", "60", "--only", "console gone"],
            env={**os.environ, "TMPDIR": folder}, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None and process.stdout.readline()
            assert list(Path(folder).glob("freezeframe-soak-*"))
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LIMIT_S)
        assert not list(Path(folder).glob("freezeframe-soak-*"))


@pytest.mark.system
@pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces")
def test_a_short_soak(tmp_path: Path) -> None:
    soak = Soak(tmp_path, 5, only="console gone", rearm_s=LIMIT_S)
    soak.run(0.1)
    assert soak.tally.wrong == []
    assert soak.tally.done and all(one.kind == "console gone" for one in soak.tally.done)
    assert soak.tally.carried_bytes > 0
