"""A Linux node, and its driver on each shell."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from linux_node import SHELLS, NodeOnDisk, Socket, shell_on_a_terminal

from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.harness.edge.serial_link import SerialLink


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeOnDisk:
    return NodeOnDisk(tmp_path, monkeypatch)


@pytest.fixture(params=["bare", *SHELLS])
def device(request: pytest.FixtureRequest, node: NodeOnDisk) -> Iterator[LinuxDrbd]:
    """A bare sh on a socket; or one that echoes and prompts on a PTY."""
    if request.param == "bare":
        ours, theirs = socket.socketpair()
        loop = ["sh", "-c", "while :; do sh 2>/dev/null; done"]
        shell = subprocess.Popen(
            loop,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=node.root,
        )
        theirs.close()
        link = SerialLink("test", Socket(ours), [])  # type: ignore[arg-type]
    else:
        shell, link = shell_on_a_terminal(SHELLS[request.param], node.root)
    try:
        yield LinuxDrbd("primary", link, serial_number="FFTEST-1")
    finally:
        os.killpg(shell.pid, 9)
        shell.wait()
        link.close()
