"""What makes two incidents the same kind: rule, stage, and the line without its numbers. Pure."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from freezeframe.harness.core.verdict.writepath import mapping

SIGNATURE_CHARS: Final = 10
MAX_LINE_CHARS: Final = 300
GARBLED: Final = "(a garbled line)"
ALWAYS_FROM: Final = 3
"""So many incidents of a kind are needed before "always" is said of them."""
_STAMP: Final = re.compile(r"^\[\s*[\d.]+\]\s*")
_UNREADABLE: Final = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4})")
_HEX: Final = re.compile(r"\b0x[0-9a-fA-F]+\b|\b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,}\b")
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
    line = _STAMP.sub("", line[: 4 * MAX_LINE_CHARS]).strip()
    if _UNREADABLE.search(line):
        return GARBLED
    return _NUMBER.sub("#", _HEX.sub("#", line))[:MAX_LINE_CHARS]


def signature(rule: str, stage: str, line: str) -> str:
    """A short name of the kind; ``line`` is normalised already."""
    return hashlib.sha256("\0".join((rule, stage, line)).encode(errors="replace")).hexdigest()[
        :SIGNATURE_CHARS
    ]


def stage_of(record: Mapping[str, Any]) -> str:
    """The verdict's stage; "" while there is no conclusive verdict."""
    verdict = mapping(record.get("verdict"))
    stage = verdict.get("stage")
    return stage if verdict.get("conclusive") is True and isinstance(stage, str) else ""


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
    elsewhere: Sequence[frozenset[str]]
    """Contexts of the incidents of other kinds: what all incidents share says nothing of this
    kind."""

    @property
    def always(self) -> list[str]:
        if len(self.members) < ALWAYS_FROM:
            return []
        shared = frozenset.intersection(*(one.contexts for one in self.members))
        return [name for name in _CONTEXTS if name in shared and not self._is_everywhere(name)]

    def _is_everywhere(self, name: str) -> bool:
        return bool(self.elsewhere) and all(name in one for one in self.elsewhere)

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
