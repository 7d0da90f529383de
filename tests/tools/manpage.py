"""docs/freezeframe.1, the manual page, made from the command line itself.

python tests/tools/manpage.py            writes it
python tests/tools/manpage.py --check    writes nothing; fails when it is not up to date
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from freezeframe.harness.cli.app import app

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "freezeframe.1"
FILES: Final = (
    ("incidents/", "The incidents, a folder each; --out names another place."),
    (
        "incidents/index.sqlite",
        "The index of list, stats and search. It is made from the folders, and may be deleted.",
    ),
    ("incidents/repeats.jsonl", "A line for each run of run --repeat."),
)
VARIABLES: Final = (
    ("FREEZEFRAME_BENCH", "Bench file, as --bench."),
    ("FREEZEFRAME_OUT", "Folder of the incidents, as --out."),
    ("FREEZEFRAME_TRACEBACK", "1: print the traceback of an internal error."),
    ("NO_COLOR", "Print without colours."),
)
STATUSES: Final = (
    ("0", "Pass."), ("1", "A device failed."), ("2", "Usage: the command or a file is wrong, or nothing was found."),
    ("3", "Rig trouble: the bench, not a device."), ("4", "Inconclusive."), ("130", "Interrupted."),
)  # fmt: skip


def page() -> str:
    """The whole page, in the man macros of groff."""
    root: Any = typer.main.get_command(app)
    lines = [
        ".\\" + '" Made by tests/tools/manpage.py from the command line. Do not edit.',
        '.TH FREEZEFRAME 1 "" "FreezeFrame" "User Commands"',
        ".SH NAME", "freezeframe \\- watch a pair of replicating storage controllers",
        ".SH SYNOPSIS", ".B freezeframe", ".I COMMAND", "[\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION", _roff(root.help), ".SH COMMANDS", *_commands(root, ""),
        ".SH EXIT STATUS", *_table(STATUSES), ".SH ENVIRONMENT", *_table(VARIABLES), ".SH FILES", *_table(FILES),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[str]:
    for name in sorted(group.commands):
        command = group.commands[name]
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
            continue
        arguments = [_metavar(one) for one in command.params if one.param_type_name == "argument"]
        yield f".SS {_roff(' '.join([f'freezeframe {prefix}{name}', *arguments]))}"
        yield _roff(command.help or "")
        for one in command.params:
            if one.param_type_name == "option" and "--help" not in one.opts:
                yield ".TP"
                yield f"\\fB{_roff(', '.join(reversed(one.opts)))}\\fR{_value(one)}"
                yield _roff(one.help or "")


def _value(option: Any) -> str:
    return "" if option.is_flag else f" \\fI{_roff(_metavar(option))}\\fR"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or (parameter.name or "").upper())


def _table(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, text in rows:
        yield from (".TP", f"\\fB{_roff(name)}\\fR", _roff(text))


def _roff(text: str) -> str:
    """Text of groff: no line of it is a request, and a hyphen stays one."""
    said = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{said}" if said.startswith((".", "'")) else said


def main(arguments: list[str]) -> int:
    made = page()
    if arguments == ["--check"]:
        is_same = FILE.exists() and FILE.read_text(encoding="utf-8") == made
        if not is_same:
            print("docs/freezeframe.1 is not up to date: run `make docs`")
        return int(not is_same)
    FILE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
