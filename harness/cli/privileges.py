"""What a command needs of the kernel before it begins."""

import sys

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.cli.interrupt import begin_work
from freezeframe.harness.edge.netns import ensure_privileges, join_holder


def prepare(bench: Bench) -> None:
    """A simulated bench needs network namespaces: without root this command starts over inside a
    user namespace. So does one that meets a bench which another command simulates.

    RigError names the setting or the capability that is missing.
    """
    begin_work()
    argv = [sys.executable, *sys.orig_argv[1:]]
    if bench.simulation is not None or bench.rig is not None:
        ensure_privileges(argv)
    elif bench.link.namespace is not None:
        join_holder(bench.link.namespace, argv)
