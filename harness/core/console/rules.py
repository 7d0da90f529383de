"""Rule files: which text on a console or happening on the link is a trigger, and who is instructed
for it.

    [[rule]]
    name = "digest-failed"                 # unique
    source = "console"                     # console | link
    side = "secondary"                     # console: primary | secondary | any (default any)
    literal = "Digest integrity check FAILED"     # or regex = '...'
    instruct = ["primary", "secondary"]    # default: the bench's policy; [] = told, nobody is instructed

One match is a hit, unless a console rule says more:

    then = "PingAck did not arrive"        # or then_regex: a hit is this text, behind the first one ...
    within_ms = 500                        # ... at most so long after it

    count = 5                              # a hit is so many matches ...
    within_ms = 1000                       # ... in so long

    absent_ms = 2000                       # a hit is no match for so long after the last one (a heartbeat)

A console that several writers share may tear a text apart:

    interleaved = true                     # another writer's text may stand in the literal, at one place
    regex = 'digest[\\s\\S]{0,80}FAILED'     # up to 80 bytes of anything may stand in between

A literal that may be torn goes on: at the begin of one of the next three lines, also after a time
stamp; or, without an end of line, after a text that another writer put into the midst of a word, or
that begins like such a text (``[  OK  ]``, ``[   12.345678]``).

    [[rule]]
    name = "late-ack"
    source = "link"
    event = "late-ack"                     # one of core.linkevents.EVENTS
    deadline_ms = 1000                     # late-ack and missing-ack only

Console text is matched as bytes, and as a person reads it (``readtext``): colours and other terminal
sequences do not count, and each end of a line, ``\\r``, ``\\n``, ``\\r\\n`` or ``\\r\\r\\n``, is one
``\\n``. A literal is found as its very bytes, too. A regex is Hyperscan's: no back-references, no
look-around; ``^`` and ``$`` are the borders of a line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import hyperscan
from pydantic import Field, model_validator

from freezeframe.harness.core import configfile
from freezeframe.harness.core.events import Side
from freezeframe.harness.core.linkevents import EVENTS, MAX_DEADLINE_MS, LinkRule
from freezeframe.harness.errors import UsageError

if TYPE_CHECKING:
    LinkEventName = str
else:
    LinkEventName = Literal[tuple(EVENTS)]  # so that a wrong name is told with those allowed
MAX_RULES: Final = 1000
"""Hyperscan compiles as many in well under a second."""
MAX_PATTERN_CHARACTERS: Final = 1000
MAX_INTERLEAVED_BYTES: Final = 100
"""The expression grows with the square of it; Hyperscan has a limit, too (see ``_refusal``)."""
MAX_COUNT: Final = 1000
CONSOLE_KEYS: Final = (
    "side",
    "literal",
    "interleaved",
    "regex",
    "then",
    "then_regex",
    "count",
    "within_ms",
    "absent_ms",
)
SCAN_MODE: Final[int] = hyperscan.HS_MODE_STREAM | hyperscan.HS_MODE_SOM_HORIZON_LARGE
_PLAIN_FLAGS: Final[int] = hyperscan.HS_FLAG_MULTILINE
_START_FLAGS: Final[int] = hyperscan.HS_FLAG_MULTILINE | hyperscan.HS_FLAG_SOM_LEFTMOST
"""Where the match begins is told, too, as far to the left as it can."""


@dataclass(frozen=True, kw_only=True)
class ConsoleRule:
    """One text trigger. Exactly one of ``literal`` and ``regex`` is not empty."""

    name: str
    side: Literal["primary", "secondary", "any"] = "any"
    """Whose console it is looked for on."""
    literal: str = ""
    interleaved: bool = False
    """The literal may be interrupted once, by another writer's text (``torn``)."""
    regex: str = ""
    then: str = ""
    then_regex: str = ""
    """Sequence: a hit is this (one of the two), behind the first text and within ``within_ms`` of
    its newest match."""
    count: int = 0
    """Rate: a hit is this many matches within ``within_ms``."""
    within_ms: int = 0
    absent_ms: int = 0
    """Silence: a hit is no match for so long after the last one."""
    instruct: tuple[Side, ...] | None = None
    """Who is instructed, in this order. None: the bench's policy. Empty: nobody, the hit is only
    told."""

    @property
    def is_compound(self) -> bool:
        """One match alone is no hit."""
        return bool(self.within_ms or self.absent_ms)

    @property
    def is_plain(self) -> bool:
        """Each match of the literal is a hit."""
        return bool(self.literal) and not self.is_compound

    def expression(self) -> bytes:
        """The Hyperscan expression of the literal's bytes as they come, free of NUL (where the
        library would cut it); of a regex as ``text_expression``."""
        return exactly(self.literal.encode()) if self.literal else self.text_expression()

    def text_expression(self) -> bytes:
        """The same for the text as it is read."""
        return _expression(self.literal, self.regex)

    def then_expression(self) -> bytes:
        return _expression(self.then, self.then_regex)

    @property
    def flags(self) -> int:
        """Hyperscan's, for ``expression``. A match that grows counts once: it has one begin."""
        return (
            _START_FLAGS
            if self.regex and (self.count or self.then or self.then_regex)
            else _PLAIN_FLAGS
        )

    @property
    def then_flags(self) -> int:
        """What has to follow must begin behind the first text."""
        return _START_FLAGS if self.then_regex else _PLAIN_FLAGS


