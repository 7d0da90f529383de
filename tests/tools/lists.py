"""Lists in docs/bench-files.md that are made from the tables of the code.

python tests/tools/lists.py            writes them
python tests/tools/lists.py --check    writes nothing; fails when one is not up to date
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from freezeframe.harness.wire.faults import FAULTS

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "bench-files.md"
_LIST: Final = re.compile(r"(<!-- list: ([a-z ]+);[^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)


def fault_kinds() -> str:
    """One row per kind: its name, who has it, what happens."""
    rows = ["| kind | side | what happens |", "|---|---|---|"]
    for kind, traits in FAULTS.items():
        side = "either, by default the primary" if traits.either_side else traits.side
        rows.append(f"| `{kind}` | {side} | {traits.effect} |")
    return "\n".join(rows) + "\n"


LISTS: Final[Mapping[str, Callable[[], str]]] = {"fault kinds": fault_kinds}


def document(text: str) -> str:
    """``text`` with each list made again. KeyError: a list that nobody makes."""
    return _LIST.sub(lambda found: found[1] + LISTS[found[2]]() + found[3], text)


def main(arguments: list[str]) -> int:
    text = FILE.read_text(encoding="utf-8")
    made = document(text)
    if arguments == ["--check"]:
        if made != text:
            print("docs/bench-files.md is not up to date: run `make docs`")
        return int(made != text)
    FILE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
