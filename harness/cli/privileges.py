"""What a command needs of the kernel before it begins."""

import sys

from harness.benchfile import Bench
from harness.edge.netns import ensure_privileges


def prepare(bench: Bench) -> None:
    """A simulated bench needs network namespaces: without root this command starts over inside a user namespace.

    RigError names the setting or the capability that is missing.
    """
    if bench.simulation is not None or bench.rig is not None:
        ensure_privileges([sys.executable, *sys.orig_argv[1:]])
