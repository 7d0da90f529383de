"""Control a virtual rig from outside: start it or find a running one, send commands, stop it."""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs.daemon import LOCK, SOCKET, RigConfig
from freezeframe.harness.rigs.node import BANNER

COMMAND_TIMEOUT_S: Final = 5.0
IMAGE_TIMEOUT_S: Final = 600.0
"""Timeout for finding, or downloading and building, the image of the nodes."""
BOOT_TIMEOUT_S: Final = 90.0
"""Timeout from power-on to a configured pair: 3 to 10 s on an idle machine, longer under load
(TCG)."""
LOG: Final = "rig.stderr"
"""Output of the rig process; a run keeps it in its incident."""
DOWN_TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 1 << 20


def default_directory() -> Path:
    """Return the default folder of ``rig up``. Raises RigError if another user owns it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime, "freezeframe-rig")
    # Any user can create this name; the processes named in it are trusted and ended.
    directory = Path(tempfile.gettempdir(), f"freezeframe-rig-{os.getuid()}")
    with contextlib.suppress(FileNotFoundError):
        seen = directory.lstat()
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid():
            raise RigError(f"{directory} is not your folder: remove it, or set XDG_RUNTIME_DIR")
    return directory


class VirtualRig:
    """The rig in ``directory``, controlled through its daemon. ``close`` stops it if this object
    started it for itself."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.directory = directory
        self._process = process

    # --- up ---------------------------------------------------------------------------------------------------
    @classmethod
    def start(cls, config: RigConfig) -> Self:
        """Start a rig and wait until both nodes have configured their replication. Raises RigError
        with the reason."""
        directory = Path(config.directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if cls(directory).is_up():
            raise RigError(
                f"a rig is already up in {directory}; take it down with: freezeframe rig down"
            )
        if _holder(directory):
            raise RigError(
                f"a rig's process lives in {directory} and does not answer: freezeframe rig down"
            )
        for leftover in (*directory.glob("*.console.log"), directory / SOCKET):
            leftover.unlink(missing_ok=True)
        log = directory / LOG
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "freezeframe.harness.rigs.daemon"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        assert process.stdin is not None
        rig = cls(directory, process)
        try:
            process.stdin.write(msgspec.json.encode(config) + b"\n")
            process.stdin.flush()
            rig._await_boot(log, [side for side in SIDES if side != config.outside])
        except BaseException as error:
            rig.close()
            if isinstance(error, BrokenPipeError):
                raise rig._died(log) from error
            raise
        return rig

    def _await_boot(self, log: Path, waiting: Sequence[Side]) -> None:
        assert self._process is not None
        # The daemon answers once it has the image, which may have to be built first; then it powers
        # the nodes.
        deadline, is_powered = time.monotonic() + IMAGE_TIMEOUT_S, False
        while waiting:
            if not is_powered and (self.directory / SOCKET).exists():
                deadline, is_powered = time.monotonic() + BOOT_TIMEOUT_S, True
            waiting = [side for side in waiting if BANNER not in self._console(side)]
            if self._process.poll() is not None:
                raise self._died(log)
            if waiting and time.monotonic() >= deadline:
                image_late = f"the image of the nodes was not built within {IMAGE_TIMEOUT_S:.0f} s"
                raise RigError(self._silent(waiting) if is_powered else image_late)
            if waiting and is_powered:
                self.check()
            time.sleep(0.05)

    def _silent(self, waiting: Sequence[Side]) -> str:
        side = waiting[0]
        lines = self._console(side).decode(errors="replace").splitlines()
        last = f"the last it printed: {escape(lines[-1][-120:])}" if lines else "it printed nothing"
        return f"the {side} node did not boot within {BOOT_TIMEOUT_S:.0f} s; {last}"

    def _console(self, side: Side) -> bytes:
        with contextlib.suppress(OSError):
            return (self.directory / f"{side}.console.log").read_bytes()
        return b""

    def _died(self, log: Path) -> RigError:
        words = log.read_text(errors="replace")[-600:].strip().splitlines()
        return RigError(f"the rig did not come up: {words[-1] if words else 'no reason given'}")

    # --- running ------------------------------------------------------------------------------------------------
    def is_up(self) -> bool:
        try:
            self.ask({"do": "status"})
        except RigError:
            return False
        return True

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send one command to the daemon. Raises RigError: no rig is running, or the command
        failed."""
        path = self.directory / SOCKET
        try:
            with socket.socket(socket.AF_UNIX) as channel:
                channel.settimeout(COMMAND_TIMEOUT_S)
                channel.connect(str(path))
                channel.sendall(json.dumps(command).encode() + b"\n")
                answer = b""
                while not answer.endswith(b"\n") and len(answer) < MAX_ANSWER_BYTES:
                    data = channel.recv(65536)
                    if not data:
                        break
                    answer += data
            answer_fields: dict[str, Any] = json.loads(answer)
        except (OSError, ValueError) as error:
            raise RigError(
                f"no rig is up in {self.directory} ({error}); freezeframe rig up"
            ) from error
        if not answer_fields.pop("ok"):
            raise RigError(f"rig: {answer_fields.get('error')}")
        return answer_fields

    def status(self) -> dict[str, Any]:
        return self.ask({"do": "status"})

    def check(self) -> None:
        """Raise RigError if the rig is only partly running."""
        for side, node in self.status()["nodes"].items():
            if not node["running"]:
                how = (
                    f"QEMU ended with status {node['exit_status']}"
                    if "exit_status" in node
                    else "it is switched off"
                )
                words = "; ".join(node.get("qemu", [])[-2:])
                raise RigError(
                    f"the rig is only partly running: the {side} node is not running, {how}{': ' + words if words else ''}. "
                    "Restart it: freezeframe rig down; freezeframe rig up"
                )

    def check_pair(self, name: str) -> None:
        """Raise RigError if the nodes are of another kind than ``name``."""
        found = self.status().get("pair")
        if found != name:
            raise RigError(
                f"the rig that is up in {self.directory} is a pair of {found!r} nodes, the bench needs {name!r}: "
                "freezeframe rig down"
            )

    def trouble(self) -> str:
        """Return what is wrong with the rig; "": nothing."""
        if self._process is not None and self._process.poll() is not None:
            words = (self.directory / LOG).read_text(errors="replace").strip().splitlines()
            return f"the rig's process has ended: {escape(words[-1][-300:]) if words else 'it gave no reason'}"
        try:
            self.check()
        except RigError as error:
            return str(error)
        return ""

    def power(self, side: Side, *, on: bool) -> None:
        self.ask({"do": "power", "side": side, "on": on})

    def arm(self, faults: Sequence[Mapping[str, Any]]) -> None:
        """Arm faults in the link injector, as in a fault plan; an empty list disarms."""
        self.ask({"do": "arm", "faults": list(faults)})

    def cut(self, senders: Sequence[Side], seconds: float) -> None:
        """Drop all frames of these sides for that time."""
        self.ask({"do": "cut", "senders": list(senders), "ms": round(seconds * 1000)})

    # --- down ---------------------------------------------------------------------------------------------------
    def down(self) -> bool:
        """Stop the rig and wait until it is gone. False: none was running."""
        pid = _holder(self.directory)
        if not pid:
            return False
        try:
            # By descriptor, so that a pid that was given to another process meanwhile is not
            # touched.
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
                if poller.poll(DOWN_TIMEOUT_S * 1000):
                    break
        finally:
            os.close(fd)
        return True

    def let_go(self) -> None:
        """Keep the rig running when this object is closed."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def close(self) -> None:
        if self._process is None:
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=DOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()


def _holder(directory: Path) -> int:
    """Return the pid of the rig process, even if it does not answer; 0: none."""
    try:
        with (directory / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = file.read(20)
                return int(pid) if pid.isdecimal() else 0
    except OSError:
        pass
    return 0