def exactly(text: bytes) -> bytes:
    """The Hyperscan expression of these bytes."""
    return b"".join(_byte(byte) for byte in text)


def _byte(byte: int) -> bytes:
    """As short as may be: Hyperscan takes expressions of 16,000 bytes."""
    if byte == 0:
        return b"\\x00"
    return b"\\%c" % byte if byte in b"\\^$.[]|()?*+{}" else b"%c" % byte


def as_read(literal: str) -> bytes:
    """A literal's bytes in the text as a person reads it."""
    return re.sub(rb"\r+\n?", b"\n", literal.encode())


def _expression(literal: str, regex: str) -> bytes:
    if literal:
        return exactly(as_read(literal))
    return _returns_read(regex).encode()


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    console: tuple[ConsoleRule, ...] = ()
    link: tuple[LinkRule, ...] = ()

    @property
    def answered(self) -> set[str]:
        """Names of the rules that instruct somebody."""
        console = {one.name for one in self.console if one.instruct != ()}
        return console | {one.name for one in self.link if one.instruct != ()}

    def instructing(self, sides: Sequence[Side]) -> "RuleSet":
        """The same rules, of which none instructs any other side."""
        return RuleSet(
            console=tuple(
                replace(one, instruct=_only(one.instruct, sides)) for one in self.console
            ),
            link=tuple(replace(one, instruct=_only(one.instruct, sides)) for one in self.link),
        )


def _only(instruct: tuple[Side, ...] | None, sides: Sequence[Side]) -> tuple[Side, ...] | None:
    return None if instruct is None else tuple(one for one in instruct if one in sides)


class _Rule(configfile.Table):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")
    source: Literal["console", "link"]
    side: Literal["primary", "secondary", "any"] | None = None
    literal: str | None = Field(default=None, min_length=1, max_length=MAX_PATTERN_CHARACTERS)
    interleaved: bool | None = None
    regex: str | None = Field(default=None, min_length=1, max_length=MAX_PATTERN_CHARACTERS)
    then: str | None = Field(default=None, min_length=1, max_length=MAX_PATTERN_CHARACTERS)
    then_regex: str | None = Field(default=None, min_length=1, max_length=MAX_PATTERN_CHARACTERS)
    count: int | None = Field(default=None, ge=2, le=MAX_COUNT)
    within_ms: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_MS)
    absent_ms: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_MS)
    event: LinkEventName | None = None
    deadline_ms: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_MS)
    instruct: list[Side] | None = Field(default=None, max_length=2)

    @model_validator(mode="after")
    def _is_one_kind_of_rule(self) -> "_Rule":
        foreign = ("event", "deadline_ms") if self.source == "console" else CONSOLE_KEYS
        for key in foreign:
            if getattr(self, key) is not None:
                raise ValueError(f"rule {self.name!r}: a {self.source} rule has no {key}")
        if self.instruct is not None and len(set(self.instruct)) != len(self.instruct):
            raise ValueError(f"rule {self.name!r}: instruct names a side twice")
        if self.source == "console":
            if (self.literal is None) == (self.regex is None):
                raise ValueError(f"rule {self.name!r}: a console rule has either literal or regex")
            if self.interleaved and not _can_be_torn(self.literal or ""):
                limit = f"of 2 to {MAX_INTERLEAVED_BYTES} bytes, without a line's end"
                raise ValueError(f"rule {self.name!r}: interleaved goes with a literal {limit}")
            self._check_condition()
            for key, regex in (("regex", self.regex), ("then_regex", self.then_regex)):
                if regex is not None and "\0" in regex:
                    raise ValueError(
                        f"rule {self.name!r}: {key} {regex!r}: holds a NUL character: write \\x00"
                    )
                if regex is not None and _ESCAPE.search(regex):
                    raise ValueError(
                        f"rule {self.name!r}: {key} {regex!r}: terminal sequences are taken out "
                        "before a regex looks: leave them out, or use a literal"
                    )
            self._check_expressions(self.console_rule())
        elif self.event is None:
            raise ValueError(
                f"rule {self.name!r}: a link rule has an event; allowed: {', '.join(EVENTS)}"
            )
        elif (self.deadline_ms is not None) != EVENTS[self.event].is_timed:
            due = "needs a" if self.deadline_ms is None else "has no"
            raise ValueError(f"rule {self.name!r}: event {self.event} {due} deadline_ms")
        return self

    def _check_expressions(self, rule: ConsoleRule) -> None:
        """Literals are always taken: escaped, the longest is just as long as Hyperscan allows."""
        if rule.regex and (refusal := _refusal(rule.expression(), rule.flags)):
            raise ValueError(f"rule {self.name!r}: regex {rule.regex!r}: {refusal}")
        if rule.then_regex and (refusal := _refusal(rule.then_expression(), rule.then_flags)):
            raise ValueError(f"rule {self.name!r}: then_regex {rule.then_regex!r}: {refusal}")

    def _check_condition(self) -> None:
        """At most one of sequence, rate and silence, each with its time."""
        given = [
            key
            for key in ("then", "then_regex", "count", "absent_ms")
            if getattr(self, key) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"rule {self.name!r}: {' and '.join(given)} do not go together")
        needs_time = bool(given) and given[0] != "absent_ms"
        if needs_time != (self.within_ms is not None):
            text = (
                f"{given[0]} needs within_ms"
                if needs_time
                else "within_ms goes with then, then_regex or count"
            )
            raise ValueError(f"rule {self.name!r}: {text}")

    def console_rule(self) -> ConsoleRule:
        return ConsoleRule(
            name=self.name,
            side=self.side or "any",
            literal=self.literal or "",
            interleaved=bool(self.interleaved),
            regex=self.regex or "",
            then=self.then or "",
            then_regex=self.then_regex or "",
            count=self.count or 0,
            within_ms=self.within_ms or 0,
            absent_ms=self.absent_ms or 0,
            instruct=None if self.instruct is None else tuple(self.instruct),
        )

    def link_rule(self) -> LinkRule:
        assert self.event is not None
        return LinkRule(
            name=self.name,
            event=self.event,
            deadline_ms=self.deadline_ms or 0,
            instruct=None if self.instruct is None else tuple(self.instruct),
        )


