"""Deliberate bugs, and whether the tests notice: `make mutants`.

    python tests/tools/mutants.py [--named] [--drawn N] [--seed S] [--only TEXT] [--workers W]

Two sources. ``tests/tools/mutants.toml`` names bugs that once went unnoticed: a file, the text to
replace, the replacement, the tests nearest to it. ``--drawn N`` draws N further changes by the
seed from the syntax of the modules in ``DRAWN_FROM``; the tests nearest to a module are those of
its mirror folder under ``tests/``.

Without a bug the tests must pass, which is seen first. Each bug is made in a copy of the checkout,
whose ``src`` comes first on the import path. A bug is caught when the tests fail, and missed when
they pass; tests that do not end within the limit count as a catch, because a hang is noticed too.
Exit status: 0 when each named bug and at least 95 % of the drawn ones are caught, 1 otherwise.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
LIMIT_S: Final = 240
"""For the tests of one bug, on a busy machine."""
CAUGHT_SHARE: Final = 0.95
_COPIED: Final = (
    "src", "harness", "drivers", "firmware_sim", "fixtures", "bench_configs", "tests", "docs",
    "pyproject.toml", "setup.py", "README.md", "Makefile", "CHANGELOG.md",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    name: str
    path: str
    before: str
    """Source of the whole file, as it is."""
    after: str
    tests: tuple[str, ...]


# --- named ------------------------------------------------------------------------------------------------
def named() -> Iterator[Mutant]:
    """Those of mutants.toml. ValueError: a text that its file does not hold exactly once."""
    for row in tomllib.loads(NAMED.read_text(encoding="utf-8"))["mutant"]:
        source = (ROOT / row["file"]).read_text(encoding="utf-8")
        if source.count(row["old"]) != 1:
            raise ValueError(
                f"{row['name']}: {row['file']} holds its text {source.count(row['old'])} times, not once"
            )
        yield Mutant(
            row["name"],
            row["file"],
            source,
            source.replace(row["old"], row["new"]),
            tuple(row["tests"]),
        )


# --- drawn ------------------------------------------------------------------------------------------------
_COMPARED: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_COUNTED: Final[dict[type[ast.operator], str]] = {ast.Add: "-", ast.Sub: "+"}


def _segment(source: str, node: ast.AST) -> str:
    return ast.get_source_segment(source, node) or ""


def _changes(source: str) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """Each place that can be changed: its node, the new text, and what is changed."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(ops=[op], left=left, comparators=[right]) if type(op) in _COMPARED:
                new = _COMPARED[type(op)]
                yield (
                    node,
                    f"{_segment(source, left)} {new} {_segment(source, right)}",
                    f"compares {new}",
                )
            case ast.BoolOp(op=op, values=[first, *rest]):
                new = "or" if isinstance(op, ast.And) else "and"
                texts = (f"({_segment(source, one)})" for one in (first, *rest))
                yield node, f" {new} ".join(texts), f"joins by {new}"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield node, f"({_segment(source, operand)})", "not is gone"
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _COUNTED:
                new = _COUNTED[type(op)]
                yield (
                    node,
                    f"{_segment(source, left)} {new} {_segment(source, right)}",
                    f"counts {new}",
                )
            case ast.Constant(value=bool(value)):
                yield node, str(not value), f"is {not value}"
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield node, "return None", "returns nothing"
            case ast.Continue():
                yield node, "break", "break for continue"
            case ast.AugAssign() | ast.Expr(value=ast.Call()):
                yield node, "pass", "is left out"


def _replaced(source: str, node: ast.expr | ast.stmt, new: str) -> str:
    lines = source.splitlines(keepends=True)
    assert node.end_lineno is not None and node.end_col_offset is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    head = lines[first].encode()[: node.col_offset].decode()
    tail = lines[last].encode()[node.end_col_offset :].decode()
    return "".join([*lines[:first], head + new + tail, *lines[last + 1 :]])


