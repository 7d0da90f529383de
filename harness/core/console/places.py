"""Console texts that name a place of the volume: how a line is tied to a write on the link.

The texts are the device's, and so come with the link's protocol (``ReplicationProtocol.console_texts``);
their groups are named: ``sector``, and ``length`` in bytes or ``sectors``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class ConsoleText:
    about: Literal["digest", "out-of-sync", "answer"]
    """digest: data were refused; out-of-sync: the two sides differ there; answer: one to no write."""
    pattern: re.Pattern[bytes]

    def __post_init__(self) -> None:
        if "sector" not in self.pattern.groupindex:
            raise ValueError(f"{self.pattern.pattern!r} names no group sector")


@dataclass(frozen=True)
class NamedPlace:
    about: Literal["digest", "out-of-sync", "answer", ""]
    sector: int
    length_bytes: int | None
    """None: the text does not say."""
    sectors: int | None
    offset_bytes: int
    """Of the text in what was searched."""


ANY_SECTOR: Final = re.compile(rb"\bsector (?P<sector>\d{1,18})\b")
"""Without knowing the device."""


def places(console: bytes, texts: Iterable[ConsoleText], about: str) -> list[NamedPlace]:
    """Every place that texts about ``about`` name, in order."""
    found = [
        _place(text.about, match)
        for text in texts
        if text.about == about
        for match in text.pattern.finditer(console)
    ]
    return sorted(found, key=lambda one: one.offset_bytes)


def place_in(line: bytes, texts: Iterable[ConsoleText]) -> NamedPlace | None:
    """The place that a line names, by the device's texts or by the bare word."""
    for text in texts:
        if (match := text.pattern.search(line)) is not None:
            return _place(text.about, match)
    match = ANY_SECTOR.search(line)
    return None if match is None else _place("", match)


def _place(
    about: Literal["digest", "out-of-sync", "answer", ""], match: re.Match[bytes]
) -> NamedPlace:
    groups = match.groupdict()
    length, sectors = groups.get("length"), groups.get("sectors")
    return NamedPlace(
        about,
        int(groups["sector"]),
        None if length is None else int(length),
        None if sectors is None else int(sectors),
        match.start(),
    )
