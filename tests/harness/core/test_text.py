"""Text from a device never reaches a terminal as commands."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.text import did_you_mean, escape, sector_range


def test_what_is_escaped() -> None:
    assert escape("plain text, äöü, 漢字") == "plain text, äöü, 漢字"
    assert escape("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert escape("a\r\nb\tc\0") == "a\\r\\nb\\tc\\x00"
    assert escape("\x9b2J\x85") == "\\x9b2J\\x85"
    assert escape("\u202eevil\u2066\u200f\ufeff") == "\\u202eevil\\u2066\\u200f\\ufeff"
    assert escape("\u2028\ud800\U000e0001") == "\\u2028\\ud800\\U000e0001"


def test_bytes() -> None:
    assert escape(b"ok \xc3\xa9 \xff\xfe\x1b") == "ok é \\xff\\xfe\\x1b"


@given(st.text() | st.binary())
def test_only_printable_characters_remain(text: str | bytes) -> None:
    shown = escape(text)
    assert all(
        unicodedata.category(character)[0] not in "CZ" or character == " " for character in shown
    )
    shown.encode()  # no lone surrogate is left


@given(st.lists(st.text("abcdefgh_", min_size=3), min_size=1, unique=True), st.data())
def test_a_mistyped_name_suggests_the_one_that_was_meant(
    known: list[str], data: st.DataObject
) -> None:
    meant = data.draw(st.sampled_from(known))
    assert meant in did_you_mean(meant + meant[-1], known)
    assert did_you_mean("XYZ", known) == ""


def test_a_range_of_sectors_names_its_first_and_its_last() -> None:
    assert sector_range(17792, 128) == "sectors 17792-17919"
    assert (sector_range(8, 1), sector_range(8, 0), sector_range(8, None)) == ("sector 8",) * 3
