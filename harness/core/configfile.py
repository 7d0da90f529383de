"""Parse TOML text into a checked pydantic model. Each problem is reported with file, line, key and
the allowed values.

``tomllib`` parses the text and pydantic checks it. A small tokenizer reads the same text again to
find the line of every key.
"""

import re
import tomllib
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from freezeframe.harness.core.text import did_you_mean
from freezeframe.harness.errors import UsageError

MAX_CONFIG_CHARS: Final = 1 << 20
"""Size limit. No bench, rule or scenario file is longer."""
MAX_PROBLEMS: Final = 20
"""Problems reported at once; further ones are only counted."""

KeyPath = tuple[str | int, ...]
"""Keys of tables and indexes of arrays, from the root: ("faults", 0, "kind")."""
M = TypeVar("M", bound=BaseModel)


class Table(BaseModel):
    """Base of every table in a configuration file. Unknown keys are errors; types are not
    converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    def problems(self) -> Iterable[tuple[KeyPath, str]]:
        """Return the problems of combinations of keys: the key to blame, and the message. Called
        for the table of the whole file, after all keys were valid individually."""
        return ()


_TOML_POSITION: Final = re.compile(
    r"^(?P<what>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$"
)
_TOKEN: Final = re.compile(
    r"""
      (?P<skip> [ \t\r\n]+ | \#[^\n]* )
    | \"{3} (?P<ml_basic> (?: [^\\] | \\. )*? \"{0,2} ) \"{3} (?!\")
    | \'{3} (?P<ml_literal> .*? \'{0,2} ) \'{3} (?!\')
    | \" (?P<basic> (?: [^\"\\\n] | \\. )* ) \"
    | \' (?P<literal> [^\'\n]* ) \'
    | (?P<mark> [\[\]{},=.] )
    | (?P<bare> [^\s\#\[\]{},=.\"\']+ )
    """,
    re.DOTALL | re.VERBOSE,
)


def load(text: str, path: str, model: type[M]) -> M:
    """Check ``text``, which was read from ``path``, against ``model``.

    UsageError: one line per problem, ``FILE:LINE: KEY: what is wrong; allowed: ...``.
    """
    if len(text) > MAX_CONFIG_CHARS:
        raise UsageError(
            f"{path}: longer than {MAX_CONFIG_CHARS} characters; this is not a configuration file"
        )
    try:
        document = tomllib.loads(text)
        lines = locate(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}:{_syntax_error(text, str(error))}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None
    problems: list[tuple[int, str]] = []
    try:
        value = model.model_validate(document)
    except ValidationError as error:
        problems = [_problem(path, lines, model, detail) for detail in error.errors()]
    else:
        for where, what in value.problems() if isinstance(value, Table) else ():
            line = _line_of(lines, where)
            problems.append((line, f"{path}:{line}: {key_text(where)}: {what}"))
        if not problems:
            return value
    shown = sorted(problems)[:MAX_PROBLEMS]
    if len(problems) > MAX_PROBLEMS:
        shown.append((0, f"{path}: and {len(problems) - MAX_PROBLEMS} more problems"))
    raise UsageError("\n".join(line for _, line in shown)) from None


def _line_of(lines: dict[KeyPath, int], where: KeyPath) -> int:
    """Return the line of ``where``, or of the nearest enclosing table."""
    while where not in lines:
        where = where[:-1]
    return lines[where]


def _syntax_error(text: str, message: str) -> str:
    """Return ``LINE: not TOML: what (column N)`` for a message of tomllib."""
    found = _TOML_POSITION.match(message)
    if found is None:
        return f"1: not TOML: {message}"
    if found["line"] is None:
        return f"{text.count(chr(10)) + 1}: not TOML: {found['what']} at the end of the file"
    return f"{found['line']}: not TOML: {found['what']} (column {found['column']})"


def key_text(path: KeyPath) -> str:
    """("faults", 0, "kind") -> "faults[0].kind"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "(file)"


# --- the line of each key -------------------------------------------------------------------------------------
class _Tokens:
    """Tokenizes valid TOML, with the line of each token and one token of lookahead."""

    def __init__(self, text: str) -> None:
        self._stream = self._scan(text)
        self.kind, self.value, self.line = "", "", 1
        """The next token: "mark", "string", "bare", or "end"."""
        self.after_newline = True
        """Whether it is the first on its line."""
        self.take()

    @staticmethod
    def _scan(text: str) -> Iterator[tuple[str, str, int, bool]]:
        line, fresh, at = 1, True, 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:  # cannot happen for valid TOML; skip one character
                at += 1
                continue
            if match.lastgroup != "skip":
                kind = match.lastgroup or ""
                yield kind if kind in ("mark", "bare") else "string", match[kind], line, fresh
                fresh = False
            newlines = match[0].count("\n")
            fresh = fresh or (newlines > 0 and match.lastgroup == "skip")
            line += newlines
            at = match.end()

    def take(self) -> str:
        """Advance to the next token and return the value of the previous one."""
        passed = self.value
        self.kind, self.value, self.line, self.after_newline = next(
            self._stream, ("end", "", self.line, True)
        )
        return passed

    def is_mark(self, mark: str) -> bool:
        return self.kind == "mark" and self.value == mark


def locate(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of every key, table and array element of ``text``, which must be
    valid TOML."""
    tokens = _Tokens(text)
    lines: dict[KeyPath, int] = {(): 1}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    while tokens.kind != "end":
        line = tokens.line
        if not tokens.is_mark("["):
            _key_value(tokens, table, lines)
            continue
        tokens.take()
        is_array = tokens.is_mark("[")
        if is_array:
            tokens.take()
        keys = _dotted_key(tokens)
        table = ()
        for key in keys[:-1]:  # a header refers to the last element of each array of tables
            table = (*table, key)
            lines.setdefault(table, line)
            if table in counts:
                table = (*table, counts[table] - 1)
        table = (*table, keys[-1])
        if is_array:
            lines.setdefault(table, line)
            counts[table] = counts.get(table, 0) + 1
            table = (*table, counts[table] - 1)
        lines[table] = line
        while tokens.is_mark("]"):
            tokens.take()
    return lines


def _dotted_key(tokens: _Tokens) -> list[str]:
    keys = [tokens.take()]
    while tokens.is_mark("."):
        tokens.take()
        keys.append(tokens.take())
    return keys


def _key_value(tokens: _Tokens, table: KeyPath, lines: dict[KeyPath, int]) -> None:
    line = tokens.line
    path = table
    for key in _dotted_key(tokens):
        path = (*path, key)
        lines.setdefault(path, line)
    tokens.take()  # the equals sign
    _value(tokens, path, lines)


def _value(tokens: _Tokens, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if tokens.is_mark("["):
        tokens.take()
        index = 0
        while not tokens.is_mark("]") and tokens.kind != "end":
            lines[*path, index] = tokens.line
            _value(tokens, (*path, index), lines)
            index += 1
            if tokens.is_mark(","):
                tokens.take()
        tokens.take()
    elif tokens.is_mark("{"):
        tokens.take()
        while not tokens.is_mark("}") and tokens.kind != "end":
            _key_value(tokens, path, lines)
            if tokens.is_mark(","):
                tokens.take()
        tokens.take()
    else:
        tokens.take()
        # 1.5 and 1979-05-27 07:32:00.5 are several of our tokens on one line
        while not tokens.after_newline and (tokens.is_mark(".") or tokens.kind == "bare"):
            tokens.take()


# --- messages --------------------------------------------------------------------------------
_PHRASES: Final[dict[str, tuple[str, str]]] = {
    "string_type": ("is not a string", "text in quotes"),
    "int_type": ("is not a whole number", "a whole number"),
    "int_from_float": ("is not a whole number", "a whole number"),
    "int_parsing": ("is not a whole number", "a whole number"),
    "float_type": ("is not a number", "a number"),
    "bool_type": ("is not true or false", "true, false"),
    "list_type": ("is not a list", "a list in [ ]"),
    "dict_type": ("is not a table", "a table"),
    "model_type": ("is not a table", "a table"),
    "finite_number": ("is not a finite number", "a finite number"),
}
_LIMITS: Final = {
    "ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}",
    "min_length": "at least {} long", "max_length": "at most {} long", "pattern": "text that matches {}",
    "multiple_of": "a multiple of {}",
}  # fmt: skip


def _problem(
    path: str, lines: dict[KeyPath, int], model: type[BaseModel], detail: ErrorDetails
) -> tuple[int, str]:
    """Return one problem as (line, text). Pydantic's location may end in parts that are not keys
    of the file."""
    kind, context, location = detail["type"], detail.get("ctx", {}), detail["loc"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        location = (*location, context["discriminator"].strip("'"))
    table, fields = _walk(model, location[:-1])
    where = (*table, *location[-1:])
    line = _line_of(lines, where)
    shown = where
    if kind not in ("missing", "extra_forbidden", "union_tag_not_found"):
        while shown not in lines:
            shown = shown[:-1]
    what, allowed = _words(detail, fields)
    text = f"{path}:{line}: {key_text(shown)}: {what}"
    return line, text + (f"; allowed: {allowed}" if allowed else "")


def _words(detail: ErrorDetails, fields: dict[str, list[FieldInfo]]) -> tuple[str, str]:
    """Return what is wrong and what is allowed. ``fields`` are the fields of the table that
    contains the key."""
    kind, context, key = (
        detail["type"],
        detail.get("ctx", {}),
        str(detail["loc"][-1]) if detail["loc"] else "",
    )
    given = _excerpt(detail["input"])
    match kind:
        case "extra_forbidden":
            return f"unknown key{did_you_mean(key, fields)}", ", ".join(sorted(fields))
        case "missing":
            return "is missing", _allowed(fields.get(key, []))
        case "union_tag_not_found":
            return "is missing", _allowed(fields.get(context["discriminator"].strip("'"), []))
        case "union_tag_invalid":
            return _unknown(context["tag"], repr(context["tag"]), str(context["expected_tags"]))
        case "literal_error" | "enum":
            expected = str(context["expected"]).replace(" or ", ", ")
            return _unknown(detail["input"], given, expected)
        case _ if kind in _PHRASES:
            return _PHRASES[kind]
        case _ if context.keys() & _LIMITS.keys():
            limits = (
                words.format(context[name]) for name, words in _LIMITS.items() if name in context
            )
            return f"{given} does not fit", _limits(fields.get(key, [])) or ", ".join(limits)
    return detail["msg"].removeprefix("Value error, "), ""


def _unknown(value: object, shown: str, allowed: str) -> tuple[str, str]:
    """Return what is wrong with ``value``, which is none of the ``allowed`` ones, and those."""
    near = did_you_mean(value, re.findall(r"'([^']+)'", allowed)) if isinstance(value, str) else ""
    return f"{shown} is not known{near}", allowed


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _walk(model: type[BaseModel], location: KeyPath) -> tuple[KeyPath, dict[str, list[FieldInfo]]]:
    """Follow ``location`` from ``model``. Return the keys, without the tags that pydantic inserts
    for a union of models, and the possible fields of that table."""
    kinds: list[type[BaseModel]] = [model]
    keys: KeyPath = ()
    for part in location:
        tagged = [kind for kind in kinds if len(kinds) > 1 and part in _tags(kind)]
        if tagged:
            kinds = tagged
            continue
        keys = (*keys, part)
        if isinstance(part, str):
            inner = [field.annotation for name, field in _fields_of(kinds) if name == part]
            kinds = [kind for annotation in inner for kind in _models_in(annotation)]
    fields: dict[str, list[FieldInfo]] = {}
    for name, field in _fields_of(kinds):
        fields.setdefault(name, []).append(field)
    return keys, fields


def _fields_of(kinds: list[type[BaseModel]]) -> list[tuple[str, FieldInfo]]:
    return [
        (field.alias or name, field) for kind in kinds for name, field in kind.model_fields.items()
    ]


def _tags(kind: type[BaseModel]) -> set[Any]:
    """Return every value of the Literal fields of ``kind``; they include the value of its
    discriminator."""
    return {
        value
        for field in kind.model_fields.values()
        if get_origin(field.annotation) is Literal
        for value in get_args(field.annotation)
    }


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _allowed(fields: list[FieldInfo]) -> str:
    """Return the allowed values of a key as text; "" if the models do not say."""
    kinds = dict.fromkeys(_type_words(field.annotation) for field in fields)
    return ", ".join(filter(None, [*kinds, _limits(fields)]))


def _limits(fields: list[FieldInfo]) -> str:
    """Return all limits of a key, even if only one was violated."""
    return ", ".join(
        words.format(getattr(limit, name))
        for field in fields
        for name, words in _LIMITS.items()
        for limit in field.metadata
        if getattr(limit, name, None) is not None
    )


def _type_words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_words(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return " or ".join(
            filter(
                None, (_type_words(part) for part in get_args(annotation) if part is not type(None))
            )
        )
    if origin is Literal:
        return ", ".join(repr(value) for value in get_args(annotation))
    if _models_in(annotation):
        return "a table"
    return {
        str: "text in quotes",
        int: "a whole number",
        float: "a number",
        bool: "true, false",
    }.get(annotation, "")