class _RuleFile(configfile.Table):
    rule: list[_Rule] = Field(max_length=MAX_RULES)


def parse_rules(text: str, path: str) -> RuleSet:
    """Read one rule file. Raises UsageError that names file, line, rule and what is allowed."""
    read = configfile.load(text, path, _RuleFile).rule
    rules = RuleSet(
        console=tuple(rule.console_rule() for rule in read if rule.source == "console"),
        link=tuple(rule.link_rule() for rule in read if rule.source == "link"),
    )
    return combine([(path, rules)])


def combine(parts: Sequence[tuple[str, RuleSet]]) -> RuleSet:
    """Join the rules of several files, given as (path, rules). UsageError when a name is used
    twice."""
    seen: dict[str, str] = {}
    for path, rules in parts:
        for name in [rule.name for rule in rules.console] + [rule.name for rule in rules.link]:
            if name in seen:
                raise UsageError(
                    f"{path}: rule {name!r} is already in {seen[name]}: give it another name"
                )
            seen[name] = path
    return RuleSet(
        console=tuple(rule for _, rules in parts for rule in rules.console),
        link=tuple(rule for _, rules in parts for rule in rules.link),
    )


def _can_be_torn(literal: str) -> bool:
    return (
        2 <= len(literal.encode()) <= MAX_INTERLEAVED_BYTES
        and "\n" not in literal
        and "\r" not in literal
    )


def _refusal(expression: bytes, flags: int) -> str:
    """Why Hyperscan does not take it; "" when it does."""
    try:
        hyperscan.Database(mode=SCAN_MODE).compile(
            expressions=[expression], ids=[0], elements=1, flags=flags
        )
    except hyperscan.error as error:
        return str(error)
    return ""


_NAMED_CLASS: Final = re.compile(r"\[:\^?\w+:\]")
_RETURN: Final = re.compile(r"(?:\\r|\r|\\x0[dD])([?*+]?)((?:\\n|\n)?)")
_ESCAPE: Final = re.compile(r"(?<!\\)(?:\\\\)*(?:\x1b|\\e|\\x1[bB]|\\033)")


def tokens(regex: str) -> Iterator[tuple[str, bool]]:
    """(part of ``regex``, whether it is syntax outside of a class, of one character), in order."""
    in_class = False
    at = 0
    while at < len(regex):
        character = regex[at]
        is_syntax = False
        if regex.startswith("\\Q", at):
            character = "".join(
                regex[at:].partition("\\E")[:2]
            )  # literally, up to its end or the regex's
        elif not in_class and (found := _RETURN.match(regex, at)):
            character = found[0]
        elif character == "\\":
            character = regex[at : at + 2]
        elif in_class and (named := _NAMED_CLASS.match(regex, at)):
            character = named[0]
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
            # A "]" that comes first (also behind "^") is a member of the class, not its end.
            character = next(
                opening for opening in ("[^]", "[]", "[^", "[") if regex.startswith(opening, at)
            )
        else:
            is_syntax = True
        yield character, is_syntax
        at += len(character)


def _returns_read(regex: str) -> str:
    """``regex`` with each carriage return, also with the line feed that follows it, as the ``\\n``
    that it is read as."""
    return "".join(
        "\\n" + ("" if found[2] else found[1])
        if (found := _RETURN.fullmatch(part)) is not None
        else part
        for part, _ in tokens(regex)
    )
