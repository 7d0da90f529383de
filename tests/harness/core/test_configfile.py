"""Configuration files: every problem names file, line, key and what is allowed."""

import tomllib
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from freezeframe.harness.core.configfile import MAX_CONFIG_CHARS, Table, key_text, load, locate
from freezeframe.harness.errors import UsageError


class Fault(Table):
    kind: Literal["neg_ack", "stall"]
    at_write: Annotated[int, Field(ge=1)] = 1


class Side(Table):
    driver: str
    console: str = ""

    @field_validator("console")
    @classmethod
    def _not_relative(cls, value: str) -> str:
        if value.startswith("."):
            raise ValueError("starts with a dot")
        return value


class Literally(Table):
    source: Literal["console"]
    literal: str


class Linked(Table):
    source: Literal["link"]
    deadline_ms: Annotated[int, Field(ge=1)] | None = None


class Bench(Table):
    name: str
    primary: Side
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10
    faults: list[Fault] = Field(default_factory=list)
    power: Side | None = None
    rule: list[Annotated[Literally | Linked, Field(discriminator="source")]] = Field(
        default_factory=list
    )


GOOD = """# a bench
name = "x"
timeout_s = 1.5

[primary]
driver = 'd'
[[faults]]
kind = "stall"
[[faults]]
kind = "neg_ack"
at_write = 3
"""


def problem(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(text, "b.toml", Bench)
    return str(caught.value)


def test_a_good_file_is_a_model() -> None:
    bench = load(GOOD, "b.toml", Bench)
    assert bench.primary.driver == "d" and bench.faults[1].at_write == 3 and bench.timeout_s == 1.5


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("driver = 'd'", "drivr = 'd'", "b.toml:5: primary.driver: is missing; allowed: text in quotes\n"
         "b.toml:6: primary.drivr: unknown key, did you mean driver?; allowed: console, driver"),
        ('"neg_ack"', '"neg_akc"',
         "b.toml:10: faults[1].kind: 'neg_akc' is not known, did you mean neg_ack?; allowed: 'neg_ack', 'stall'"),
        ("at_write = 3", "at_write = 0",
         "b.toml:11: faults[1].at_write: 0 does not fit; allowed: at least 1"),
        ("at_write = 3", "at_write = '3'",
         "b.toml:11: faults[1].at_write: is not a whole number; allowed: a whole number"),
        ("timeout_s = 1.5", "timeout_s = 601.5",
         "b.toml:3: timeout_s: 601.5 does not fit; allowed: above 0, at most 600"),
        ("driver = 'd'", "driver = 'd'\nconsole = '.x'", "b.toml:7: primary.console: starts with a dot"),
        ('name = "x"', "", "b.toml:1: name: is missing; allowed: text in quotes"),
        ("[[faults]]\nkind = \"stall\"\n[[faults]]", "[[fault]]",
         "b.toml:7: fault: unknown key, did you mean faults?; "
         "allowed: faults, name, power, primary, rule, timeout_s"),
        ('name = "x"', 'name = "x', "b.toml:2: not TOML: Illegal character '\\n' (column 10)"),
        ("at_write = 3", "at_write =", "b.toml:11: not TOML: Invalid value (column 11)"),
        ("at_write = 3\n", "a = [", "b.toml:11: not TOML: Invalid value at the end of the file"),
        ("[primary]\ndriver = 'd'", "primary = 3", "b.toml:5: primary: is not a table; allowed: a table"),
    ],
)  # fmt: skip
def test_each_problem_is_told_with_its_place(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert problem(GOOD.replace(old, new)) == expected


def test_lines_inside_inline_tables_and_arrays() -> None:
    text = """name = "x"
primary = { driver = "a", console = "b" }
faults = [
  # why
  { kind = "stall" },
  { at_write = 2,  kind = "nope" },
]
"""
    assert (
        problem(text)
        == "b.toml:6: faults[1].kind: 'nope' is not known; allowed: 'neg_ack', 'stall'"
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("source = 'serial'", "13: rule[0].source: 'serial' is not known; allowed: 'console', 'link'"),
        ("side = 'x'", "12: rule[0].source: is missing; allowed: 'console', 'link'"),
        ("source = 'console'", "12: rule[0].literal: is missing; allowed: text in quotes"),
        ("source = 'link'\ndeadlin_ms = 3",
         "14: rule[0].deadlin_ms: unknown key, did you mean deadline_ms?; allowed: deadline_ms, source"),
        ("source = 'link'\ndeadline_ms = 0", "14: rule[0].deadline_ms: 0 does not fit; allowed: at least 1"),
    ],
)  # fmt: skip
def test_a_table_that_is_one_of_several_kinds(rule: str, expected: str) -> None:
    assert problem(f"{GOOD}[[rule]]\n{rule}\n") == f"b.toml:{expected}"


def test_too_long_too_deep_and_too_many() -> None:
    assert "longer than" in problem("#" * (MAX_CONFIG_CHARS + 1))
    assert "nested too deeply" in problem("a = " + "[" * 100_000)
    told = problem("".join(f"key{n} = 1\n" for n in range(50)))
    assert told.count("\n") == 20 and told.endswith("and 32 more problems")


STRINGS = r'''a = """x
[no]
\""" y
"""
b = '' # one
c = """
# not a comment
"""
"quoted.key" = 1
[t."u v".w]
c = 1979-05-27 07:32:00.5
d = [1.5, 2, [3,
4]]
e.f.g = +1e3 # [x]
[[t.rows]]
h = ''
[[t.rows]]
[t.rows.deep]
i = {j = [{k=1}]}
'''


def test_strings_of_all_kinds_keep_the_line_count() -> None:
    tomllib.loads(STRINGS)
    lines = locate(STRINGS)
    expected = {
        ("a",): 1, ("b",): 5, ("c",): 6, ("quoted.key",): 9, ("t", "u v", "w", "c"): 11,
        ("t", "u v", "w", "d", 2, 1): 13, ("t", "u v", "w", "e", "f", "g"): 14, ("t", "rows", 0, "h"): 16,
        ("t", "rows", 1): 17, ("t", "rows", 1, "deep"): 18, ("t", "rows", 1, "deep", "i", "j", 0, "k"): 19,
    }  # fmt: skip
    assert {path: lines[path] for path in expected} == expected


VALUES = st.recursive(
    st.sampled_from(
        [
            "1",
            "-2.5",
            '"s"',
            "'[x]'",
            '"""a\nb"""',
            "true",
            "1979-05-27",
            "'''\n\n'''",
            '"#"',
            '"\\""',
        ]
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[\n" + ",\n".join(items) + "]"),
    max_leaves=8,
)


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_every_key_is_found_on_its_line(values: list[str]) -> None:
    text = ""
    expected = {}
    for number, value in enumerate(values):
        expected[(f"k{number}",)] = text.count("\n") + 1
        text += f"k{number} = {value}\n"
    tomllib.loads(text)
    lines = locate(text)
    assert {path: lines[path] for path in expected} == expected


def test_key_text() -> None:
    assert key_text(("a", 0, "b")) == "a[0].b" and key_text(()) == "(file)"
