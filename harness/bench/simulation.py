"""Start the simulated bench: two namespaces joined by a replication link, and the supply process
that powers the controllers.

This module knows nothing about the firmware: it starts ``python -m freezeframe.firmware_sim`` and
uses only its ports.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final, Self

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.edge import netns
from freezeframe.harness.errors import RigError, UsageError

REPLICATION_PORT: Final = 7788
START_TIMEOUT_S: Final = 60.0
"""Timeout from the start of the supply to its port file; a loaded 2-core machine needs about one
second."""
STOP_TIMEOUT_S: Final = 5.0
MAX_FOLDER_BYTES: Final = 107 - len("/secondary.service.new")
"""A unix socket's path has at most 107 bytes; this is the longest in the folder."""


class Simulation:
    """The wiring and power of a simulated bench. Ports appear in ``run_dir``: SIDE.console,
    SIDE.control (PTYs), SIDE.nbd and SIDE.service (unix sockets, once powered), SIDE.netns. Everything ends with
    this process, even if it is killed."""

    def __init__(
        self,
        run_dir: Path,
        *,
        serial_numbers: dict[Side, str],
        size_mib: int,
        mtu_bytes: int,
        boot_ms: int,
        shared_lines: Collection[Side] = (),
        seed: int = 0,
        autonomic: bool = False,
    ) -> None:
        """``shared_lines``: sides whose control frames share the UART of the console."""
        if (length := len(os.fsencode(run_dir.absolute()))) > MAX_FOLDER_BYTES:
            raise UsageError(
                f"{run_dir}: the path is too long for the simulated pair's sockets, {length} bytes; at most "
                f"{MAX_FOLDER_BYTES}: name a shorter folder (--dir of sim, TMPDIR of the others)"
            )
        self.run_dir = run_dir
        self._shared_lines = shared_lines
        self._boot_ms = boot_ms
        self.supply_port = 0
        self._link = netns.make_pair(mtu_bytes=mtu_bytes)
        namespaces: dict[Side, netns.Namespace] = {
            "primary": self._link.primary,
            "secondary": self._link.secondary,
        }
        outputs = {}
        for side in SIDES:
            link = run_dir / f"{side}.netns"
            link.unlink(missing_ok=True)
            link.symlink_to(namespaces[side].path)
            outputs[side] = {
                "argv": self._argv(
                    side, serial_numbers[side], size_mib, seed, namespaces[side].path, autonomic
                ),
                "lines": {line: str(run_dir / f"{side}.{line}") for line in ("console", "control")},
                "log": str(run_dir / f"{side}.stderr"),
            }
        self._port_file = run_dir / "supply.port"
        self._port_file.unlink(missing_ok=True)
        config = run_dir / "supply.json"
        config.write_text(
            json.dumps(
                {"listen": "127.0.0.1:0", "port_file": str(self._port_file), "outputs": outputs},
                indent=1,
            )
        )
        self._log = run_dir / "supply.stderr"
        with self._log.open("ab") as log:
            self._supply = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "freezeframe.firmware_sim",
                    "supply",
                    "--config",
                    str(config),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.supply_port = self._await_port()

    def _argv(
        self,
        side: Side,
        serial_number: str,
        size_mib: int,
        seed: int,
        namespace: str,
        autonomic: bool,
    ) -> list[str]:
        replication = "--replication-connect" if side == "primary" else "--replication-listen"
        argv = [
            sys.executable, "-m", "freezeframe.firmware_sim", "serve",
            "--side", side,
            "--serial-number", serial_number,
            "--state-dir", str(self.run_dir / f"{side}.state"),
            "--size-mib", str(size_mib),
            "--host", f"unix:{self.run_dir / f'{side}.nbd'}",
            replication, f"{netns.SECONDARY_ADDRESS}:{REPLICATION_PORT}",
            "--console", "fd:{console_fd}",
            "--control", "console" if side in self._shared_lines else "fd:{control_fd}",
            "--service-listen", f"unix:{self.run_dir / f'{side}.service'}",
            "--netns", namespace,
            "--seed", str(seed),
            "--boot-ms", str(self._boot_ms),
        ]  # fmt: skip
        if autonomic:
            # The second link of autonomic mode runs between the two controllers, beside the
            # replication link.
            peer = f"unix:{self.run_dir / 'peer.control'}"
            argv += (
                ["--peer-control-listen", peer]
                if side == "primary"
                else ["--peer-control", peer, "--autonomic"]
            )
        if not self._link.keeps_order:
            # On one processor there is one queue, so frames are not reordered.
            argv = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0))), *argv]
        return argv

    def _await_port(self) -> int:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return int(self._port_file.read_text())
            try:
                self._supply.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
            break
        words = self._log.read_text(errors="replace")[-500:].strip()
        self.close()
        raise RigError(
            f"the simulated bench supply did not start: {words or 'no port file'} (see {self._log})"
        )

    def close(self) -> None:
        """Switch the power off and remove the wiring, within a time limit."""
        if self._supply.stdin is not None:
            self._supply.stdin.close()
        if self._supply.poll() is None:
            self._supply.send_signal(signal.SIGTERM)
        try:
            self._supply.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._supply.kill()
            self._supply.wait()
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()
