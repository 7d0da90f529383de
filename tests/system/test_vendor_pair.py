"""A pair of a vendor that FreezeFrame has never heard of, brought on the bench as a stranger would: a
package outside the tree, made by `driver new`; its own replication protocol over TCP, a control line of
ASCII that closes with a restart, data sets over the network with a password."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND
from waiting import LIMIT_S, await_true

pytestmark = pytest.mark.system
SUPPORT = Path(__file__).parents[1] / "support"
PASSWORD = "an acme secret"
BENCH = """
[bench]
name = "acme"
{sides}
[link]
interface = "repl0"
namespace = "{folder}/secondary.netns"
protocol = "acme"
primary_address = "10.77.0.1"
secondary_address = "10.77.0.2"
[policy]
rules = ["{package}/rules.toml"]
rejoin_timeout_s = 200
[workload]
bytes_mib = 2
write_kib = 4
queue_depth = 2
"""
SIDE = """
[{side}]
driver = "acme"
serial_number = "SK-{side}"
console = "socket://127.0.0.1:{console}"
control = "socket://127.0.0.1:{control}"
host = "nbd+unix:///?socket={folder}/{side}.nbd"
options = {{ dump = "127.0.0.1:{dump}", password = {{ env = "ACME_PASSWORD" }} }}
"""


class Stranger:
    """What the stranger types."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "acme"
        self.env = os.environ | {"PYTHONPATH": str(self.package), "ACME_PASSWORD": PASSWORD}

    def types(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=LIMIT_S
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def runs(self, scenario: str, status: int) -> dict[str, Any]:
        told = self.types(
            "run", scenario, "--bench", "acme.toml", "--seed", "3", "--json", status=status
        )
        found: dict[str, Any] = json.loads(told)
        return found


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    one = Stranger(tmp_path_factory.mktemp("acme"))
    one.types("driver", "new", "acme")
    entry_points = one.package / "acme_pair.egg-info" / "entry_points.txt"
    net = (SUPPORT / "acme_net.py").read_text()
    (one.package / "acme_pair" / "netdriver.py").write_text(net)
    text = entry_points.read_text()
    assert "acme_pair.driver:AcmeDriver" in text
    entry_points.write_text(
        text.replace("acme_pair.driver:AcmeDriver", "acme_pair.netdriver:AcmeNet")
    )
    process = subprocess.Popen(
        [sys.executable, str(SUPPORT / "acme_bench.py"), str(one.folder)], stdin=subprocess.PIPE, env=one.env
    )  # fmt: skip
    try:
        ports = one.folder / "ports.json"
        await_true(
            lambda: ports.exists() or process.poll() is not None, LIMIT_S, "the pair's ports"
        )
        sides = "".join(
            SIDE.format(side=side, folder=one.folder, **places)
            for side, places in json.loads(ports.read_text()).items()
        )
        (one.folder / "acme.toml").write_text(
            BENCH.format(sides=sides, folder=one.folder, package=one.package)
        )
        yield one
    finally:
        process.kill()
        process.wait()


def test_the_scaffold_and_the_real_device_keep_the_promises(stranger: Stranger) -> None:
    told = json.loads(stranger.types("driver", "check", "acme", "--json"))
    assert told["ok"] and [one["what"] for one in told["checked"]] == ["controller", "link"]
    assert all(len(one["held"]) >= 8 for one in told["checked"])
    assert "PROBLEM" not in stranger.types("check", "acme.toml")
    real = stranger.types("driver", "check", "acme", "--bench", "acme.toml")
    assert real.count("statements hold") == 2


def test_a_healthy_pair_passes(stranger: Stranger) -> None:
    told = stranger.runs("clean", 0)
    assert told["outcome"] == "pass", told


def test_a_flipped_bit_is_located_to_the_byte(stranger: Stranger) -> None:
    """Both are warmstarted; their control ports close with it, and are opened again."""
    told = stranger.runs("bit_flip_sender", 0)
    verdict = told["verdict"]
    assert (verdict["byte_offset"], verdict["bit_mask"]) == (1234, 0x20), verdict
    files = [one for one in (stranger.folder / "incidents").rglob("*") if one.is_file()]
    for side in ("primary", "secondary"):
        assert any(one.match(f"{side}/set.zst") for one in files), files
    for path in files:
        assert PASSWORD.encode() not in path.read_bytes(), path


def test_a_lost_write_fails(stranger: Stranger) -> None:
    told = stranger.runs("lost_write", 1)
    assert told["outcome"] == "fail", told


def test_a_side_without_a_host_is_not_compared_and_proves_nothing(stranger: Stranger) -> None:
    """Without a secondary's host the pair runs, and what was not compared is said; without a
    primary's nobody can write."""
    whole = (stranger.folder / "acme.toml").read_text()
    for side, status, words in (
        ("secondary", 4, "the data was not compared"),
        ("primary", 2, "[primary] names none: it can be watched only"),
    ):
        lines = [line for line in whole.splitlines() if not line.endswith(f'/{side}.nbd"')]
        (stranger.folder / "half.toml").write_text("\n".join(lines))
        told = stranger.types("run", "clean", "--bench", "half.toml", "--json", status=status)
        assert words in told


def test_a_pair_of_which_only_one_console_is_tapped_is_run_by_that_one(stranger: Stranger) -> None:
    whole = (stranger.folder / "acme.toml").read_text()
    lines = whole.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("console = "))
    (stranger.folder / "deaf.toml").write_text("\n".join(lines[:first] + lines[first + 1 :]))
    told = stranger.types("run", "bit_flip_sender", "--bench", "deaf.toml", "--json")
    found = json.loads(told)
    assert found["trigger"]["side"] == "secondary" and found["outcome"] == "pass"
    assert found["canaries"]["secondary"]["seen"] and not found["canaries"]["primary"].get("seen")
    notes = (Path(found["incident"]) / "incident.json").read_text()
    assert "the bench names no console of it" in notes
