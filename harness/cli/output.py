"""What a person, or with --json a program, sees; and how an exception becomes an exit status."""

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console, RenderableType

from freezeframe.harness.cli.interrupt import EXIT_INTERRUPTED
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import HarnessError, RigError, UsageError, WireError

EXIT_PASS: Final = 0
EXIT_DEVICE_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_RIG: Final = 3
EXIT_INCONCLUSIVE: Final = 4
TRACEBACK_VARIABLE: Final = "FREEZEFRAME_TRACEBACK"
EXIT_OF_OUTCOME: Final[dict[str, int]] = {
    "pass": EXIT_PASS,
    "fail": EXIT_DEVICE_FAILED,
    "rig-trouble": EXIT_RIG,
    "inconclusive": EXIT_INCONCLUSIVE,
    "interrupted": EXIT_INTERRUPTED,
}

CommandLineError: Final[type[Exception]] = typer.BadParameter.__bases__[0]
"""What is wrong with the command line itself; click's UsageError, whose module depends on typer's
version."""


# rich honours NO_COLOR and a stream that is no terminal by itself. Results go to stdout, all else
# to stderr.
class _Console(Console):
    def on_broken_pipe(self) -> None:
        """``| head`` has read what it wanted: that is no failure of ours."""
        with contextlib.suppress(OSError):
            # What is still buffered goes nowhere, so that the interpreter does not complain about
            # it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_PASS)


out: Final = _Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

UNFOLDED_COLUMNS: Final = 1000
"""Width of a table that a program, a file or a pager reads: one row a line, whatever the terminal
is."""


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    """The one object that a program reads."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def show(table: RenderableType) -> None:
    """A table: folded to a terminal's width; elsewhere one row a line, without blanks at its
    end."""
    if out.is_terminal:
        out.print(table, soft_wrap=False)
        return
    plain = Console(width=UNFOLDED_COLUMNS, file=io.StringIO(), color_system=None, highlight=False)
    with plain.capture() as captured:
        plain.print(table)
    for line in captured.get().splitlines():
        say(line.rstrip())


def say(text: str, *, style: str = "") -> None:
    """One line of result; ``text`` is never read as markup."""
    out.print(text, style=style or None, markup=False)


def _whose(error: HarnessError) -> tuple[str, str]:
    match error:
        case UsageError():
            return "usage", "usage"
        case WireError():
            return "device", "fail"
        case RigError():
            return "rig", "rig-trouble"
        case _:
            return "rig", "rig-trouble"


def complain(error: HarnessError) -> None:
    """Whose fault it is, the thing, and what to do: on stderr."""
    whose, _ = _whose(error)
    for line in str(error).splitlines() or [""]:
        err.print(f"freezeframe: {whose}: {escape(line)}", style="bold red", markup=False)


def refuse(error: Any, *, as_json: bool) -> int:
    """Tell of a CommandLineError; the exit status."""
    if as_json:
        print_json(
            {"outcome": "usage", "error": {"whose": "usage", "text": error.format_message()}}
        )
    error.show()
    return EXIT_USAGE


@contextlib.contextmanager
def _foreseen() -> Iterator[None]:
    """Whatever is raised inside comes out as something that has an exit status of its own."""
    try:
        yield
    except (HarnessError, BrokenPipeError, typer.Exit):
        raise
    except OSError as error:
        raise RigError(str(error)) from error
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        raise own_mistake(error) from error


def own_mistake(error: Exception) -> RigError:
    """An exception that nobody foresaw, in one line: the rig is not to be trusted, and no device
    has failed."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return RigError(
        f"internal error: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno}); "
        f"{TRACEBACK_VARIABLE}=1 shows where it came from, please report it"
    )


@contextlib.contextmanager
def reported(as_json: bool) -> Iterator[None]:
    """Around every command: no traceback for what can go wrong outside; the exit status says whose
    fault it is."""
    try:
        with _foreseen():
            yield
    except HarnessError as error:
        if as_json:
            whose, outcome = _whose(error)
            print_json({"outcome": outcome, "error": {"whose": whose, "text": str(error)}})
        complain(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        if as_json:
            print_json({"outcome": "interrupted"})
        err.print("freezeframe: interrupted", style="bold yellow")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has gone: nothing to tell, and nobody to tell it to.
        with contextlib.suppress(OSError):
            sys.stderr.close()
        raise typer.Exit(EXIT_PASS) from None
