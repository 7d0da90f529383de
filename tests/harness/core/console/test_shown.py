"""What a terminal is given of a console: escaped, and the same however the bytes are split."""

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.console.shown import ShownStream

PIECES = st.sampled_from(
    [b"boot", b"\r\n", b"\n\r", b"\n", b"\r", b"\t", b"\x1b[2J", b"\xc3\xa4", b"\xe2\x82", b"\xff", b"\0"]
)  # fmt: skip
STREAMS = st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=20).map(b"".join))


@given(STREAMS, st.lists(st.integers(0, 60), max_size=8))
def test_the_text_does_not_depend_on_how_the_bytes_are_split(data: bytes, cuts: list[int]) -> None:
    whole, parts = ShownStream(), ShownStream()
    at, text = 0, ""
    for end in [*sorted(cuts), len(data)]:
        text += parts.feed(data[at:end])
        at = max(at, min(end, len(data)))
    assert text == whole.feed(data)
    assert all(one.isprintable() or one in "\t\n" for one in text)
    assert parts.end_line() in ("", "\n")


def test_lines_end_as_terminals_end_them() -> None:
    shown = ShownStream()
    assert shown.feed(b"a\r\nb\n\rc\r\r\n") == "a\nb\nc\n"
    assert shown.feed(b"50 %\r60 %") == "50 %\\r60 %"
    assert shown.end_line() == "\n" and shown.end_line() == ""


def test_a_prompt_is_shown_before_its_line_has_ended() -> None:
    shown = ShownStream()
    assert shown.feed(b"login: ") == "login: "
    assert shown.feed(b"\xc3") == "" and shown.feed(b"\xa4\x1b[2J") == "\u00e4\\x1b[2J"


def test_each_line_is_stamped_once_where_it_begins() -> None:
    shown = ShownStream()
    text = shown.feed(b"one\ntw", lambda index: f"<{index}> ")
    text += shown.feed(b"o\n\nthree", lambda index: f"<{6 + index}> ")
    assert text == "<0> one\n<4> two\n<8> \n<9> three"
