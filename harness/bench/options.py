"""``[primary.options]``: what a bench file passes to a driver, checked against the dataclass
``Options`` of the driver's class.

A field of type ``Secret`` is never written into a bench file: ``{ env = "NAME" }`` or
``{ file = "PATH" }`` says where it is. It is read when the driver is made, and kept nowhere else.
"""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.roles import Secret

SOURCES: Final = ("env", "file")
MAX_SECRET_BYTES: Final = 64 << 10
"""A private key is some kilobytes."""
SECRET_NAME: Final = re.compile(
    r"(?i)pass(?:word|wd|phrase)?$|^pw$|secret|token|credential|community|private|psk|api[_-]?key"
    r"|auth_?key|authorization|cookie"
)
"""Names of keys and headers whose value is a secret."""
_WORDS: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_SECRET_WORDS: Final = 'a secret: { env = "NAME" } or { file = "PATH" }'


OPTION_WORDS: Final = f"text, a number, true, false, or {_SECRET_WORDS}"


def is_source(value: object) -> bool:
    """Whether this says where a secret is."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    key, where = next(iter(value.items()))
    return key in SOURCES and isinstance(where, str) and bool(where)


def options_type(maker: object) -> type | None:
    """The dataclass ``Options`` of a driver; None: it takes no options. UsageError: it is no
    dataclass, or a field has a type that a bench file cannot give."""
    kind = getattr(maker, "Options", None)
    if kind is None:
        return None
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise UsageError("its Options is not a dataclass")
    for name, hint in _hints(kind).items():
        if hint not in (*_WORDS, Secret):
            raise UsageError(
                f"Options.{name} is of type {hint}; allowed: str, int, float, bool, Secret"
            )
    return kind


def problems(maker: object, given: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with ``given`` for this driver. Secrets are not read."""
    try:
        kind = options_type(maker)
    except UsageError as error:
        yield str(error)
        return
    if kind is None:
        if given:
            yield f"options.{next(iter(given))}: this driver takes no options"
        return
    hints = _hints(kind)
    for key, value in given.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            yield f"options.{key}: unknown option{hint}; allowed: {', '.join(hints)}"
        elif not _fits(hints[key], value):
            expected = _SECRET_WORDS if hints[key] is Secret else _WORDS[hints[key]]
            yield f"options.{key}: is not {expected}"
    for field in dataclasses.fields(kind):
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if field.init and field.name not in given and not has_default:
            yield f"options.{field.name}: is missing; allowed: {_allowed(hints[field.name])}"


def make_options(maker: object, given: Mapping[str, object], folder: Path) -> object | None:
    """The driver's Options, with its secrets read; None: it has none. ``folder`` is the bench
    file's. UsageError: they do not fit. RigError: a secret is not there."""
    wrong = list(problems(maker, given))
    if wrong:
        raise UsageError("; ".join(wrong))
    kind = options_type(maker)
    if kind is None:
        return None
    hints = _hints(kind)
    values = {
        key: read_secret(f"options.{key}", value, folder) if hints[key] is Secret else value
        for key, value in given.items()
    }
    made: object = kind(**values)
    return made


def secrets_of(options: object | None) -> tuple[str, ...]:
    """The texts that must be shown nowhere."""
    if options is None or not dataclasses.is_dataclass(options):
        return ()
    values = (getattr(options, field.name) for field in dataclasses.fields(options))
    return tuple(value.reveal() for value in values if isinstance(value, Secret) and value.reveal())


def _hints(kind: type) -> dict[str, type]:
    return {
        field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)
    }


def _allowed(hint: type) -> str:
    return _SECRET_WORDS if hint is Secret else _WORDS[hint]


def _fits(hint: type, value: object) -> bool:
    if hint is Secret:
        return is_source(value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def read_secret(key: str, source: object, folder: Path) -> Secret:
    """Read the secret that ``source`` names. RigError, with ``key``: it is not there."""
    assert isinstance(source, Mapping)
    if "env" in source:
        value = os.environ.get(source["env"])
        if not value:
            raise RigError(
                f"{key}: the environment variable {source['env']} is not set: set it to the secret"
            )
        return Secret(value)
    path = folder / Path(source["file"]).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        text = data.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RigError(f"{key}: the secret in {path} cannot be read: {error}") from error
    if not text or len(data) > MAX_SECRET_BYTES:
        raise RigError(f"{key}: {path} holds {len(data)} bytes, which is no secret")
    return Secret(text)
