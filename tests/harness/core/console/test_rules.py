"""Rule files: what is read, and how a wrong one is refused."""

import tomllib
from pathlib import Path

import pytest

from freezeframe.harness.core.console.rules import (
    ConsoleRule,
    RuleSet,
    combine,
    parse_rules,
)
from freezeframe.harness.core.console.triggers import Scanner
from freezeframe.harness.core.linkevents import EVENTS, LinkRule
from freezeframe.harness.errors import UsageError

RULES = Path(__file__).parents[4] / "bench_configs" / "rules"


def rule(**keys: str) -> str:
    return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


def test_both_kinds_are_read() -> None:
    text = rule(
        name='"a"',
        source='"console"',
        side='"secondary"',
        literal='"x\\u00e9"',
        instruct='["secondary"]',
    )
    text += rule(name='"b"', source='"console"', regex="'f+$'", instruct="[]")
    text += rule(name='"c"', source='"link"', event='"late-ack"', deadline_ms="200")
    assert parse_rules(text, "f.toml") == RuleSet(
        console=(
            ConsoleRule(name="a", side="secondary", literal="xé", instruct=("secondary",)),
            ConsoleRule(name="b", regex="f+$", instruct=()),
        ),
        link=(LinkRule(name="c", event="late-ack", deadline_ms=200),),
    )


@pytest.mark.parametrize("path", sorted(RULES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_files_of_the_project_are_right(path: Path) -> None:
    rules = parse_rules(path.read_text(), str(path))
    assert len(rules.console) + len(rules.link) == len(tomllib.loads(path.read_text())["rule"])


def test_sim_watches_every_event_of_the_link() -> None:
    rules = parse_rules((RULES / "sim.toml").read_text(), "sim.toml")
    assert {spec.event for spec in rules.link} == set(EVENTS) - {"ghost-write"}, (
        "DRBD never sends a write again"
    )


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"name": '"a"', "source": '"console"'}, "literal or regex"),
        (
            {"name": '"a"', "source": '"console"', "literal": '"x"', "regex": '"y"'},
            "literal or regex",
        ),
        ({"name": '"a"', "source": '"console"', "literal": '""'}, "at least 1"),
        ({"name": '"a"', "source": '"console"', "literal": '"' + "x" * 1001 + '"'}, "at most 1000"),
        ({"name": '"a"', "source": '"console"', "regex": "'a*'"}, "empty buffer"),
        ({"name": '"a"', "source": '"console"', "regex": "'(a'"}, "Missing close parenthesis"),
        (
            {"name": '"a"', "source": '"console"', "regex": r"'(a)\1'"},
            "Back-references are unsupported",
        ),
        ({"name": '"a"', "source": '"console"', "regex": '"a\\u0000b"'}, "NUL"),
        (
            {"name": '"a"', "source": '"console"', "literal": '"x"', "event": '"neg-ack"'},
            "has no event",
        ),
        ({"name": '"a"', "source": '"console"', "literal": '"x"', "side": '"both"'}, "'any'"),
        (
            {"name": '"a"', "source": '"console"', "literal": '"x"', "instruct": '["tertiary"]'},
            "'secondary'",
        ),
        (
            {
                "name": '"a"',
                "source": '"console"',
                "literal": '"x"',
                "instruct": '["primary", "primary"]',
            },
            "twice",
        ),
        (
            {"name": '"a"', "source": '"console"', "literal": '"x"', "colour": '"red"'},
            "unknown key",
        ),
        ({"name": '"A b"', "source": '"console"', "literal": '"x"'}, "name"),
        ({"name": '"a"', "source": '"link"'}, "unacked-close"),
        ({"name": '"a"', "source": '"link"', "event": '"late"'}, "'late-ack'"),
        ({"name": '"a"', "source": '"link"', "event": '"late-ack"'}, "needs a deadline_ms"),
        (
            {"name": '"a"', "source": '"link"', "event": '"late-ack"', "deadline_ms": "0"},
            "at least 1",
        ),
        (
            {"name": '"a"', "source": '"link"', "event": '"neg-ack"', "deadline_ms": "5"},
            "has no deadline_ms",
        ),
        (
            {"name": '"a"', "source": '"link"', "event": '"neg-ack"', "literal": '"x"'},
            "has no literal",
        ),
        ({"name": '"a"', "source": '"radio"'}, "'console'"),
    ],
)
def test_a_wrong_rule_names_file_and_line_and_what_is_allowed(
    keys: dict[str, str], told: str
) -> None:
    good = rule(name='"good"', source='"console"', literal='"x"')
    with pytest.raises(UsageError) as caught:
        parse_rules(good + rule(**keys), "some/rules.toml")
    assert str(caught.value).startswith("some/rules.toml:")
    assert 5 <= int(str(caught.value).split(":")[1]) <= 5 + len(keys)
    assert told in str(caught.value)


