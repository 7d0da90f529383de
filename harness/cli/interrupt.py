"""Ctrl-C while nothing has begun: no KeyboardInterrupt, which some imports turn into errors of
their own."""

import os
import signal
import sys
from types import FrameType
from typing import Final

EXIT_INTERRUPTED: Final = 130


def _leave(number: int, frame: FrameType | None) -> None:
    if "--json" in sys.argv:
        os.write(1, b'{"outcome": "interrupted"}\n')
    os.write(2, b"freezeframe: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def leave_at_once() -> None:
    """Until ``begin_work``: there is nothing to undo. A SIGINT that is ignored (nohup) stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def begin_work() -> None:
    """From now on things are opened: Ctrl-C is a KeyboardInterrupt, and they are closed in
    order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
