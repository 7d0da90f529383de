"""docs/incident-format.md: the fields of incident.json, made from harness/core/verdict/record.py.

python tests/tools/formatdoc.py            writes it
python tests/tools/formatdoc.py --check    writes nothing; fails when it is not up to date
"""

import ast
import re
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
CORE: Final = ROOT / "harness" / "core"
SOURCES: Final = (
    CORE / "verdict" / "record.py", CORE / "verdict" / "comparisonrecord.py",
    CORE / "verdict" / "failingblock.py", CORE / "verdict" / "resyncrecord.py",
    CORE / "lineerrors.py",
)  # fmt: skip
FILE: Final = ROOT / "docs" / "incident-format.md"
FIRST: Final = "IncidentRecord"
_HEAD: Final = """# The format of an incident

Made by `make docs` from `harness/core/verdict/record.py` and the modules of its parts. Do not edit.

An incident is a folder. Its files:

| file | what |
|---|---|
| `incident.json` | the record, below; replaced as a whole at each milestone |
| `timeline.jsonl` | one JSON object per event: `t_ns`, `source`, `side`, `event`, and the event's own fields |
| `SIDE/console.log`, `SIDE/console.times` | the console byte by byte; per read its time and the offset of its first byte |
| `SIDE/set.zst`, `SIDE/state.json`, `SIDE/events.log` | the root cause data set as pulled; what was made from it |
| `SIDE/healthy.cbor` | the state when the bench was armed |
| `SIDE/block.bin` | the failing block as that side held it (`failing_block`), where its driver can read it |
| `link.pcapng` | the captured replication link |
| `host.journal` | each host write: intent and acknowledgement; of a workload without a journal `host.results.json` |
| `bench.toml`, `rules/` | the bench file and the rule files, without secrets |
| `remarks.jsonl` | what people wrote; `written` and `text` |
| `SHA256SUMS` | of all files but `remarks.jsonl`, made when the incident is closed |

One of `incident.json`, `timeline.jsonl` and `.lock` makes a folder an incident; all else may be missing, as a killed
run leaves it. Unknown fields are passed over; a field that is damaged is reported, and read as if it were missing.

Times ending in `_ns` are CLOCK_MONOTONIC of the machine that watched; `clock` relates them to wall time. A number is not
negative unless its text says so. Text from a device is escaped.
"""


def document() -> str:
    bodies = (ast.parse(one.read_text(encoding="utf-8")).body for one in SOURCES)
    classes = {one.name: one for body in bodies for one in body if isinstance(one, ast.ClassDef)}
    parts, waiting, done = [_HEAD], [FIRST], set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in done:
            continue
        done.add(name)
        rows = list(_rows(classes[name]))
        parts.append(_part(name, classes[name], rows))
        for _, kind, _ in rows:
            waiting += [one for one in re.findall(r"\w+", kind) if one in classes]
    return "\n".join(parts)


def _part(name: str, node: ast.ClassDef, rows: list[tuple[str, str, str]]) -> str:
    title = "incident.json" if name == FIRST else name
    lines = [
        f"## {title}",
        "",
        ast.get_docstring(node) or "",
        "",
        "| field | type | |",
        "|---|---|---|",
    ]
    lines += [f"| `{field}` | {kind} | {text} |" for field, kind, text in rows]
    return "\n".join(lines) + "\n"


def _rows(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    rows = []
    for at, one in enumerate(node.body):
        if not isinstance(one, ast.AnnAssign) or not isinstance(one.target, ast.Name):
            continue
        after = node.body[at + 1] if at + 1 < len(node.body) else None
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
        rows.append((one.target.id, _type(ast.unparse(one.annotation)), text.replace("|", "\\|")))
    return rows


def _type(annotation: str) -> str:
    """The annotation in words of JSON."""
    said = annotation.replace(" | None", " or null")
    said = re.sub(r"Annotated\[(\w+), [\w.]+\(.*?\)\]", r"\1", said)
    said = re.sub(r"tuple\[([^\]]+?), \.\.\.\]", r"list of \1", said)
    said = re.sub(r"dict\[[^,]+, (.+)\]", r"object of \1", said)
    for python, json in (
        ("Text", "text"), ("Count", "number"), ("Time", "time"), ("Sector", "sector"), ("int", "number"),
        ("bool", "true or false"), ("str", "text"), ("float", "number"), ("Side", "primary or secondary"),
    ):  # fmt: skip
        said = re.sub(rf"\b{python}\b", json, said)
    return said.replace("|", "or")


def main(arguments: list[str]) -> int:
    made = document()
    if arguments == ["--check"]:
        is_same = FILE.exists() and FILE.read_text(encoding="utf-8") == made
        if not is_same:
            print("docs/incident-format.md is not up to date: run `make docs`")
        return int(not is_same)
    FILE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
