"""``[breaks]`` of a bench file: what a person sends to a console by name: text, pauses, BREAKs."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

from pydantic import Field

BREAK_WORD: Final = "BREAK"
"""In such a list it stands for a BREAK."""
MAX_ITEM_CHARS: Final = 256

BreakItem = (
    Annotated[str, Field(min_length=1, max_length=MAX_ITEM_CHARS)]
    | Annotated[int, Field(ge=1, le=10_000)]
)
"""Text, BREAK, or a pause in milliseconds."""
BreakList = Annotated[list[BreakItem], Field(min_length=1, max_length=32)]


def described(items: list[str | int]) -> str:
    """The list in one line."""
    words = (
        f"{one} ms" if isinstance(one, int) else one if one == BREAK_WORD else repr(one)
        for one in items
    )
    return ", ".join(words)


def faults(breaks: Mapping[str, list[str | int]]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with its list)"""
    for name, items in breaks.items():
        if all(isinstance(one, int) for one in items):
            yield (
                name,
                'sends nothing; allowed: text in quotes, "BREAK", and pauses in ms between them',
            )
