"""tshark as an independent reader of a capture of live sockets.

A stream whose port the kernel chose may have another protocol's number (44818 is EtherNet/IP), and a
segment that begins inside of a write's data looks like anything: each other dissector over TCP is
switched off, so that what tshark shows depends on the frames alone.
"""

import functools
import subprocess
from pathlib import Path

TIMEOUT_S = 600
"""A bound of a hang, not of speed."""


@functools.cache
def _others() -> tuple[str, ...]:
    """The options that leave DRBD as the only protocol over TCP."""
    heuristic = _run("-G", "heuristic-decodes").splitlines()
    by_port = _run("-G", "decodes").splitlines()
    names = {fields[1] for one in heuristic if (fields := one.split("\t"))[0] == "tcp"}
    names |= {fields[2] for one in by_port if (fields := one.split("\t"))[0] == "tcp.port"}
    names.discard("drbd")
    assert len(names) > 50
    return tuple(option for name in sorted(names) for option in ("--disable-protocol", name))


def tshark(path: Path, *arguments: str) -> list[str]:
    """The lines that tshark prints of a capture, with DRBD as the only protocol over TCP."""
    heuristic = ("--enable-heuristic", "drbd_tcp")
    return _run("-r", str(path), *_others(), *heuristic, *arguments).splitlines()


def malformed(path: Path) -> list[str]:
    """The frames that are malformed as DRBD. TCP's own trouble is none: a sender that repeats its
    segments cut in another way makes tshark's reassembly complain."""
    return tshark(path, "-Y", "_ws.malformed && !_ws.malformed.reassembly")


def _run(*arguments: str) -> str:
    command = ["tshark", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return done.stdout
