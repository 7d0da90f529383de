"""Torn literals are found as one regular expression of the rule finds them, in time that a console
cannot stretch."""

import random
import re

from freezeframe.harness.core.console import torn


def ends_by_pattern(literal: bytes, before: bytes, text: bytes) -> list[int]:
    """The oracle: the module's own words as a pattern for each cut, tried at every end."""
    whole, found = before + text, set()
    for cut in range(1, len(literal)):
        gaps = [
            rb"(?:[^\n]*\n){1,%d}%b" % (torn.MAX_TORN_LINES, torn.STAMP),
            torn.FOREIGN + rb"[^\n]*",
        ]
        if torn.is_in_word(literal, cut):
            last = re.escape(literal[cut - 1 : cut])
            gaps.append(rb"[^\n]*[^\n%b%b]" % (last, last.swapcase()))
        head, tail = re.escape(literal[:cut]), re.escape(literal[cut:])
        pattern = re.compile(b"%b(?:%b)%b\\Z" % (head, b"|".join(gaps), tail))
        for end in range(len(before) + 1, len(whole) + 1):
            if pattern.search(whole[max(0, end - torn.MAX_TORN_BYTES) : end]):
                found.add(end - len(before))
    return sorted(found)


def test_the_rest_is_found_where_the_pattern_finds_it() -> None:
    dice, hits = random.Random(5), 0
    others = [
        b" ",
        b"\n",
        b"\n",
        b"[  1.2]",
        b"[ 12.345678] ",
        b"<4>",
        b"[  OK  ]",
        b"x",
        b"T",
        b"eth0: up",
    ]
    for _ in range(4000):
        literal = dice.choice([b"Digest fail", b"aab", b"ab ab", b"Dig est"])
        cut = dice.randrange(1, len(literal))
        parts = [
            dice.choice([*others, literal[:cut], literal[cut:]])
            for _ in range(dice.randrange(2, 9))
        ]
        text = b"".join(parts)
        at = dice.randrange(len(text) + 1)
        expected = ends_by_pattern(literal, text[:at], text[at:])
        assert torn.ends(literal, text[:at], text[at:]) == expected, (literal, text, at)
        hits += bool(expected)
    assert hits > 100


def test_a_console_that_repeats_both_parts_does_not_stop_the_reflex() -> None:
    """One pattern over all of it took more than ten minutes for these four KiB."""
    literal = b"ab" * 10
    assert torn.ends(literal, b"", b"ab" * 2048) == []
    assert torn.ends(literal, b"", b"ab" * 2048 + b"\nabab") != []
