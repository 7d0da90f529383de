"""Two Raspberry Pis without the Pis: the units of docs/systemd and bench_configs/pi_pair.toml, each
controller in a network namespace of its own, host and control on TCP, serial lines as socket://."""

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console_rules import only_consoles
from waiting import LIMIT_S, await_true

from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.bench.checks import check
from freezeframe.harness.edge import netns
from freezeframe.harness.edge.netns import Namespace

ROOT = Path(__file__).resolve().parents[2]
LAB = {"primary": "192.168.77.11", "secondary": "192.168.77.12"}
HOST = "192.168.77.1"
CONSOLE_PORT = 7790
CONTROL_PORT = 7789
HOST_PORT = 10809


def unit_command(side: str) -> list[str]:
    """ExecStart of a side's unit: python -m freezeframe.firmware_sim serve, and its options."""
    text = (ROOT / f"docs/systemd/firmware-sim-{side}.service").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[1:4] == ["-m", "freezeframe.firmware_sim", "serve"]
    return words


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


@dataclass(frozen=True)
class PiPair:
    """Both units running."""

    host: Namespace
    """The machine that the harness is to run on."""
    link: netns.LinkPair
    folder: Path

    def bench_file(self, like: str = "pi_pair.toml", *, consoles_alone: bool = False) -> Path:
        """That file of bench_configs, with the lines of this pair, this machine's end of the replication
        link, and no supply. ``consoles_alone``: without the link rules."""
        lines = []
        table = ""
        rules = builtin_folder() / "rules/sim.toml"
        if consoles_alone:
            rules = only_consoles([rules], self.folder / "consoles.toml")
        for line in (builtin_folder() / like).read_text().splitlines():
            if line.startswith("["):
                table = line.strip("[]")
            places = {
                "console": f"socket://{LAB.get(table)}:{CONSOLE_PORT}",
                "control": f"socket://{LAB.get(table)}:{CONTROL_PORT}",
                "host": f"nbd://{LAB.get(table)}:{HOST_PORT}",
                "interface": f'{netns.INTERFACE}"\nnamespace = "{self.link.secondary.path}',
            }
            key = line.partition(" =")[0]
            if key in places:
                line = f'{key} = "{places[key]}"'
            if key == "on_hung_warmstart":
                line = 'on_hung_warmstart = "give-up"'  # without a supply
            if table != "power":
                lines.append(line.replace('"rules/sim.toml"', f'"{rules}"'))
        path = self.folder / f"{like.partition('.')[0]}{'_consoles' if consoles_alone else ''}.toml"
        path.write_text("\n".join(lines) + "\n")
        problems = [finding for finding in check(path) if finding.status == "problem"]
        assert problems == []
        return path

    def run(self, scenario: str, bench: Path) -> dict[str, Any]:
        """What ``freezeframe run --json`` on the host machine prints about a run that passes."""
        command = [
            sys.executable, "-m", "freezeframe.harness.cli", "run", scenario, "--bench", str(bench), "--seed", "7",
            "--json", "--out", str(self.folder / "incidents"),
        ]  # fmt: skip
        done = self.host.run(
            lambda: subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S,
                env={**os.environ, "NO_COLOR": "1"},
            )
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        assert told["outcome"] == "pass"
        return told

    def await_control_ports(self, processes: dict[str, "subprocess.Popen[bytes]"]) -> None:
        """Until both controllers accept connections."""

        def is_open(side: str) -> bool:
            log = (self.folder / f"{side}.stderr").read_text()
            assert processes[side].poll() is None, f"{side} has ended: {log}"
            with socket.socket() as one:
                return one.connect_ex((LAB[side], CONTROL_PORT)) == 0

        for side in LAB:
            self.host.run(
                lambda side=side: await_true(  # type: ignore[misc]
                    lambda: is_open(side), LIMIT_S, f"the control port of the {side}"
                )
            )


def native(words: list[str], _folder: Path) -> list[str]:
    """The unit's command by the Python of this test."""
    return [sys.executable, *words[1:]]


@contextlib.contextmanager
def controllers(
    folder: Path, started_as: Callable[[list[str], Path], list[str]] = native
) -> Iterator[PiPair]:
    """Both units running and reachable. ``started_as``: what runs the words of a unit's ExecStart, with
    its state in that folder."""
    with contextlib.ExitStack() as stack:
        link = netns.make_pair()
        stack.callback(link.close)
        host = Namespace.create()
        stack.callback(host.close)
        processes = {}
        for side, place in (("secondary", link.secondary), ("primary", link.primary)):
            plug_in(host, place, side, LAB[side])
            words = unit_command(side)
            words[words.index("--state-dir") + 1] = str(folder / side)
            words[words.index("--console") + 1] = f"tcp:0.0.0.0:{CONSOLE_PORT}"
            log = stack.enter_context((folder / f"{side}.stderr").open("wb"))
            command = started_as(words, folder)
            process = place.run(
                lambda command=command, log=log: subprocess.Popen(command, cwd=ROOT, stderr=log)  # type: ignore[misc]
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes[side] = process
        pair = PiPair(host, link, folder)
        pair.await_control_ports(processes)
        yield pair