def nearest_tests(path: str) -> tuple[str, ...]:
    """The mirror folder of a module, and the folder above it where the verdicts are judged."""
    mirror = Path("tests") / Path(path).parent
    found = [str(mirror)] if (ROOT / mirror).is_dir() else []
    if path.startswith("harness/core/"):
        found.append("tests/harness/incidents")
    return tuple(found) or ("tests/harness",)


def drawn(count: int, seed: int) -> Iterator[Mutant]:
    """``count`` changes drawn by ``seed``, each at another place."""
    places = []
    for top in DRAWN_FROM:
        files = [ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py"))
        for file in files:
            source = file.read_text(encoding="utf-8")
            path = file.relative_to(ROOT).as_posix()
            places += [(path, source, node, new, what) for node, new, what in _changes(source)]
    random.Random(seed).shuffle(places)
    made = 0
    for path, source, node, new, what in places:
        after = _replaced(source, node, new)
        try:
            ast.parse(after)
        except SyntaxError:
            continue
        name = f"{path}:{node.lineno}: {what}"
        yield Mutant(name, path, source, after, nearest_tests(path))
        made += 1
        if made == count:
            return


# --- run --------------------------------------------------------------------------------------------------
def copy_checkout(to: Path) -> None:
    """The checkout as it is, with its built C module and without what tests leave behind."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".hypothesis")
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, to / name)
    subprocess.run(["git", "init", "-q"], cwd=to, check=True)


def tests_pass(checkout: Path, tests: Sequence[str]) -> bool | None:
    """Whether the tests pass there; None: they did not end in time."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment.pop("CI", None)
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", *tests,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest itself failed: {done.stdout.decode()[-2000:]}")
    return done.returncode == 0


def verdict_on(mutant: Mutant, checkout: Path) -> str:
    """``caught``, ``caught: hangs`` or ``MISSED``."""
    target = checkout / mutant.path
    target.write_text(mutant.after, encoding="utf-8")
    try:
        passed = tests_pass(checkout, mutant.tests)
    finally:
        target.write_text(mutant.before, encoding="utf-8")
    return "MISSED" if passed else "caught: hangs" if passed is None else "caught"


def run(mutants: Sequence[Mutant], workers: int) -> dict[str, str]:
    """The verdict on each, printed as it comes."""
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        free = []
        for number in range(workers):
            checkout = Path(folder) / str(number)
            checkout.mkdir()
            copy_checkout(checkout)
            free.append(checkout)
        for tests in dict.fromkeys(one.tests for one in mutants):
            if not tests_pass(free[0], tests):
                sys.exit(f"without any bug, these tests fail or do not end: {' '.join(tests)}")

        def one(mutant: Mutant) -> None:
            checkout = free.pop()
            started = time.monotonic()
            try:
                results[mutant.name] = verdict_on(mutant, checkout)
            finally:
                free.append(checkout)
            seconds = time.monotonic() - started
            print(f"{results[mutant.name]:14} {seconds:5.1f} s  {mutant.name}", flush=True)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, mutants))
    return results


def main() -> int:
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--named", action="store_true", help="those of mutants.toml")
    words.add_argument(
        "--drawn", type=int, default=0, metavar="N", help="so many drawn by the seed"
    )
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--only", default="", metavar="TEXT", help="those whose name holds this")
    words.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = words.parse_args()
    listed = list(named()) if asked.named or not asked.drawn else []
    sampled = list(drawn(asked.drawn, asked.seed)) if asked.drawn else []
    chosen = [one for one in (*listed, *sampled) if asked.only in one.name]
    results = run(chosen, asked.workers)
    missed = [name for name, result in results.items() if result == "MISSED"]
    named_missed = [one.name for one in listed if one.name in missed]
    drawn_missed = [one.name for one in sampled if one.name in missed]
    drawn_run = [one.name for one in sampled if one.name in results]
    print(f"caught {len(results) - len(missed)} of {len(results)}")
    print("\n".join(f"missed: {name}" for name in missed))
    enough = len(drawn_missed) <= (1 - CAUGHT_SHARE) * len(drawn_run)
    return 0 if not named_missed and enough else 1


if __name__ == "__main__":
    sys.exit(main())
