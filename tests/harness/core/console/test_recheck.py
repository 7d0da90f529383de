"""The plain matcher agrees with the Scanner on anything, and finds what either has missed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.console.recheck import MAX_REGEX_BYTES, Recheck, recheck
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.console.triggers import Scanner
from freezeframe.harness.core.events import NS_PER_MS, Ns

RULES = [
    ConsoleRule(name="literal", literal="aba"),
    ConsoleRule(name="other side", side="secondary", literal="a"),
    ConsoleRule(name="regex", regex=r"b\d+$"),
    ConsoleRule(name="over lines", regex=r"b[\s\S]{1,4}a"),
    ConsoleRule(name="many ends", regex=r"a.*1"),
    ConsoleRule(name="borders", regex=r"^b|\bab\b|1$"),
    ConsoleRule(name="space", regex=r"\s1"),
    ConsoleRule(name="any case", regex=r"(?i)B+A|[^ab]{2}$"),
    ConsoleRule(name="sequence", literal="ab", then="ba", within_ms=3),
    ConsoleRule(name="sequence in itself", literal="a", then="bab", within_ms=3),
    ConsoleRule(name="sequence of one text", literal="ab", then="ab", within_ms=3),
    ConsoleRule(name="torn", literal="ab1", interleaved=True),
    ConsoleRule(name="torn between words", literal="a b", interleaved=True),
    ConsoleRule(name="end of line in it", literal="a\r\nb"),
    ConsoleRule(name="end of line in it, counted", literal="1\r\n", count=2, within_ms=3),
    ConsoleRule(name="of two lines", regex=r"a\r\nb"),
    ConsoleRule(name="rate", literal="a", count=3, within_ms=2),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.text("ab1\r\n\v ", max_size=6)
            | st.sampled_from(
                ["\x1b[1m", "\x1b", "[0m", "\r\r\n", "[    1.000000] ", "[  OK  ] a", "[ C1]"]
            ),
        ),
        max_size=30,
    )
)
def test_agrees_with_the_scanner(parts: list[tuple[int, str]]) -> None:
    scanner, now_ns, data = Scanner(RULES, {"c": "primary"}), 0, b""
    reads: list[tuple[Ns, int]] = []
    told: list[tuple[str, int]] = []
    for pause_ms, text in parts:
        now_ns += pause_ms * NS_PER_MS
        if text:
            reads.append((now_ns, len(data)))
            hits = scanner.feed("c", text.encode(), now_ns)
            told += [(RULES[hit.rule].name, hit.end_offset_bytes) for hit in hits]
            data += text.encode()
    found = recheck(RULES, "primary", data, reads, told)
    assert found.agrees, found
    assert not found.not_checked
    assert found.checked_bytes == len(data)


def test_occurrences_that_overlap_are_all_looked_for() -> None:
    rules = [ConsoleRule(name="a", literal="aba")]
    right = [("a", 3), ("a", 5), ("a", 7)]
    assert recheck(rules, "primary", b"abababa", [(0, 0)], right) == Recheck(7, 3)
    for left_out in right:
        told = [one for one in right if one != left_out]
        assert recheck(rules, "primary", b"abababa", [(0, 0)], told).missed == [left_out]


def test_a_miss_and_an_invention_are_found() -> None:
    rules = [ConsoleRule(name="a", literal="FAILED"), ConsoleRule(name="r", regex="bad+")]
    data = b"FAILED\nbaddd\nFAILED\n"
    reads = [(0, 0)]
    right = [("a", 6), ("r", 10), ("a", 19)]
    assert recheck(rules, "primary", data, reads, right) == Recheck(20, 3)
    found = recheck(rules, "primary", data, reads, [("a", 6), ("a", 11)])
    assert found.missed == [("a", 19), ("r", 12)]
    assert found.unfounded == [("a", 11)]
    assert not found.agrees


def differences(rule: ConsoleRule, data: bytes, *told: int) -> tuple[list[int], list[int]]:
    found = recheck([rule], "primary", data, [(0, 0)], [(rule.name, end) for end in told])
    assert found.not_checked == [] and found.agrees == (not found.missed and not found.unfounded)
    return [end for _, end in found.missed], [end for _, end in found.unfounded]


def test_a_regex_is_searched_for_over_lines() -> None:
    rule = ConsoleRule(name="g", regex=r"digest[\s\S]{0,80}FAILED")
    data = b"digest integ\n[ 1.0] other\n FAILED\n"
    assert differences(rule, data, len(data) - 1) == ([], [])
    assert differences(rule, data) == ([len(data) - 1], [])


def test_a_hit_that_was_told_twice_is_once_too_often() -> None:
    assert differences(ConsoleRule(name="l", literal="FAILED"), b"FAILED\n", 6, 6) == ([], [6])


def test_without_a_reflex_nothing_is_its_to_tell() -> None:
    rules = [ConsoleRule(name="l", literal="FAILED")]
    assert recheck(rules, "primary", b"FAILED\n", [], []) == Recheck(0, 0)


def test_a_regex_that_was_told_and_is_not_there() -> None:
    rule = ConsoleRule(name="x", regex="ab+$")
    data = b"nothing\nabb\r\nabb\n"
    assert differences(rule, data, 11, 16) == ([], [])
    assert differences(rule, data, 5, 11, 12, 15, 16, 99) == ([], [5, 12, 15, 99])
    assert differences(rule, data, 11) == ([16], [])


def test_a_torn_literal_is_found_where_it_ends_once_a_line() -> None:
    rule = ConsoleRule(name="t", literal="FAILED", interleaved=True)
    data = b"FAI other\nLED FAILED\nFAILED\n"
    assert differences(rule, data, 13, 20, 27) == ([], []), "whole ones wherever they stand"
    assert differences(rule, data, 13, 25, 27) == ([20], [25])
    twice = b"FAI other\nLED x\nFAI [  OK  ] y\x1b[mLED FAI [  OK  ] LED\n"
    assert differences(rule, twice, 13, 36) == ([], []), "torn ones once in their line"


def test_a_match_that_may_be_too_long_is_not_judged() -> None:
    data = b"x" * MAX_REGEX_BYTES + b"\nFAILED\n"
    told = [("r", len(data) - 1)]
    for regex, unfounded, not_checked in (
        (r"a[^b]+FAILED", [], ["r"]),
        (r"a[^b]{9}FAILED", told, []),
    ):
        found = recheck([ConsoleRule(name="r", regex=regex)], "primary", data, [(0, 0)], told)
        assert (found.missed, found.unfounded, found.not_checked) == ([], unfounded, not_checked)


def test_what_was_read_before_there_was_a_reflex_is_not_its_to_tell() -> None:
    rules = [ConsoleRule(name="a", literal="FAILED"), ConsoleRule(name="r", regex="bad+")]
    early, data = b"FAILED\nbad\nFAI", b"LED\nbad\nFAILED\n"
    begin = len(early)
    reads = [(0, begin), (5, begin + 4)]
    right = [("r", begin + 7), ("a", begin + 14)]
    assert recheck(rules, "primary", early + data, reads, right) == Recheck(len(data), 2)
    found = recheck(rules, "primary", early + data, reads, [("a", 6), right[0]])
    assert (found.missed, found.unfounded) == ([("a", begin + 14)], [("a", 6)])


def test_what_cannot_be_judged_is_named() -> None:
    rules = [
        ConsoleRule(name="silence", literal="x", absent_ms=5),
        ConsoleRule(name="sequence of regexes", regex="a", then="b", within_ms=5),
        ConsoleRule(name="torn rate", literal="ab", interleaved=True, count=2, within_ms=5),
        ConsoleRule(name="foreign", regex="(a"),
        ConsoleRule(name="class", regex="[[:alpha:]]"),
        ConsoleRule(name="vertical space", regex=r"\v"),
        ConsoleRule(name="endless", regex=r"a[\s\S]*b"),
        ConsoleRule(name="repeated repeat", regex="(a+)+b"),
        ConsoleRule(name="endless lines", regex="(?s)a.*b"),
    ]
    found = recheck(rules, "primary", b"xab", [(0, 0)], [])
    assert found.not_checked == [rule.name for rule in rules]
    assert found.agrees
