"""Two Raspberry Pis without the Pis: the units of docs/systemd and bench_configs/pi_pair.toml as
they are, each controller in a network namespace of its own, host and control on TCP, serial lines
as socket://."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.firmware_sim import serve
from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.bench.checks import check
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.edge import netns
from freezeframe.harness.edge.netns import Namespace

ROOT = Path(__file__).resolve().parents[2]
LAB = {"primary": "192.168.77.11", "secondary": "192.168.77.12"}
HOST = "192.168.77.1"
CONSOLE_PORT = 7790


def unit_command(side: str) -> list[str]:
    """ExecStart of a side's unit, from behind ``python -m freezeframe.firmware_sim serve``."""
    text = (ROOT / f"docs/systemd/firmware-sim-{side}.service").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[1:4] == ["-m", "freezeframe.firmware_sim", "serve"]
    return words[4:]


@pytest.mark.parametrize("side", SIDES)
def test_the_units_are_what_firmware_sim_understands(side: str) -> None:
    options = serve.parser().parse_args(unit_command(side))
    assert options.side == side and options.console == "/dev/ttyAMA0@921600"
    assert (options.replication_connect or options.replication_listen) == "10.77.0.2:7788"


def plug_in(host: Namespace, controller: Namespace, name: str, address: str) -> None:
    """The lab network: a wire from the host machine to one controller."""
    from pyroute2 import IPRoute

    def at_host() -> None:
        with IPRoute() as route:
            route.link(
                "add", ifname=name, kind="veth", peer={"ifname": "lab0", "net_ns_fd": controller.fd}
            )
            (index,) = route.link_lookup(ifname=name)
            route.addr("add", index=index, address=HOST, prefixlen=32)
            route.link("set", index=index, state="up")
            route.route("add", dst=f"{address}/32", oif=index)

    def at_controller() -> None:
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname="lab0")
            route.addr("add", index=index, address=address, prefixlen=24)
            route.link("set", index=index, state="up")

    host.run(at_host)
    controller.run(at_controller)


@contextlib.contextmanager
def controllers(folder: Path) -> Iterator[tuple[Namespace, netns.LinkPair]]:
    """Both units running; the machine that the harness is to run on, and the replication link."""
    with contextlib.ExitStack() as stack:
        link = netns.make_pair()
        stack.callback(link.close)
        host = Namespace.create()
        stack.callback(host.close)
        for side, place in (("secondary", link.secondary), ("primary", link.primary)):
            plug_in(host, place, side, LAB[side])
            command = unit_command(side)
            command[command.index("--state-dir") + 1] = str(folder / side)
            command[command.index("--console") + 1] = f"tcp:0.0.0.0:{CONSOLE_PORT}"
            log = stack.enter_context((folder / f"{side}.stderr").open("wb"))
            process = place.run(
                lambda command=command, log=log: subprocess.Popen(  # type: ignore[misc]
                    [sys.executable, "-m", "freezeframe.firmware_sim", "serve", *command],
                    cwd=ROOT,
                    stderr=log,
                )
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield host, link


def bench_file(folder: Path, link: netns.LinkPair) -> Path:
    """pi_pair.toml with network serial lines for its adapters, and this machine's end of the
    replication link."""
    lines = []
    side = ""
    for line in (builtin_folder() / "pi_pair.toml").read_text().splitlines():
        if line.startswith("["):
            side = line.strip("[]")
        if line.startswith("console ="):
            line = f'console = "socket://{LAB[side]}:{CONSOLE_PORT}"'
        if line.startswith("interface ="):
            line = f'interface = "{netns.INTERFACE}"\nnamespace = "{link.secondary.path}"'
        lines.append(line.replace('"rules/', f'"{builtin_folder()}/rules/'))
    path = folder / "pi_pair.toml"
    path.write_text("\n".join(lines) + "\n")
    assert [finding for finding in check(path) if finding.status == "problem"] == []
    return path


@pytest.mark.system
@pytest.mark.skipif(
    bool(netns.missing_capabilities()), reason="needs root: makes network namespaces"
)
def test_a_run_on_two_pis(tmp_path: Path) -> None:
    with controllers(tmp_path) as (host, link):
        bench = bench_file(tmp_path, link)
        command = [
            "-m",
            "freezeframe.harness.cli",
            "run",
            "bit_flip_receiver",
            "--bench",
            str(bench),
            "--seed",
            "7",
            "--json",
        ]
        done = host.run(
            lambda: subprocess.run(
                [sys.executable, *command, "--out", str(tmp_path / "incidents")],
                capture_output=True, text=True, cwd=ROOT, timeout=100, env={**os.environ, "NO_COLOR": "1"},
            )
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (
        told["outcome"] == "pass" and told["data_equal"] is True and told["lost_acked_writes"] == 0
    )
    assert {side: one["complete"] for side, one in told["sets"].items()} == {
        "primary": True,
        "secondary": True,
    }
    assert (Path(told["incident"]) / "secondary/console.log").stat().st_size > 0
