"""A sentence on a terminal is broken between words; in a pipe, and without a blank, never."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from freezeframe.harness.cli.output import MIN_COLUMNS, _Console

WORDS = st.lists(st.text("abc/.-{}[]_:;", min_size=1, max_size=60), min_size=1, max_size=12)


def printed(text: str, columns: int, *, is_terminal: bool = True) -> list[str]:
    file = io.StringIO()
    console = _Console(
        file=file, force_terminal=is_terminal, width=columns, color_system=None, soft_wrap=True
    )
    console.sentence(Text(text))
    assert file.getvalue().endswith("\n")
    return file.getvalue().removesuffix("\n").split("\n")


@given(words=WORDS, columns=st.integers(MIN_COLUMNS, 120), margin=st.integers(0, 8))
def test_no_word_is_broken_and_no_line_is_longer_than_it_must_be(
    words: list[str], columns: int, margin: int
) -> None:
    """Seen: a path of a remedy began on one line of 80 columns and ended on the next."""
    text = " " * margin + " ".join(words)
    lines = printed(text, columns)
    assert [word for line in lines for word in line.split()] == words
    assert all(line.startswith(" " * margin) for line in lines)
    room = max(columns, margin + MIN_COLUMNS)
    assert all(len(line.rstrip()) <= room or len(line.split()) == 1 for line in lines)
    assert printed(text, columns, is_terminal=False) == [text]


def test_a_text_of_lines_stays_one() -> None:
    assert printed("one two\n\n  three four five six", 20) == [
        "one two",
        "",
        "  three four five six",
    ]
