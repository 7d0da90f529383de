"""The deliberate bugs of ``mutants.py``: those that mutants.toml names, and those drawn by a seed."""

import ast
import hashlib
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
NAMED: Final = Path(__file__).with_name("mutants.toml")
DRAWN_FROM: Final = (
    "harness/core/link",
    "harness/core/verdict",
    "harness/core/recovery",
    "harness/incidents/inquest.py",
)


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    name: str
    path: str
    before: str
    """Source of the whole file, as it is."""
    after: str
    tests: tuple[str, ...] = ()
    """Files, or tests by their node ids. Empty: chosen from the record by ``lines``."""
    lines: range = range(0)
    function: int | None = None
    """Number of the function that is changed, in the order of the source; None: no function."""
    reason: str = ""
    """Why no test can notice it."""


# --- named ------------------------------------------------------------------------------------------------
def named() -> Iterator[Mutant]:
    """Those of mutants.toml. ValueError: a text that its file does not hold exactly once."""
    for row in tomllib.loads(NAMED.read_text(encoding="utf-8"))["mutant"]:
        source = (ROOT / row["file"]).read_text(encoding="utf-8")
        if source.count(row["old"]) != 1:
            raise ValueError(
                f"{row['name']}: {row['file']} holds its text {source.count(row['old'])} times, not once"
            )
        after = source.replace(row["old"], row["new"])
        yield Mutant(row["name"], row["file"], source, after, tuple(row["tests"]))


# --- drawn ------------------------------------------------------------------------------------------------
_COMPARED: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_COUNTED: Final[dict[type[ast.operator], str]] = {ast.Add: "-", ast.Sub: "+"}
_Place = tuple[ast.expr | ast.stmt, int | None]
"""A node, and the number of the function around it."""


def _places(source: str) -> Iterator[_Place]:
    """Every node that runs. Decorators, keywords of a class and annotations are left out: what they
    change (``frozen=True``) is held by mypy and no test."""
    numbers = iter(range(sys.maxsize))

    def inside(node: ast.AST, function: int | None) -> Iterator[_Place]:
        if isinstance(node, ast.expr | ast.stmt):
            yield node, function
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    if default is not None:
                        yield from inside(default, function)
                number = next(numbers) if function is None else function
                for one in node.body:
                    yield from inside(one, number)
            case ast.ClassDef():
                for one in node.body:
                    yield from inside(one, function)
            case ast.AnnAssign():
                if node.value is not None:
                    yield from inside(node.value, function)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from inside(child, function)

    yield from inside(ast.parse(source), None)


def _segment(source: str, node: ast.AST) -> str:
    """Like ast.get_source_segment, which cuts the whole source into lines each time."""
    assert isinstance(node, ast.expr | ast.stmt)
    assert node.end_lineno is not None and node.end_col_offset is not None
    lines = [line.encode() for line in _lines(source)[node.lineno - 1 : node.end_lineno]]
    lines[-1] = lines[-1][: node.end_col_offset]
    lines[0] = lines[0][node.col_offset :]
    return b"".join(lines).decode()


@cache
def _lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)


def _change(source: str, node: ast.expr | ast.stmt) -> tuple[str, str] | None:
    """The new text of a node, and what is changed; None: this node is not changed."""
    match node:
        case ast.Compare(ops=[op], left=left, comparators=[right]) if type(op) in _COMPARED:
            new = _COMPARED[type(op)]
            text = f"{_segment(source, left)} {new} {_segment(source, right)}"
            return text, f"compares {new}"
        case ast.BoolOp(op=op, values=[first, *rest]):
            new = "or" if isinstance(op, ast.And) else "and"
            texts = (f"({_segment(source, one)})" for one in (first, *rest))
            return f" {new} ".join(texts), f"joins by {new}"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"({_segment(source, operand)})", "not is gone"
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _COUNTED:
            new = _COUNTED[type(op)]
            text = f"{_segment(source, left)} {new} {_segment(source, right)}"
            return text, f"counts {new}"
        case ast.Constant(value=bool(value)):
            return str(not value), f"is {not value}"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            return "return None", "returns nothing"
        case ast.Continue():
            return "break", "break for continue"
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            return "pass", "is left out"
    return None


def _replaced(source: str, node: ast.expr | ast.stmt, new: str) -> str:
    lines = _lines(source)
    assert node.end_lineno is not None and node.end_col_offset is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    head = lines[first].encode()[: node.col_offset].decode()
    tail = lines[last].encode()[node.end_col_offset :].decode()
    return "".join([*lines[:first], head + new + tail, *lines[last + 1 :]])


@dataclass(frozen=True)
class _Drawable:
    path: str
    source: str
    node: ast.expr | ast.stmt
    function: int | None
    new: str
    what: str

    @property
    def line(self) -> str:
        return _lines(self.source)[self.node.lineno - 1].strip()

    def number(self, seed: int, seen: Counter[str]) -> str:
        """By which it is drawn. It does not depend on what stands elsewhere in the file, unless that
        is the same line."""
        where = f"{self.path}|{self.line}|{_segment(self.source, self.node)}|{self.what}"
        seen[where] += 1
        return hashlib.sha256(f"{seed}|{seen[where]}|{where}".encode()).hexdigest()

    def mutant(self) -> Mutant | None:
        """None: with the change it is no Python."""
        after = _replaced(self.source, self.node, self.new)
        try:
            ast.parse(after)
        except SyntaxError:
            return None
        place = f"{self.path}:{self.node.lineno}:{self.node.col_offset}"
        name = f"{place}: {self.what}: {self.line}"
        span = range(self.node.lineno, (self.node.end_lineno or self.node.lineno) + 1)
        reason = _reasons().get((self.path, self.what, self.line), "")
        return Mutant(name, self.path, self.source, after, (), span, self.function, reason)


@cache
def _reasons() -> dict[tuple[str, str, str], str]:
    rows = tomllib.loads(NAMED.read_text(encoding="utf-8")).get("unnoticeable", ())
    return {(row["file"], row["change"], row["line"]): row["reason"] for row in rows}


def watched() -> dict[str, str]:
    """Path -> source of the modules of ``DRAWN_FROM``."""
    files = (
        file
        for top in DRAWN_FROM
        for file in ([ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")))
    )
    return {one.relative_to(ROOT).as_posix(): one.read_text(encoding="utf-8") for one in files}


def drawn(count: int, seed: int) -> list[Mutant]:
    """``count`` changes drawn by ``seed``, each at another place."""
    found: list[tuple[str, _Drawable]] = []
    for path, source in watched().items():
        seen: Counter[str] = Counter()
        for node, function in _places(source):
            if change := _change(source, node):
                one = _Drawable(path, source, node, function, *change)
                found.append((one.number(seed, seen), one))
    found.sort(key=lambda one: one[0])
    valid = (mutant for _, one in found if (mutant := one.mutant()) is not None)
    return list(islice(valid, count))
