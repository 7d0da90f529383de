"""Print results, as text or as JSON, and turn exceptions into exit statuses."""

import contextlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from freezeframe.harness.cli.interrupt import EXIT_INTERRUPTED
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.clock import utc_now
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
    "drill": EXIT_PASS,
    "inconclusive": EXIT_INCONCLUSIVE,
    "interrupted": EXIT_INTERRUPTED,
}

WORST_FIRST: Final = (EXIT_DEVICE_FAILED, EXIT_RIG, EXIT_INCONCLUSIVE)
"""A command that judges several things ends with the first of these that one of them came to."""


def worst(statuses: Iterable[int]) -> int:
    """Return the exit status of a command that came to all these."""
    found = set(statuses)
    return next((one for one in WORST_FIRST if one in found), EXIT_PASS)


CommandLineError: Final[type[Exception]] = typer.BadParameter.__bases__[0]
"""click's UsageError: the command line itself is wrong. Its module depends on the version of
typer."""


# rich itself handles NO_COLOR and output that is not a terminal. Results go to stdout, messages to
# stderr.
class _Console(Console):
    def sentence(self, text: Text) -> None:
        """Print one line. A terminal gets it wrapped between words, below its own beginning; what has no
        blank stays whole, however long: a path is there to be copied. A file or a pipe gets one line."""
        if "\n" in text.plain:
            for line in text.split(allow_blank=True):
                self.sentence(line)
            return
        if self.is_terminal and cell_len(text.plain) > self.width:
            margin = " " * (len(text.plain) - len(text.plain.lstrip(" ")))
            room = max(MIN_COLUMNS, self.width - len(margin))
            text = Text("\n").join(
                Text(margin) + line for line in _lines(text[len(margin) :], room)
            )
        self.print(text, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Exit quietly when the reader of stdout, such as ``head``, has closed the pipe."""
        with contextlib.suppress(OSError):
            # Discard buffered output; otherwise the interpreter reports an error when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_PASS)


def _lines(text: Text, columns: int) -> Iterator[Text]:
    """Divide it at blanks. A word that is longer than a line has one of its own."""
    begins, used = [], 0
    for word in _WORD.finditer(text.plain):
        cells = cell_len(word[0])
        if used and used + cells > columns:
            begins.append(word.start())
            used = cell_len(word[0].lstrip())
        else:
            used += cells
    for line in text.divide(begins):
        line.rstrip()
        yield line[len(line.plain) - len(line.plain.lstrip(" ")) :]


_WORD: Final = re.compile(r" *[^ ]+")
out: Final = _Console(highlight=False, soft_wrap=True)
err: Final = _Console(stderr=True, highlight=False, soft_wrap=True)

MIN_COLUMNS: Final = 20
"""However narrow a terminal is: this much of a sentence stands on each line."""
UNFOLDED_COLUMNS: Final = 1000
"""Width of a table that is printed to a file or a pipe: each row stays on one line."""


def print_json(value: Mapping[str, object] | Sequence[object]) -> None:
    """Print ``value`` as the one JSON object of the command."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def print_line(**fields: object) -> None:
    """Print one JSON object on one line, with the time of day, for a command that goes on."""
    sys.stdout.write(json.dumps({"utc": utc_now(), **fields}, default=str) + "\n")
    sys.stdout.flush()


def show(table: RenderableType) -> None:
    """Print a table. On a terminal it is wrapped to the width; elsewhere each row is one line
    without trailing blanks."""
    if out.is_terminal:
        out.print(table, soft_wrap=False)
        return
    plain = Console(width=UNFOLDED_COLUMNS, file=io.StringIO(), color_system=None, highlight=False)
    with plain.capture() as captured:
        plain.print(table)
    for line in captured.get().splitlines():
        say(line.rstrip())


def show_lines(text: Text) -> None:
    """Print lines that fit: with their styles on a terminal, plain elsewhere."""
    if out.is_terminal:
        out.print(text)
    else:
        sys.stdout.write(text.plain + "\n")


def say(text: str, *, style: str = "") -> None:
    """Print one line of the result. ``text`` is never interpreted as rich markup."""
    out.sentence(Text(text, style))


def say_aside(text: str, style: str = "yellow") -> None:
    """Print one line to stderr, beside the result. ``text`` is never interpreted as rich markup."""
    err.sentence(Text(text, style))


def say_command(text: str) -> None:
    """Print a command to be copied: no line of it is broken, the terminal itself wraps it."""
    out.print(text, markup=False, soft_wrap=True)


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
    """Print an error to stderr: whose fault it is, what is wrong, what to do."""
    whose, _ = _whose(error)
    for line in str(error).splitlines() or [""]:
        say_aside(f"freezeframe: {whose}: {escape(line)}", "bold red")


def refuse(error: Any, *, as_json: bool) -> int:
    """Print a CommandLineError and return the exit status."""
    if as_json:
        print_json(
            {"outcome": "usage", "error": {"whose": "usage", "text": error.format_message()}}
        )
    error.show()
    return EXIT_USAGE


@contextlib.contextmanager
def classified() -> Iterator[None]:
    """Turn any exception raised inside into one with an exit status."""
    try:
        yield
    except (HarnessError, BrokenPipeError, typer.Exit):
        raise
    except OSError as error:
        raise RigError(str(error)) from error
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        raise internal_error(error) from error


def internal_error(error: Exception) -> RigError:
    """Return a one-line RigError for an unexpected exception. It never counts as a failure of a
    device."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return RigError(
        f"internal error: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno}); "
        f"{TRACEBACK_VARIABLE}=1 shows the traceback; please report it"
    )


@contextlib.contextmanager
def reported(as_json: bool) -> Iterator[None]:
    """Run the body of a command and report its errors.

    Expected errors are printed without a traceback. The exit status says whose fault it is.
    """
    try:
        with classified():
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
        # The reader of our output has exited; there is nothing to report.
        with contextlib.suppress(OSError):
            sys.stderr.close()
        raise typer.Exit(EXIT_PASS) from None
