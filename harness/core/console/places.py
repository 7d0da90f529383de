"""Console texts that name a place of the volume: how a line is tied to a write on the link.

The texts are the device's, and so come with the link's protocol (``ReplicationProtocol.console_texts``);
their groups are named: ``sector``, and ``length`` in bytes or ``sectors``. A device that names no place
names the write as the link does (``write_id_text``), and its digests (``recv``, ``computed``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

About = Literal["digest", "out-of-sync", "answer", "refused", ""]
"""digest: data were refused; out-of-sync: the two sides differ there; answer: one to no write;
refused: a write was answered with an error; "": nobody knows."""


@dataclass(frozen=True)
class ConsoleText:
    about: About
    pattern: re.Pattern[bytes]
    write_id_text: str = ""
    """Where the text names no sector: how its groups make the write's id as people see it on the
    link, such as ``queue {queue} cmd {cid}``."""

    def __post_init__(self) -> None:
        if "sector" not in self.pattern.groupindex and not self.write_id_text:
            raise ValueError(f"{self.pattern.pattern!r} names no group sector, and no write")


@dataclass(frozen=True)
class NamedPlace:
    about: About
    sector: int
    """-1: the text does not say."""
    length_bytes: int | None
    """None: the text does not say."""
    sectors: int | None
    offset_bytes: int
    """Of the text in what was searched."""
    write_id_text: str = ""
    """sector -1: this write of the link ..."""
    digests: tuple[int, int] | None = None
    """... whose digest was received so and computed so; None: the text does not say."""


ANY_SECTOR: Final = re.compile(rb"\bsector (?P<sector>\d{1,18})\b")
"""Without knowing the device."""


def places(console: bytes, texts: Iterable[ConsoleText], about: str) -> list[NamedPlace]:
    """Every place that texts about ``about`` name, in order."""
    found = [
        _place(text.about, match, text.write_id_text)
        for text in texts
        if text.about == about
        for match in text.pattern.finditer(console)
    ]
    return sorted(found, key=lambda one: one.offset_bytes)


def place_in(line: bytes, texts: Iterable[ConsoleText]) -> NamedPlace | None:
    """The place that a line names, by the device's texts or by the bare word."""
    for text in texts:
        if (match := text.pattern.search(line)) is not None:
            return _place(text.about, match, text.write_id_text)
    match = ANY_SECTOR.search(line)
    return None if match is None else _place("", match)


def _place(
    about: About,
    match: re.Match[bytes],
    write_id_text: str = "",
) -> NamedPlace:
    groups = {name: found.decode() for name, found in match.groupdict().items() if found}
    length, sectors = groups.get("length"), groups.get("sectors")
    digests = (groups[one] for one in ("recv", "computed")) if "computed" in groups else None
    received, computed = (int(one, 16) for one in digests) if digests else (0, 0)
    return NamedPlace(
        about,
        int(groups.get("sector", -1)),
        None if length is None else int(length),
        None if sectors is None else int(sectors),
        match.start(),
        write_id_text.format(**groups) if write_id_text else "",
        (received, computed) if digests else None,
    )
