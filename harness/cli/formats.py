"""The export formats of ``freezeframe export``: one row per format.

A row gives the option and its help, the writer, and what the writer needs. The command line and
``exports.export`` read only this table. Writers import their modules when they are called, so that
``--help`` stays fast.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from freezeframe.harness.edge.wholefile import write_whole

if TYPE_CHECKING:
    from freezeframe.harness.incidents.dossier import Dossier

Source = Callable[[], "Dossier"]
"""Reads the incident, once; with ``--redact`` the result is redacted. Raises UsageError: not found."""
Fields = Mapping[str, object]
"""Further fields for ``--json``, such as the number of packets."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One export format."""

    name: str
    """The option is ``--NAME``; also the key in ``--json``."""
    help: str
    write: "Callable[[Source, Path], Fields]"
    """Writes the file whole or not at all. A format that is the same for every incident does not
    call the source. Raises RigError if the file cannot be written."""
    redacts: bool
    """Whether all its content comes from the source, which ``--redact`` replaces by a redacted
    one. If not, ``--redact`` is refused for this format."""


def _pcapng(source: Source, path: Path) -> Fields:
    from freezeframe.harness.report.pcapng import write_pcapng

    return {"packets": write_pcapng(source(), path)}


def _lua(_: Source, path: Path) -> Fields:
    from freezeframe.harness.report.lua import dissector

    write_whole(path, dissector().encode())
    return {}


def _perfetto(source: Source, path: Path) -> Fields:
    from freezeframe.harness.report.perfetto import trace

    write_whole(path, trace(source()))
    return {}


def _html(source: Source, path: Path) -> Fields:
    from freezeframe.harness.report.html import page

    write_whole(path, page(source()).encode(errors="replace"))
    return {}


def _markdown(source: Source, path: Path) -> Fields:
    from freezeframe.harness.report.markdown import ticket

    write_whole(path, ticket(source()).encode(errors="replace"))
    return {}


FORMATS: Final = (
    Format(
        name="pcapng",
        help="Link, consoles, control frames and actions, for Wireshark.",
        write=_pcapng,
        redacts=True,
    ),
    Format(
        name="lua",
        help="Dissector of the control frames, for wireshark -X lua_script:FILE.",
        write=_lua,
        redacts=True,
    ),
    Format(name="perfetto", help="A trace for ui.perfetto.dev.", write=_perfetto, redacts=True),
    Format(name="html", help="One page for a browser, with everything.", write=_html, redacts=True),
    Format(name="markdown", help="A text for a ticket.", write=_markdown, redacts=True),
)

F = TypeVar("F", bound=Callable[..., None])


def with_options(formats: Sequence[Format]) -> Callable[[F], F]:
    """Replace the ``**targets`` of a command by one option per format, each a file or None."""

    def decorate(command: F) -> F:
        signature = inspect.signature(command)
        kept = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(one)
            )
            for one in formats
        ]
        kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in kept]
        parameters = [*options, *kept]
        described: Any = command  # a function: both attributes are what typer reads
        described.__signature__ = signature.replace(parameters=parameters)
        described.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def _option(one: Format) -> Any:
    option = typer.Option(f"--{one.name}", help=one.help, metavar="FILE")
    return Annotated[Path | None, option]
