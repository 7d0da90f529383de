"""What makes two incidents the same kind: rule, stage, and the line without its numbers. Pure."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from freezeframe.harness.core.console import stamps
from freezeframe.harness.core.verdict.record import Verdict

SIGNATURE_CHARS: Final = 10
MAX_LINE_CHARS: Final = 300
GARBLED: Final = "(a garbled line)"
ALWAYS_FROM: Final = 3
"""So many incidents of a kind are needed before "always" is said of them."""
_ESCAPED: Final = re.compile(r"\\x1b|\\r|\\n|\\t")
"""``core.text.escape`` wrote them so; stamps and colours are read as the bytes that they were."""
_RAW: Final = {"\\x1b": "\x1b", "\\r": "\r", "\\n": "\n", "\\t": "\t"}
_STAMP: Final = re.compile(r"^\[\s*[\d.]+\]\s*")
"""Also one that is no kernel's: ``[12.6]``."""
_UNREADABLE: Final = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4})")
_UUID: Final = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
_HEX: Final = re.compile(
    r"\b0x[0-9a-fA-F]+\b|\b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,}\b"
    r"|\b(?:[0-9A-F]{16}|[0-9a-f]{16}|[0-9a-f]{32}|[0-9A-F]{32})\b"  # a UUID without a digit
    r"|\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b"  # an Ethernet address
)
_DATE: Final = re.compile(
    r"\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},? +)?"
    r"(?:\d{1,2} +)?(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6} +\d{1,4}"
    r"(?:,? +\d{4})?(?: +\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?: +(?:[A-Z]{3,4}))?(?: +\d{4})?\b"
    r"|\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},? +)?\d{4}-\d\d-\d\d"
    r"(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?)?"
)
_CALLER: Final = re.compile(r"\[ *[TC]\d+\]")
_NUMBER: Final = re.compile(r"\d+(?:[.:]\d+)*")
_CONTEXTS: Final[Mapping[str, re.Pattern[bytes]]] = {
    "resync": re.compile(rb"Began resync|Resync done"),
    "a warmstart": re.compile(rb"\bwarmstart\b"),
    "a lost connection": re.compile(
        rb"conn\( \w+ -> (?:BrokenPipe|NetworkFailure|Timeout|ProtocolError)"
    ),
    "a power cycle": re.compile(rb"boot epoch (?:[2-9]|\d\d+), cold boot"),
}
"""What may have come before a trigger, and how the consoles tell it."""


def normalised(line: str) -> str:
    """A line of a console without what differs from one time to the next: times, numbers, ids."""
    raw = _ESCAPED.sub(lambda found: _RAW[found[0]], line[: 4 * MAX_LINE_CHARS])
    line = stamps.read(raw.encode(errors="replace")).rest.decode(errors="replace")
    line = _STAMP.sub("", line).strip()
    if _UNREADABLE.search(line) or not line.isprintable():
        return GARBLED
    for varying in (_UUID, _DATE, _CALLER, _HEX, _NUMBER):
        line = varying.sub("#", line)
    return line[:MAX_LINE_CHARS]


def signature(rule: str, stage: str, line: str) -> str:
    """A short name of the kind; ``line`` is normalised already."""
    return hashlib.sha256("\0".join((rule, stage, line)).encode(errors="replace")).hexdigest()[
        :SIGNATURE_CHARS
    ]


def stage_of(verdict: Verdict | None) -> str:
    """The verdict's stage; "" while there is no conclusive verdict."""
    return verdict.stage or "" if verdict is not None and verdict.conclusive else ""


def contexts(before: bytes) -> list[str]:
    """What the consoles tell of the time before the trigger."""
    return [name for name, pattern in _CONTEXTS.items() if pattern.search(before)]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One incident of a kind."""

    name: str
    started: str
    firmware: str
    contexts: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """How often a kind was seen, and what its incidents have in common. ``members``: oldest first,
    at least one."""

    members: Sequence[Member]
    others: int = 0
    """Incidents of other kinds."""
    others_after: Mapping[str, int] = field(default_factory=dict)
    """Context -> how many of the others have it: what all incidents share says nothing of this
    kind."""

    @property
    def always(self) -> list[str]:
        if len(self.members) < ALWAYS_FROM:
            return []
        shared = frozenset.intersection(*(one.contexts for one in self.members))
        return [name for name in _CONTEXTS if name in shared and not self._is_everywhere(name)]

    def _is_everywhere(self, name: str) -> bool:
        return 0 < self.others == self.others_after.get(name, 0)

    @property
    def text(self) -> str:
        first, last = self.members[0], self.members[-1]
        on = f" on firmware {first.firmware}" if first.firmware else ""
        if len(self.members) == 1:
            return f"seen once{on}"
        said = f"seen {len(self.members)} times, first {first.started[:10]}{on}, last {last.started[:10]}"
        if last.firmware != first.firmware and last.firmware:
            said += f" on firmware {last.firmware}"
        return "".join([said, *(f", always after {name}" for name in self.always)])
