"""Handle Ctrl-C while the command is still importing modules.

Some imports turn a KeyboardInterrupt into errors of their own, so the process exits directly.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Final

EXIT_INTERRUPTED: Final = 130


def _leave(number: int, frame: FrameType | None) -> None:
    if "--json" in sys.argv:
        os.write(1, b'{"outcome": "interrupted"}\n')
    os.write(2, b"freezeframe: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def leave_at_once() -> None:
    """Exit at once on SIGINT until ``begin_work`` is called; there is nothing to undo yet. A
    SIGINT that is ignored (nohup) stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def begin_work() -> None:
    """Raise KeyboardInterrupt on SIGINT from now on, so that everything opened is closed in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stop_softly() -> threading.Event:
    """The first SIGINT sets the event, the next raises KeyboardInterrupt. For a loop that looks often:
    an exception that comes at any moment is lost where it lands in a destructor."""
    stop = threading.Event()

    def set_it(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, set_it)
    return stop
