"""The keys by which a person leaves a console that he writes to, or sends what no key sends. Pure.

As in tio: ctrl-t, then a letter. All else goes to the device, ctrl-c included.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final

ESCAPE: Final = b"\x14"
"""ctrl-t; twice: one goes to the device."""
KEYS: Final = "ctrl-t q ends it, ctrl-t b sends a BREAK, ctrl-t 1 to 9 a list of the bench file, ctrl-t ctrl-t a ctrl-t"


class ConsoleKey(Enum):
    QUIT = b"q"
    BREAK = b"b"
    HELP = b"?"


Typed = bytes | ConsoleKey | int
"""For the device; a command; the number of a list, from 1."""


class EscapeKeys:
    """However the keys are split into reads, what comes out is the same, but for the split of bytes."""

    def __init__(self) -> None:
        self._is_escaped = False

    def feed(self, data: bytes) -> Sequence[Typed]:
        found: list[Typed] = []
        for at in range(len(data)):
            key = data[at : at + 1]
            if not self._is_escaped:
                if key == ESCAPE:
                    self._is_escaped = True
                elif found and isinstance(found[-1], bytes):
                    found[-1] += key
                else:
                    found.append(key)
                continue
            self._is_escaped = False
            if key == ESCAPE:
                found.append(key)
            elif key in b"123456789":
                found.append(int(key))
            elif key in (ConsoleKey.QUIT.value, ConsoleKey.BREAK.value):
                found.append(ConsoleKey(key))
            else:  # also for one that means nothing
                found.append(ConsoleKey.HELP)
        return found
