"""Obtain the kernel privileges that a command needs before it starts."""

import sys

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.cli.interrupt import begin_work
from freezeframe.harness.edge.netns import ensure_privileges, join_holder


def prepare(bench: Bench) -> None:
    """Restart this command in a user namespace if the bench needs one.

    A simulated bench needs network namespaces, which without root need a user namespace. A command
    that uses a bench simulated by another command joins the namespace of that command. Raises
    RigError that names the missing setting or capability.
    """
    begin_work()
    argv = [sys.executable, *sys.orig_argv[1:]]
    if bench.simulation is not None or bench.rig is not None:
        ensure_privileges(argv)
    elif bench.link.namespace is not None:
        join_holder(bench.link.namespace, argv)
