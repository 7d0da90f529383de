"""The rigs whose nodes mirror over NVMe/TCP and NBD: a healthy pair is silent, a flipped bit is named
by sector, byte and bit, and a mirror that lacks acknowledged writes fails its run."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.rig
CLI = [sys.executable, "-m", "freezeframe.harness.cli"]
BENCHES = ("nvme_qemu", "nbd_qemu")
REFUSED = """name = "refused"
title = "The far leg refuses writes for good"
[[faults]]
kind = "neg_ack"
at_write = 60
count = 200
[expect]
detected = true
"""


class Standing:
    """The rig of one bench, up for all tests with it."""

    def __init__(self, bench: str, directory: Path) -> None:
        self.bench, self.directory = bench, directory
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}

    def cli(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        done = subprocess.run(
            [*CLI, *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=280,
            env=self.environment,
        )
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    def run(self, scenario: str, bench: str = "") -> tuple[int, dict[str, Any]]:
        out = str(self.directory / "out")
        status, found, said = self.cli(
            "run", scenario, "--bench", bench or self.bench, "--out", out
        )
        assert found, said
        return status, found


@pytest.fixture(scope="module", params=BENCHES)
def standing(request: pytest.FixtureRequest) -> Iterator[Standing]:
    """A short path: unix sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ff-") as directory:
        made = Standing(request.param, Path(directory))
        status, _, said = made.cli("rig", "up", "--bench", made.bench)
        assert status == 0, said
        try:
            yield made
        finally:
            made.cli("rig", "down")


@pytest.mark.claim(1, 6, 8, bench=("nvme_qemu", "nbd_qemu"))
def test_a_healthy_mirror_is_silent_and_a_flipped_bit_is_named(standing: Standing) -> None:
    status, clean = standing.run("clean")
    assert status == 0, clean["reasons"]
    status, found = standing.run("bit_flip_sender")
    assert (status, found["outcome"]) == (0, "pass"), found["reasons"]
    verdict = found["verdict"]
    assert found["data_equal"] is True and all(one["complete"] for one in found["sets"].values())
    assert verdict["bit_mask"] == 0x10
    assert verdict["byte_offset"] is not None and verdict["lba"] is not None
    assert verdict["write_lba"] + verdict["byte_offset"] // 512 == verdict["lba"]
    if standing.bench == "nbd_qemu":
        assert found["trigger"]["rule"] == "link-broken-stamp"


def test_an_acknowledged_write_that_the_far_leg_refused_fails_the_run(
    standing: Standing, tmp_path: Path
) -> None:
    """Nobody is instructed: the pair goes on, and md says [UU]."""
    folder = Path(__file__).parents[2] / "bench_configs"
    (tmp_path / "rules.toml").write_text(
        '[[rule]]\nname = "refused"\nsource = "link"\nevent = "neg-ack"\ninstruct = []\n'
    )
    (tmp_path / "refused.toml").write_text(REFUSED)
    lines = (folder / f"{standing.bench}.toml").read_text().splitlines()
    bench = tmp_path / "bench.toml"
    bench.write_text(
        "\n".join('rules = ["rules.toml"]' if one.startswith("rules = ") else one for one in lines)
        .replace("rejoin_timeout_s = 120", "rejoin_timeout_s = 30")
    )  # fmt: skip
    status, found = standing.run(str(tmp_path / "refused.toml"), str(bench))
    assert (status, found["outcome"]) == (1, "fail"), found["reasons"]
    assert any("md's bad_blocks" in reason for reason in found["reasons"]), found["reasons"]
