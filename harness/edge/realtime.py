"""Ask the kernel and Python for low latency; report as text what was refused."""

import ctypes
import gc
import os
import resource
from typing import Final

MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MEMORY_NOT_LOCKED: Final = "memory not locked"
"""How the note begins. ``doctor`` reports it with its remedy; an incident does not repeat it."""
FIFO_PRIORITY: Final = 20
"""Priority above ordinary processes and kernel threads at 1, below interrupt threads at 50."""


def become_realtime() -> list[str]:
    """Disable garbage collection, lock the memory and take a SCHED_FIFO priority. Returns what was
    refused."""
    gc.collect()
    gc.freeze()
    gc.disable()
    return [note for note in (_lock_memory(), _take_fifo_priority()) if note]


def _lock_memory() -> str:
    # Under a finite limit MCL_FUTURE would make a later allocation fail: remove the limit, or lock
    # nothing.
    limit_bytes = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    try:
        resource.setrlimit(
            resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
    except (OSError, ValueError):
        if limit_bytes != resource.RLIM_INFINITY:
            return f"{MEMORY_NOT_LOCKED}: RLIMIT_MEMLOCK is {limit_bytes >> 10} KiB; it must be unlimited (ulimit -l)"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE) != 0:
        return f"{MEMORY_NOT_LOCKED}: {os.strerror(ctypes.get_errno())}"
    return ""


def _take_fifo_priority() -> str:
    try:
        os.sched_setscheduler(
            0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(FIFO_PRIORITY)
        )
    except OSError as error:
        return f"no SCHED_FIFO priority: {error.strerror}; allow rtprio {FIFO_PRIORITY}, or run as root"
    return ""
