"""The rig's process before its nodes run: stopped early, found, kept from a place that is taken. No
node is booted."""

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from waiting import await_true

from freezeframe.drivers.controllers.linux_drbd import NODE_PAIR
from freezeframe.harness.core.events import Side
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs.daemon import RigConfig
from freezeframe.harness.rigs.rig import VirtualRig, default_directory

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_capabilities()), reason="needs root: it makes a network namespace"
    ),
]
SERIALS: dict[Side, str] = {"primary": "P", "secondary": "S"}


class Making:
    """A daemon that waits for the archive while it makes the nodes' image, as on a slow line."""

    def __init__(self, folder: Path) -> None:
        tools, self.place = folder / "tools", folder / "rig"
        tools.mkdir()
        self.place.mkdir()
        self.asking = folder / "asking"
        for tool in ("apt-get", "apt-cache", "dpkg-deb", "lz4"):
            (tools / tool).write_text(f"#!/bin/sh\necho $$ >{self.asking}\nexec sleep 60\n")
            (tools / tool).chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "freezeframe.harness.rigs.daemon"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "PATH": f"{tools}:{os.environ['PATH']}",
                "XDG_CACHE_HOME": str(folder / "cache"),
            },
        )
        assert self.process.stdin is not None
        config = RigConfig(directory=str(self.place), pair=NODE_PAIR, serial_numbers=SERIALS)
        self.process.stdin.write(msgspec.json.encode(config) + b"\n")
        self.process.stdin.flush()
        await_true(
            lambda: self.asking.exists() and self.asking.read_text().strip(),
            20,
            "the archive to be asked",
        )
        self.tool = os.pidfd_open(int(self.asking.read_text()))

    def tool_ends(self, limit_s: float) -> bool:
        poller = select.poll()
        poller.register(self.tool, select.POLLIN)
        return bool(poller.poll(limit_s * 1000))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        if not self.tool_ends(0):
            signal.pidfd_send_signal(self.tool, signal.SIGKILL)
        os.close(self.tool)


@pytest.fixture
def making(tmp_path: Path) -> Iterator[Making]:
    made = Making(tmp_path)
    yield made
    made.close()


def test_told_to_end_while_it_makes_the_image_it_ends_with_what_it_started(making: Making) -> None:
    making.process.send_signal(signal.SIGTERM)
    assert making.process.wait(60) == 1
    assert making.tool_ends(5)


def test_a_place_is_one_rigs_also_while_that_does_not_answer(making: Making) -> None:
    making.process.send_signal(signal.SIGSTOP)
    config = RigConfig(directory=str(making.place), pair=NODE_PAIR, serial_numbers=SERIALS)
    with pytest.raises(RigError, match=r"lives in .* and does not answer: freezeframe rig down"):
        VirtualRig.start(config)
    making.process.send_signal(signal.SIGCONT)
    second = subprocess.run(
        [sys.executable, "-m", "freezeframe.harness.rigs.daemon"],
        input=msgspec.json.encode(config) + b"\n",
        capture_output=True,
        timeout=20,
    )
    assert second.returncode == 3
    assert b"lives in" in second.stderr


@pytest.mark.parametrize("kind", ["link", "file", "of another"])
def test_what_somebody_else_put_in_the_place_of_a_rig_is_not_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = default_directory()
    (tmp_path / "mine").mkdir()
    match kind:
        case "link":
            place.symlink_to(tmp_path / "mine")
        case "file":
            place.touch()
        case _:
            place.mkdir()
            os.chown(place, 65534, 65534)
    with pytest.raises(RigError, match="not your folder"):
        default_directory()


def test_down_takes_one_down_that_does_not_answer(
    making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freezeframe.harness.rigs.rig.DOWN_TIMEOUT_S", 1.0)
    making.process.send_signal(signal.SIGSTOP)
    assert VirtualRig(making.place).down()
    assert making.process.wait(60) == -signal.SIGKILL
    assert not VirtualRig(making.place).down()