def test_a_name_is_used_once_in_all_files() -> None:
    text = rule(name='"a"', source='"console"', literal='"x"')
    with pytest.raises(UsageError, match=r"f\.toml: rule 'a' is already in f\.toml"):
        parse_rules(text + text, "f.toml")
    rules = parse_rules(text, "f.toml")
    with pytest.raises(UsageError, match=r"g\.toml: rule 'a' is already in f\.toml"):
        combine([("f.toml", rules), ("g.toml", rules)])


def test_too_many_rules() -> None:
    text = "".join(rule(name=f'"r{n}"', source='"link"', event='"neg-ack"') for n in range(1001))
    with pytest.raises(UsageError, match="at most 1000"):
        parse_rules(text, "f.toml")


@pytest.mark.parametrize(
    ("regex", "expression"),
    [
        ("a$", "a$"),
        (r"a\r\n", r"a\n"), (r"a\r?\nb", r"a\nb"), (r"a\r*\nb", r"a\nb"), (r"a\rb", r"a\nb"), (r"a\r+b", r"a\n+b"),
        (r"a\x0d\x0ab", r"a\n\x0ab"), (r"[^\r\n]*b\r\n$", r"[^\n\n]*b\n$"), (r"[]\r]b\r\n", r"[]\n]b\n"),
        (r"a\\r", r"a\\r"), (r"[[:digit:]\r]\r", r"[[:digit:]\n]\n"), (r"\Q\r\E\r\n", r"\Q\r\E\n"),
    ],
)  # fmt: skip
def test_a_carriage_return_is_the_end_of_a_line(regex: str, expression: str) -> None:
    assert ConsoleRule(name="a", regex=regex).expression() == expression.encode()


@pytest.mark.parametrize("regex", [r"'\x1b\[31m'", r"'a\e'", r'"\u001b"'])
def test_a_regex_of_terminal_sequences_is_refused(regex: str) -> None:
    text = rule(name='"a"', source='"console"', regex=regex)
    with pytest.raises(UsageError, match="terminal sequences are taken out before"):
        parse_rules(text, "f.toml")
    assert parse_rules(rule(name='"a"', source='"console"', regex=r"'a\\end'"), "f").console


EVERY_CHARACTER = "".join(chr(code) for code in range(0x100)) + "\U0001f600"


def test_a_literal_is_matched_as_it_stands() -> None:
    rule = ConsoleRule(name="a", literal=EVERY_CHARACTER)
    assert b"\0" not in rule.expression()
    text = EVERY_CHARACTER.encode()
    assert [
        hit.end_offset_bytes for hit in Scanner((rule,), {"c": "primary"}).feed("c", text, 0)
    ] == [len(text)]


@pytest.mark.parametrize("character", ["a", ".", "\\u0000", "\U0001f600"])
def test_the_longest_literal_is_taken(character: str) -> None:
    text = rule(name='"a"', source='"console"', literal='"' + character * 1000 + '"')
    rules = parse_rules(text, "f.toml").console
    found = Scanner(rules, {"c": "primary"}).feed("c", rules[0].literal.encode() * 2, 0)
    assert len(found) == len(rules[0].literal.encode()) // len(rules[0].literal[0].encode()) + 1


@pytest.mark.parametrize("length_bytes", [2, 62, 63, 64, 100])
@pytest.mark.parametrize("pattern", ["Digest integrity check FAILED: ", "...(", "a"])
def test_an_interleaved_literal_that_is_accepted_is_searched_for(
    length_bytes: int, pattern: str
) -> None:
    literal = (pattern * 100)[:length_bytes]
    text = rule(name='"a"', source='"console"', literal=f'"{literal}"', interleaved="true")
    scanner = Scanner(parse_rules(text, "f.toml").console, {"c": "primary"})
    data, half = literal.encode(), length_bytes // 2
    torn = data[:half] + b"=====\n" + data[half:]
    assert [hit.end_offset_bytes for hit in scanner.feed("c", torn, 0)] == [len(torn)]
