"""Rules that need more than one match: sequence, rate, silence; and rules that are replaced in a
running stream."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.console.conditions import FIRST, MAX_THEN_BYTES, THEN, Conditions, Hit
from freezeframe.harness.core.console.rulebook import RuleBook
from freezeframe.harness.core.console.rules import ConsoleRule, parse_rules
from freezeframe.harness.core.console.triggers import Place, Scanner
from freezeframe.harness.core.events import NS_PER_MS
from freezeframe.harness.errors import UsageError

MS = NS_PER_MS
SEQUENCE = ConsoleRule(name="s", literal="link down", then="write failed", within_ms=500)
RATE = ConsoleRule(name="r", literal="retry", count=3, within_ms=100)
SILENCE = ConsoleRule(name="h", literal="alive", absent_ms=200)


def scan(rule: ConsoleRule, *reads: tuple[float, bytes]) -> list[int]:
    """Ends of the hits of one rule; reads are (milliseconds, bytes)."""
    scanner = Scanner([rule], {"c": "primary"})
    return [
        hit.end_offset_bytes
        for t_ms, data in reads
        for hit in scanner.feed("c", data, int(t_ms * MS))
    ]


def test_a_then_b_in_time() -> None:
    assert scan(SEQUENCE, (0, b"link down\n"), (500, b"noise\nwrite failed\n")) == [28]
    assert scan(SEQUENCE, (0, b"link down\n"), (501, b"write failed\n")) == []


def test_b_alone_or_before_a_is_no_hit() -> None:
    assert scan(SEQUENCE, (0, b"write failed link down")) == []


def test_each_a_is_good_for_one_b_and_the_newest_counts() -> None:
    assert scan(SEQUENCE, (0, b"link down, write failed, write failed")) == [23]
    assert scan(SEQUENCE, (0, b"link down "), (400, b"link down "), (800, b"write failed")) == [32]


def test_interleaved_lines_do_not_hide_b() -> None:
    assert scan(SEQUENCE, (0, b"link do"), (1, b"wn\r\nother\r\nwri"), (2, b"te failed")) == [30]


def test_overlapping_texts_are_no_sequence() -> None:
    rule = ConsoleRule(name="o", literal="abab", then="abcd", within_ms=10)
    assert scan(rule, (0, b"ababcd")) == []
    assert scan(rule, (0, b"abababcd")) == [8], "the first abab stands wholly before it"
    assert scan(rule, (0, b"ababxabcd")) == [9]


LINES = (b"drbd0: Digest integrity check FAILED\n", b"drbd0: PingAck did not arrive\n")


@pytest.mark.parametrize(
    "follows",
    [{"then": "drbd0: PingAck did not arrive"}, {"then_regex": r"drbd0: \w+ did not arrive$"}],
    ids=["literal", "regex"],
)
def test_b_may_hold_a(follows: dict[str, Any]) -> None:
    rule = ConsoleRule(name="h", literal="drbd0:", within_ms=500, **follows)
    second = len(LINES[0] + LINES[1]) - 1
    assert scan(rule, (0, LINES[0]), (500, LINES[1])) == [second]
    assert scan(rule, (0, LINES[0]), (501, LINES[1])) == [], "the one before it was too early"
    assert scan(rule, (0, LINES[1])) == [], "the one in it does not come before it"
    assert scan(rule, (0, LINES[1] * 2)) == [len(LINES[1]) * 2 - 1], "but before the next one"


def test_a_regex_that_could_have_begun_in_an_earlier_line_follows_all_the_same() -> None:
    rule = ConsoleRule(
        name="s", literal="link down", then_regex=r"integrity[\s\S]{0,40}FAILED", within_ms=10
    )
    text = b"integrity ok\nlink down\nintegrity check FAILED\n"
    for size in range(1, len(text) + 1):
        chunks = [(0, text[at : at + size]) for at in range(0, len(text), size)]
        assert scan(rule, *chunks) == [len(text) - 1]


def test_a_first_regex_that_grows_is_good_for_one_text() -> None:
    rule = ConsoleRule(name="s", regex="error.*", then="retry", within_ms=100)
    assert scan(rule, (0, b"error: retry retry\n")) == [12]
    assert scan(rule, (0, b"error: a long line"), (90, b" goes on"), (101, b" retry\n")) == [], (
        "from its first end"
    )
    assert scan(rule, (0, b"error: retry\nerror: retry\n")) == [12, 25]


def test_a_counted_regex_that_could_have_begun_in_an_earlier_line_counts_again() -> None:
    rule = ConsoleRule(name="r", regex="retry[^;]*failed", count=3, within_ms=10)
    assert scan(rule, (0, b"retry failed\n" * 3)) == [38]
    assert scan(rule, (0, b"retry failed retry failed retry failed\n")) == []


def test_what_is_remembered_of_a_is_bounded() -> None:
    literal = ConsoleRule(name="l", literal="a", then="aaaab", within_ms=9)
    regex = ConsoleRule(name="r", literal="a", then_regex="a{4}b", within_ms=9)
    for follows, most in ((literal, 6), (regex, MAX_THEN_BYTES + 1)):
        conditions = Conditions([(0, follows)])
        for end in range(1, 10_000):
            conditions.judge(0, FIRST, 0, end, end)
        assert len(conditions._firsts[0]) <= most
        assert conditions.judge(0, THEN, 9_995, 10_000, 10_000) == Hit(0, 10_000)
        assert [first for first, _ in conditions._firsts[0]] == [9_996, 9_997, 9_998, 9_999]


def test_then_may_be_a_regex() -> None:
    rule = ConsoleRule(
        name="x", regex=r"port \d down", then_regex=r"timeout after \d+ms$", within_ms=10
    )
    assert scan(rule, (0, b"port 3 down\r\ntimeout after 12ms\r\n")) == [31]


def test_rate() -> None:
    assert scan(RATE, (0, b"retry "), (50, b"retry "), (100, b"retry ")) == [17]
    assert scan(RATE, (0, b"retry "), (50, b"retry "), (101, b"retry ")) == []
    assert scan(RATE, (0, b"retry " * 7)) == [17, 35], "a hit begins a new count"


def test_a_regex_is_counted_at_every_place_and_a_match_that_grows_once() -> None:
    def rate(regex: str) -> ConsoleRule:
        return ConsoleRule(name="r", regex=regex, count=3, within_ms=100)

    assert scan(rate("err"), (0, b"err err err\n")) == [11]
    assert scan(rate("a+"), (0, b"aaaa\n"), (1, b"aaaa\naa")) == [11]
    assert scan(rate("a+"), (0, b"a"), (1, b"a"), (2, b"a"), (3, b"a")) == []
    assert scan(rate("[.]"), (0, b"."), (50, b"."), (100, b"."), (120, b".")) == [3]


def test_an_interleaved_literal_is_counted_at_every_place() -> None:
    rule = ConsoleRule(name="r", literal="fault", interleaved=True, count=3, within_ms=100)
    assert scan(rule, (0, b"fault fault fau 1\nlt fault\n")) == [20]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab1\n", min_size=1, max_size=4), max_size=15),
    st.sampled_from(["a+", "b?a[1b]*", "a.*1", "ab|b1"]),
)
def test_a_rate_counts_matches_that_do_not_begin_in_one_another(
    parts: list[str], regex: str
) -> None:
    rule = ConsoleRule(name="r", regex=regex, count=2, within_ms=1)
    pattern, text, right, counted, last = re.compile(regex), "".join(parts), [], 0, 0
    for end in range(1, len(text) + 1):
        start = next((at for at in range(end) if pattern.fullmatch(text, at, end)), None)
        if start is not None and start >= last:
            counted, last = counted + 1, end
            if counted % 2 == 0:
                right.append(end)
    assert scan(rule, *((0, part.encode()) for part in parts)) == right


@pytest.mark.parametrize("text", [{"regex": "[.]"}, {"literal": "..", "interleaved": True}])
def test_a_heartbeat_within_one_line_is_alive(text: dict[str, Any]) -> None:
    scanner = Scanner([ConsoleRule(name="h", absent_ms=100, **text)], {"c": "primary"})
    for t_ms in range(0, 400, 20):
        scanner.feed("c", b"..", t_ms * MS)
        assert scanner.next_deadline() == (t_ms + 100) * MS


def test_a_regex_before_another_text_may_be_the_second_in_its_line() -> None:
    rule = ConsoleRule(name="s", regex="a+", then_regex="b+", within_ms=100)
    assert scan(rule, (0, b"a "), (200, b"a "), (300, b"b b")) == [5]


def test_silence_is_told_once_and_wakes_up_again() -> None:
    scanner = Scanner([SILENCE], {"c": "primary", "d": "secondary"})
    assert scanner.next_deadline() is None, "what was never alive is not missed"
    assert scanner.feed("c", b"alive", 10 * MS) == []
    assert scanner.next_deadline() == 210 * MS
    assert scanner.feed("c", b"..alive", 150 * MS) == []
    assert scanner.next_deadline() == 350 * MS
    assert scanner.tick("c", 349 * MS) == []
    assert scanner.tick("d", 350 * MS) == []
    assert scanner.tick("c", 350 * MS) == [Hit(0, 12)]
    assert scanner.tick("c", 999 * MS) == []
    assert scanner.next_deadline() is None
    scanner.feed("c", b"alive", 2000 * MS)
    assert scanner.next_deadline() == 2200 * MS


def test_waiting_is_never_too_short_nor_busy() -> None:
    book = RuleBook([SILENCE], ["primary"], {"c": "primary"})
    assert book.wait_ms(0) is None
    book.scanner.feed("c", b"alive", 0)
    assert book.wait_ms(0) == 200
    assert book.wait_ms(200 * MS - 1) == 1
    assert book.wait_ms(200 * MS) == 0
    assert book.wait_ms(900 * MS) == 0


# --- rules replaced in a running stream ---------------------------------------------------------------------------
TEXT = b"retry alive link down retry write failed alive retry FAILED link down write failed"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(TEXT)), st.permutations(range(4)))
def test_a_reload_changes_nothing_for_rules_that_stay(cut: int, order: list[int]) -> None:
    rules = [SEQUENCE, RATE, SILENCE, ConsoleRule(name="p", literal="FAILED")]
    consoles = {"c": "primary"}
    whole = RuleBook(rules, [], {"c": "primary"})
    right = {
        (rules[hit.rule].name, hit.end_offset_bytes) for hit in whole.scanner.feed("c", TEXT, 0)
    }
    book = RuleBook(rules, [], dict.fromkeys(consoles, "primary"))
    hits = [
        (book.rules[hit.rule].name, hit.end_offset_bytes)
        for hit in book.scanner.feed("c", TEXT[:cut], 0)
    ]
    book.replace([rules[at] for at in order], {"c": Place(cut, TEXT[:cut])})
    hits += [
        (book.rules[hit.rule].name, hit.end_offset_bytes)
        for hit in book.scanner.feed("c", TEXT[cut:], 0)
    ]
    assert sorted(hits) == sorted(right)
    assert book.scanner.next_deadline() == whole.scanner.next_deadline()


class Compared(ConsoleRule):
    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Compared.comparisons += 1
        return super().__eq__(other)

    __hash__ = ConsoleRule.__hash__


def test_a_reload_compares_each_rule_once_or_so() -> None:
    """The hot route stands still meanwhile."""

    def rules() -> list[ConsoleRule]:
        return [Compared(name=f"r{n}", literal=f"link error {n:04d}") for n in range(300)]

    book = RuleBook(rules(), [], {"c": "primary"})
    book.replace(rules(), {"c": Place()})
    assert Compared.comparisons <= 2 * 300


def test_new_rules_find_a_text_that_is_half_there_and_tell_nothing_twice() -> None:
    book = RuleBook([], ["secondary"], {"c": "primary"})
    before = b"x" * 9000 + b"FAILED and FAI"
    book.replace(
        [ConsoleRule(name="a", literal="FAILED")], {"c": Place(len(before), before[-4000:])}
    )
    assert book.scanner.feed("c", b"LED", 0) == [Hit(0, len(before) + 3)]


def test_who_is_instructed() -> None:
    rules = [
        ConsoleRule(name="told", literal="a", instruct=()),
        ConsoleRule(name="own", literal="b", instruct=("secondary", "primary")),
        ConsoleRule(name="policy", literal="c"),
    ]
    book = RuleBook(rules, ["primary"], {})
    assert book.instructed == [[], ["secondary", "primary"], ["primary"]]


# --- rule files ---------------------------------------------------------------------------------------------------
def rule_file(*lines: str) -> str:
    return "\n".join(["[[rule]]", 'name = "r"', 'source = "console"', *lines])


def test_rule_file() -> None:
    text = rule_file('literal = "a"', 'then_regex = "b+"', "within_ms = 7")
    (rule,) = parse_rules(text, "f").console
    assert rule == ConsoleRule(name="r", literal="a", then_regex="b+", within_ms=7)
    assert rule.is_compound


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['literal = "a"', "within_ms = 5"], "within_ms goes with"),
        (['literal = "a"', "count = 5"], "count needs within_ms"),
        (['literal = "a"', 'then = "b"'], "then needs within_ms"),
        (['literal = "a"', "absent_ms = 5", "within_ms = 5"], "within_ms goes with"),
        (['literal = "a"', "absent_ms = 5", "count = 5"], "count and absent_ms do not go together"),
        (
            ['literal = "a"', 'then = "b"', 'then_regex = "c"', "within_ms = 1"],
            "do not go together",
        ),
        (['literal = "a"', 'then_regex = "("', "within_ms = 1"], "then_regex '('"),
        (['literal = "a"', "count = 1", "within_ms = 1"], "count"),
        (["absent_ms = 5"], "either literal or regex"),
        (['regex = "a"', "interleaved = true"], "interleaved goes with a literal"),
        (['literal = "a"', "interleaved = true"], "interleaved goes with a literal"),
        ([r'literal = "a\nb"', "interleaved = true"], "without a line's end"),
    ],
)
def test_conditions_that_are_refused(lines: list[str], said: str) -> None:
    with pytest.raises(UsageError, match="rule") as raised:
        parse_rules(rule_file(*lines), "f")
    assert said in str(raised.value)
