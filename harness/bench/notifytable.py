"""``[notify]`` of a bench file: who is notified of what a watch finds, and how."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args
from urllib.parse import SplitResult, urlsplit

from pydantic import Field

from freezeframe.harness.bench.options import SECRET_NAME, is_source, read_secret
from freezeframe.harness.core.configfile import KeyPath, Table
from freezeframe.harness.errors import UsageError

Occasion = Literal["incident", "degraded", "blind", "breaker-open", "disarmed", "armed"]
OCCASIONS: Final[tuple[Occasion, ...]] = get_args(Occasion)
USUAL: Final[tuple[Occasion, ...]] = tuple(one for one in OCCASIONS if one != "armed")
_SOURCE: Final = '{ env = "NAME" } or { file = "PATH" }'
_HTTP: Final = ("http", "https")


class NotifyTable(Table):
    command: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1024)]],
            Field(min_length=1, max_length=64),
        ]
        | None
    ) = None
    """Program and arguments, started without a shell in the bench file's folder; the notice is
    its stdin."""
    post: object = None
    """URL that the notice is sent to; or where that URL is, when it holds a secret."""
    headers: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=64)],
            object,
        ],
        Field(max_length=16),
    ] = Field(default_factory=dict)
    """Further headers of the request: text, or where a secret one is."""
    on: Annotated[list[Occasion], Field(min_length=1, max_length=len(OCCASIONS))] = Field(
        default_factory=lambda: list(USUAL)
    )
    settle_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """A health is reported once it has lasted so long; an incident at once."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """For the command to end, and for the server to answer."""

    def faults(self) -> Iterator[tuple[KeyPath, str]]:
        """(key, what is wrong with it)"""
        if self.command is None and self.post is None:
            yield (), "needs a command or post: nobody would be notified"
        for number, argument in enumerate(self.command or ()):
            if "\0" in argument:
                yield ("command", number), "holds a NUL character, which no argument can"
        if isinstance(self.post, str):
            if wrong := _wrong_url(self.post):
                yield ("post",), wrong
        elif self.post is not None and not is_source(self.post):
            yield ("post",), f"is no URL; allowed: text in quotes, {_SOURCE}"
        if self.headers and self.post is None:
            yield ("headers",), "needs post"
        for name, value in self.headers.items():
            if isinstance(value, str):
                if SECRET_NAME.search(name):
                    yield ("headers", name), f"a secret is not written here; allowed: {_SOURCE}"
                elif not (value.isascii() and value.isprintable()):
                    yield ("headers", name), "has characters that a header cannot have"
            elif not is_source(value):
                yield ("headers", name), f"is no text; allowed: text in quotes, {_SOURCE}"

    def ready(self, folder: Path) -> tuple[str, dict[str, str]]:
        """(URL, headers), with the secrets read; the URL is "" without ``post``. ``folder`` is the
        bench file's. UsageError: there is no such program, or a secret is no URL. RigError: a
        secret is not there."""
        if self.command is not None and not _is_program(self.command[0], folder):
            raise UsageError(f"[notify] command: there is no program {self.command[0]!r}")
        url = _value("notify.post", self.post, folder) if self.post is not None else ""
        if url and (wrong := _wrong_url(url)):
            raise UsageError(f"[notify] post: what it names {wrong}")
        headers = {
            name: _value(f"notify.headers.{name}", value, folder)
            for name, value in self.headers.items()
        }
        return url, headers


def _value(key: str, given: object, folder: Path) -> str:
    if isinstance(given, Mapping):
        return read_secret(key, given, folder).reveal()
    return str(given)


def _is_program(name: str, folder: Path) -> bool:
    if os.sep in name:
        return os.access(folder / name, os.X_OK)
    return shutil.which(name) is not None


def _wrong_url(text: str) -> str:
    """What is wrong with it; "": nothing."""
    try:
        url: SplitResult = urlsplit(text)
        is_url = url.scheme in _HTTP and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        is_url = False
    if not (is_url and text.isascii() and text.isprintable() and " " not in text):
        return "is no URL; allowed: http://HOST[:PORT]/PATH or https://..."
    if url.username is not None or url.password is not None:
        return f"holds a password; put it into headers, as {_SOURCE}"
    return ""
