"""Rule files: what is read, and how a wrong one is refused."""

import tomllib
from pathlib import Path

import hyperscan
import pytest

from harness.core.rules import LINK_EVENTS, ConsoleRule, LinkRuleSpec, RuleSet, combine, parse_rules
from harness.errors import UsageError

RULES = Path(__file__).parents[3] / "bench_configs" / "rules"


def rule(**keys: str) -> str:
    return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


def test_both_kinds_are_read() -> None:
    text = rule(
        name='"a"', source='"console"', side='"secondary"', literal='"x\\u00e9"', instruct='["secondary"]'
    )
    text += rule(name='"b"', source='"console"', regex="'f+$'", instruct="[]")
    text += rule(name='"c"', source='"link"', event='"late-ack"', deadline_ms="200")
    assert parse_rules(text, "f.toml") == RuleSet(
        console=(
            ConsoleRule(name="a", side="secondary", literal="xé", instruct=("secondary",)),
            ConsoleRule(name="b", regex="f+$", instruct=()),
        ),
        link=(LinkRuleSpec(name="c", event="late-ack", deadline_ms=200),),
    )


@pytest.mark.parametrize("path", sorted(RULES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_files_of_the_project_are_right(path: Path) -> None:
    rules = parse_rules(path.read_text(), str(path))
    assert len(rules.console) + len(rules.link) == len(tomllib.loads(path.read_text())["rule"])


def test_sim_watches_every_event_of_the_link() -> None:
    rules = parse_rules((RULES / "sim.toml").read_text(), "sim.toml")
    assert {spec.event for spec in rules.link} == set(LINK_EVENTS)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"name": '"a"', "source": '"console"'}, "literal or regex"),
        ({"name": '"a"', "source": '"console"', "literal": '"x"', "regex": '"y"'}, "literal or regex"),
        ({"name": '"a"', "source": '"console"', "literal": '""'}, "at least 1"),
        ({"name": '"a"', "source": '"console"', "literal": '"' + "x" * 1001 + '"'}, "at most 1000"),
        ({"name": '"a"', "source": '"console"', "regex": "'a*'"}, "empty buffer"),
        ({"name": '"a"', "source": '"console"', "regex": "'(a'"}, "Missing close parenthesis"),
        ({"name": '"a"', "source": '"console"', "regex": r"'(a)\1'"}, "Back-references are unsupported"),
        ({"name": '"a"', "source": '"console"', "regex": '"a\\u0000b"'}, "NUL"),
        ({"name": '"a"', "source": '"console"', "literal": '"x"', "event": '"neg-ack"'}, "has no event"),
        ({"name": '"a"', "source": '"console"', "literal": '"x"', "side": '"both"'}, "'any'"),
        ({"name": '"a"', "source": '"console"', "literal": '"x"', "instruct": '["tertiary"]'}, "'secondary'"),
        (
            {"name": '"a"', "source": '"console"', "literal": '"x"', "instruct": '["primary", "primary"]'},
            "twice",
        ),
        ({"name": '"a"', "source": '"console"', "literal": '"x"', "colour": '"red"'}, "unknown key"),
        ({"name": '"A b"', "source": '"console"', "literal": '"x"'}, "name"),
        ({"name": '"a"', "source": '"link"'}, "unacked-close"),
        ({"name": '"a"', "source": '"link"', "event": '"late"'}, "'late-ack'"),
        ({"name": '"a"', "source": '"link"', "event": '"late-ack"'}, "needs a deadline_ms"),
        ({"name": '"a"', "source": '"link"', "event": '"late-ack"', "deadline_ms": "0"}, "at least 1"),
        ({"name": '"a"', "source": '"link"', "event": '"neg-ack"', "deadline_ms": "5"}, "has no deadline_ms"),
        ({"name": '"a"', "source": '"link"', "event": '"neg-ack"', "literal": '"x"'}, "has no literal"),
        ({"name": '"a"', "source": '"radio"'}, "'console'"),
    ],
)
def test_a_wrong_rule_names_file_and_line_and_what_is_allowed(keys: dict[str, str], told: str) -> None:
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
        ("a$", r"a(?:\r?$)"),
        (r"a\$", r"a\$"),
        ("[$]b", "[$]b"),
        ("[]$]b$", r"[]$]b(?:\r?$)"),
        ("[^]$]b", "[^]$]b"),
        (r"[\]$]$", r"[\]$](?:\r?$)"),
        ("(a$|b)", r"(a(?:\r?$)|b)"),
    ],
)
def test_the_end_of_a_line_may_have_a_carriage_return(regex: str, expression: str) -> None:
    assert ConsoleRule(name="a", regex=regex).expression() == expression.encode()


def test_a_literal_is_matched_as_it_stands() -> None:
    expression = ConsoleRule(name="a", literal="a.$\0[é").expression()
    assert b"\0" not in expression
    hyperscan.Database(mode=hyperscan.HS_MODE_STREAM).compile(
        expressions=[expression], ids=[0], elements=1, flags=0
    )
