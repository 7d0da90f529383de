"""What a person, or with --json a program, sees; and how an exception becomes an exit status."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import typer
from rich.console import Console

from harness.core.text import escape
from harness.errors import HarnessError, RigError, UsageError, WireError

EXIT_PASS: Final = 0
EXIT_DEVICE_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_RIG: Final = 3
EXIT_INCONCLUSIVE: Final = 4
EXIT_INTERRUPTED: Final = 130
EXIT_OF_OUTCOME: Final[dict[str, int]] = {
    "pass": EXIT_PASS,
    "fail": EXIT_DEVICE_FAILED,
    "rig-trouble": EXIT_RIG,
    "inconclusive": EXIT_INCONCLUSIVE,
    "interrupted": EXIT_INTERRUPTED,
}

# rich honours NO_COLOR and a stream that is no terminal by itself. Results go to stdout, all else to stderr.
out: Final = Console(highlight=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    """The one object that a program reads."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


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


@contextlib.contextmanager
def reported(as_json: bool) -> Iterator[None]:
    """Around every command: no traceback for what can go wrong outside; the exit status says whose fault it is."""
    try:
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
