"""A literal that another writer's text has torn apart, once. Pure.

The rest stands, after the beginning,

* in one of the next MAX_TORN_LINES lines, at its begin or after a stamp: another processor's lines
  came in between, and the kernel stamps the rest of a line anew (printk's continuation lines);
* or in the same line, after a text that begins like another writer's;
* or in the same line, after any text that splits a word. That text does not end with the
  letter in front of the split (or its capital), or the word would stand there whole: ``local disk
  ok, remote disk failed`` is not ``local disk failed`` torn apart.
"""

import re
from functools import lru_cache
from typing import Final

MAX_TORN_LINES: Final = 3
MAX_TORN_BYTES: Final = 4096
"""From the beginning of the literal to the end of its rest."""
STAMP: Final = (
    rb"(?:<\d>)?(?:\[(?=[^]\n]*\d)[^]\n]{5,40}\](?:\[ *[TC]\d+\])? ?)?"
    rb"(?:\w{3} +\d+ [\d:.]+ \S+ \S+: ?(?:\[[ .\d]+\] ?)?)?"
)
"""What may stand in front of the rest: a kernel's stamp, conserver's, syslog's; or nothing. Each has
a digit: ``[  OK  ]`` begins a line of systemd's own."""
FOREIGN: Final = rb"\[[ .\dA-Z*]{4,14}\]"
"""Another writer's text begins so: a kernel's stamp, or systemd's ``[  OK  ]``."""


def is_in_word(text: bytes, cut: int) -> bool:
    """Whether both bytes at that border belong to one word."""
    return text[cut - 1 : cut + 1].isalnum()


def halves(literal: bytes) -> tuple[bytes, bytes]:
    """Wherever it is torn, one of them stays whole."""
    return literal[: len(literal) // 2], literal[len(literal) // 2 :]


_STAMP: Final = re.compile(STAMP)


@lru_cache(maxsize=4096)
def _before_foreign(head: bytes) -> re.Pattern[bytes]:
    return re.compile(re.escape(head) + FOREIGN)


def _is_rest(literal: bytes, cut: int, whole: bytes, at: int, begin: int) -> bool:
    """Whether the beginning, up to ``cut``, stands in ``whole[begin:at]`` so that what begins at
    ``at`` is its rest. By searches for fixed texts, whose time is linear: a pattern of all of it
    takes the third power on a console that repeats both parts."""
    head = literal[:cut]
    line = whole.rfind(b"\n", begin, at) + 1 or begin
    same = max(begin, line - cut)
    if whole.find(head, same, max(at - 1, 0)) >= 0:
        last = literal[cut - 1 : cut]
        is_other = whole[at - 1 : at] not in (last, last.swapcase(), b"\n")
        if is_other and is_in_word(literal, cut):
            return True
        if _before_foreign(head).search(whole, same, at):
            return True
    if line == begin or not _STAMP.fullmatch(whole, line, at):
        return False
    first = line - 1
    for _ in range(MAX_TORN_LINES):
        first = whole.rfind(b"\n", begin, max(first, begin))
        if first < 0:
            break
    return whole.find(head, max(begin, first + 1 - cut), line - 1) >= 0


def ends(literal: bytes, before: bytes, text: bytes) -> list[int]:
    """Where in ``text`` the rest of a torn literal ends. ``before``: what stands in front of it, as
    much as there is of MAX_TORN_BYTES."""
    whole = before + text
    found = set()
    for cut in range(1, len(literal)):
        tail = literal[cut:]
        at = whole.find(tail, max(0, len(before) - len(tail) + 1))
        while at >= 0:
            end = at + len(tail)
            begin = max(0, end - MAX_TORN_BYTES)
            if end - len(before) not in found and _is_rest(literal, cut, whole, at, begin):
                found.add(end - len(before))
            at = whole.find(tail, at + 1)
    return sorted(found)
