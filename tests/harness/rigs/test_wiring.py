"""The cables of a virtual rig: what is sent into the mirror comes out of it, and nothing is left
behind."""

import os
import socket
from functools import partial
from pathlib import Path

import pytest

from freezeframe.harness.core.events import SIDES
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.rigs import wiring

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_capabilities()), reason="needs root: it makes a network namespace"
    ),
]
FRAME = bytes.fromhex("525400ff0002525400ff000188b5") + bytes(range(60))
"""Of an experimental Ethertype (IEEE 802): nobody answers it."""


def listening(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(wiring.ETH_P_ALL))
    end.bind((interface, 0))
    end.settimeout(60)
    return end


@pytest.mark.parametrize("outside", [None, "secondary"])
def test_the_mirror_shows_what_is_sent_into_it(outside: str | None) -> None:
    laid = wiring.lay(1500, outside)  # type: ignore[arg-type]
    try:
        tap = laid.namespace.run(partial(listening, wiring.MIRROR))
        assert laid.mirror is not None
        laid.mirror.send(FRAME)
        while tap.recv(2000) != FRAME:
            pass
        tap.close()
        assert set(laid.packets) == set(SIDES)
        assert set(laid.taps) == set(SIDES) - {outside}
    finally:
        laid.close()


def test_cables_are_gone_with_their_namespace() -> None:
    laid = wiring.lay(1500)
    fd = os.open(laid.namespace.path, os.O_RDONLY)
    inode = os.fstat(fd).st_ino
    os.close(fd)
    laid.close()

    def holders() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            try:
                if path.stat().st_ino == inode:
                    found.append(str(path))
            except OSError:
                continue
        return found

    assert holders() == []


def test_a_namespace_of_ours_sees_only_its_own() -> None:
    laid = wiring.lay(1500)
    try:
        names = laid.namespace.run(lambda: {name for _, name in socket.if_nameindex()})
        assert {
            "repl-primary",
            "repl-secondary",
            "host-primary",
            "host-secondary",
            wiring.MIRROR,
        } <= names
        assert not {"repl-primary", wiring.MIRROR} & {name for _, name in socket.if_nameindex()}
    finally:
        laid.close()
