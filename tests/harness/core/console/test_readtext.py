"""A console's text as a person reads it, against one regular expression over the whole stream."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.console.readtext import Reader, without_colours

PARTS = [
    b"a", b"FAILED", b"\r", b"\n", b"\r\n", b"\r\r\n", b"\x1b", b"[", b"0;31m", b"\x1b[0m", b"\x1b[?25l", b"m",
    b"\x1b(B", b"\x1b]0;title\x07", b"\x1b]", b"\x07", b"\x1b\\", b"\x1bM", b" ", b"\xff",
]  # fmt: skip


def right(stream: bytes) -> list[tuple[int, int]]:
    """(byte, raw offset behind it) of the text: sequences out, then each end of a line is one."""
    left: list[tuple[int, int]] = []
    at, osc, short = (
        0,
        rb"\x1b\][^\x07\x1b\r\n]{0,256}(?:\x07|\x1b\\)",
        rb"\x1b(?:[ -/]{1,4}[0-~]|[0-Z\\^-~])",
    )
    while at < len(stream):
        found = (
            re.compile(rb"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]").match(stream, at)
            or re.compile(osc).match(stream, at)
            or re.compile(short).match(stream, at)
        )
        if found:
            at = found.end()
        else:
            left.append((stream[at], at + 1))
            at += 1
    text: list[tuple[int, int]] = []
    previous = 0
    for byte, end in left:
        if byte in b"\r\n":
            if previous != 0x0D:
                text.append((0x0A, end))
        else:
            text.append((byte, end))
        previous = byte
    return text


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=25), st.data())
def test_the_same_text_however_it_is_split(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts) + b"\n"  # which leaves no sequence open
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splits = [
        [stream],
        [stream[at : at + 1] for at in range(len(stream))],
        [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)],
    ]
    wanted = right(stream)
    for chunks in splits:
        reader, seen = Reader(100), []
        for chunk in chunks:
            begin = reader.length
            text = reader.feed(chunk)
            seen += [(byte, reader.raw_end(begin + n + 1) - 100) for n, byte in enumerate(text)]
            if begin and not chunk:
                assert reader.raw_end(begin) - 100 == seen[-1][1]
        assert seen == wanted


@pytest.mark.parametrize("first", [b"x\r", b"x\x1b[1m\n", b"xy"])
def test_the_end_of_the_chunk_before_is_still_known(first: bytes) -> None:
    """Where ``$`` matches it is known only with the byte that follows."""
    reader = Reader()
    text = reader.feed(first)
    reader.feed(b"")
    end = reader.raw_end(len(text))
    reader.feed(b"\nz")
    assert reader.raw_end(len(text)) == end
    assert end == {b"x\r": 2, b"x\x1b[1m\n": 6, b"xy": 2}[first]


def test_a_sequence_that_never_ends_is_text() -> None:
    reader = Reader()
    text = b"".join(reader.feed(b"x") for _ in range(3))
    text += reader.feed(b"\x1b]0;" + b"y" * 300)
    assert text == b"xxx\x1b]0;" + b"y" * 300
    assert Reader().feed(b"\x1b[" + b"1" * 40 + b"m") == b"\x1b[" + b"1" * 40 + b"m"


def test_one_line() -> None:
    assert without_colours(b"\x1b[32m[    1.0] \x1b[0m\x1b(Bok") == b"[    1.0] ok"
    assert without_colours(b"plain") == b"plain"
