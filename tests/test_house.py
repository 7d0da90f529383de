"""The house's rules that a program can check; import-linter holds the walls between the layers."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import claims
import formatdoc
import framesdoc
import lists
import manpage
import pytest
import whereis

ROOT = Path(__file__).resolve().parents[1]
API = "src/freezeframe"
"""The public modules; what else lies there are links to the folders."""
PACKAGES = (API, "harness", "drivers", "firmware_sim", "fixtures")
TOP_LEVEL = {
    "pyproject.toml", "harness", "drivers", "firmware_sim", "fixtures", "tests", "bench_configs", "README.md",
    "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "docs", ".ci", ".github", ".gitignore",
    "benchmarks", "setup.py", "src",
}  # fmt: skip
MODULE_LINES = 500
FUNCTION_LINES = 70
REFLEX_LINES = 150


def modules(*folders: str) -> Iterator[tuple[str, str, ast.Module]]:
    for folder in folders:
        inside = (ROOT / folder).glob if folder == API else (ROOT / folder).rglob
        for path in sorted(inside("*.py")):
            text = path.read_text(encoding="utf-8")
            yield path.relative_to(ROOT).as_posix(), text, ast.parse(text)


def test_modules_and_functions_are_short() -> None:
    too_long = []
    for name, text, tree in modules(*PACKAGES, "tests"):
        allowed = REFLEX_LINES if name == "harness/watch/reflex.py" else MODULE_LINES
        lines = text.count("\n")
        if lines > allowed:
            too_long.append(f"{name}: {lines} lines, at most {allowed}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    too_long.append(
                        f"{name}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}"
                    )
    assert too_long == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        name
        for name, text, tree in modules(*PACKAGES)
        if text.strip() and ast.get_docstring(tree) is None
    ]
    assert silent == []


def test_a_public_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for name, _, tree in modules("harness", "drivers"):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize(
    ("words", "at_most"), [(r"\b(?:dict|Mapping)\[str, Any\]", 80), (r"\btold\b", 40)]
)
def test_untyped_maps_and_a_worn_word_do_not_spread(words: str, at_most: int) -> None:
    """In the product; the numbers are the goals that were set when rooms and voice were put in
    order."""
    assert sum(len(re.findall(words, text)) for _, text, _ in modules(*PACKAGES)) <= at_most


@pytest.mark.parametrize(("folder", "at_most"), [("harness", 4), ("harness/core", 14)])
def test_loose_modules_beside_the_rooms_are_few(folder: str, at_most: int) -> None:
    assert len(list((ROOT / folder).glob("*.py"))) <= at_most


SET_AND_NOT_READ = {
    "harness/edge/ring_socket.py: iface",  # Scapy reads it
    "harness/edge/scapy_layers.py: raw_packet_cache",  # Scapy reads it
    "harness/rigs/daemon.py: _lock",  # held open until the process ends
    "firmware_sim/serve.py: _kept_fds",  # held open until the process ends
}


def test_every_attribute_that_is_set_is_read_somewhere() -> None:
    """One that was renamed and is still set by its old name. Seen: after a restart of the capture the
    counters of the process that had died were subtracted. A private one is read in a module of its class
    or of one that inherits it; a public one anywhere, tests included."""
    everything = [*modules(*PACKAGES, "tests", "benchmarks")]
    read = {name: _attributes(tree, ast.Load) for name, _, tree in everything}
    anywhere = set().union(*read.values())
    heirs: dict[str, set[str]] = {}
    for name, _, tree in everything:
        for node in ast.walk(tree):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                heirs.setdefault(ast.unparse(base).partition("[")[0], set()).update(read[name])
    unread = set()
    for name, _, tree in modules(*PACKAGES):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                near = read[name] | heirs.get(node.name, set())
                unread |= {
                    f"{name}: {one}"
                    for one in _attributes(node, ast.Store, of="self")
                    if one not in (near if one.startswith("_") else anywhere)
                }
    assert unread == SET_AND_NOT_READ


def _attributes(tree: ast.AST, context: type[ast.expr_context], of: str = "") -> set[str]:
    """Names of the attributes that are read or set in it; ``of``: of this object alone."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, context)
        and (not of or (isinstance(node.value, ast.Name) and node.value.id == of))
    }


def test_tests_neither_sleep_nor_mock() -> None:
    """Virtual time or a bounded wait instead of a sleep; a fake that obeys its role instead of a
    mock."""
    found = []
    for name, _, tree in modules("tests"):
        for node in ast.walk(tree):
            words = ""
            match node:
                case (
                    ast.Call(func=ast.Attribute(attr="sleep")) | ast.Call(func=ast.Name(id="sleep"))
                ):
                    words = "sleeps"
                case ast.ImportFrom(module=str(module)) if (
                    module.split(".")[-1] == "mock" or module == "unittest"
                ):
                    words = "imports mock"
                case ast.Import(names=names) if any("mock" in alias.name for alias in names):
                    words = "imports mock"
                case ast.arg(arg="mocker"):
                    words = "uses mocker"
            if words:
                found.append(f"{name}:{getattr(node, 'lineno', 0)}: {words}")
    assert found == []


def test_names_of_test_files_are_unique() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_module_has_a_test_of_its_name_or_a_row_that_names_one() -> None:
    """`python tests/tools/whereis.py MODULE` prints them."""
    assert whereis.problems(tomllib.loads(whereis.TABLE.read_text())) == []


def test_a_row_that_is_not_true_is_found() -> None:
    table = tomllib.loads(whereis.TABLE.read_text())
    before = set(whereis.problems(table))
    del table["harness/roles.py"]
    table["harness/errors.py"] = ["tests/test_gone.py"]
    table["harness/gone.py"] = ["tests/test_docs.py"]
    table["harness/core/frames.py"] = ["tests/harness/rigs/test_packages.py"]
    table["harness/rigs/image.py"] = ["tests/harness/core/test_frames.py"]
    assert sorted(set(whereis.problems(table)) - before) == [
        "harness/core/frames.py: tests/harness/rigs/test_packages.py does not reach it",
        "harness/errors.py: there is no tests/test_gone.py",
        "harness/gone.py: no such module; remove the row",
        "harness/rigs/image.py: tests/harness/core/test_frames.py does not reach it",
        "harness/roles.py: neither test_roles.py nor a row in tests/WHERE.toml",
    ]


def test_the_top_level_is_the_houses() -> None:
    """What git tracks: a page that somebody exported into the checkout is nobody's concern."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=200
    ).stdout
    assert {line.partition("/")[0] for line in tracked.splitlines()} == TOP_LEVEL


@pytest.mark.parametrize("folder", [*PACKAGES[1:], "bench_configs"])
def test_the_old_import_names_load_nothing(folder: str) -> None:
    """From the checkout's root, where the folders are on sys.path, `import harness` must not make a
    second copy."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (
        done.returncode == 1
        and f"ImportError: the package is called freezeframe.{folder}" in done.stderr
    )


# --- generated documents ------------------------------------------------------------------------------------
def test_the_generated_documents_are_up_to_date() -> None:
    assert (ROOT / framesdoc.FILE).read_text(encoding="utf-8") == framesdoc.document()
    assert formatdoc.FILE.read_text(encoding="utf-8") == formatdoc.document(), "run `make docs`"
    assert manpage.FILE.read_text(encoding="utf-8") == manpage.page(), "run `make docs`"
    written = lists.FILE.read_text(encoding="utf-8")
    assert lists.document(written) == written and set(lists.LISTS) == set(
        re.findall(r"<!-- list: ([a-z ]+);", written)
    )
    assert (ROOT / claims.FILE).read_text(encoding="utf-8") == claims.document(
        claims.proofs(ROOT / "tests")
    )


def test_all_twenty_requirements_are_there() -> None:
    assert len(claims.CLAIMS) == 20


def test_claim_marks_are_read_from_every_place_that_pytest_reads_them() -> None:
    source = (
        "import pytest\npytestmark = [pytest.mark.system, pytest.mark.claim(1)]\n"
        "@pytest.mark.claim(2, 3)\n@pytest.mark.claim(4)\ndef test_a(): ...\n"
        "@pytest.mark.claim(5)\nclass TestB:\n    @pytest.mark.claim(6)\n    def test_c(self): ...\n"
        "    def helper(self): ...\n"
        "@pytest.mark.claim(7)\ndef not_a_test(): ...\n"
        '@pytest.mark.claim(9, bench="drbd_qemu", case="neg_ack")\n'
        '@pytest.mark.claim(2, bench=("nvme_qemu", "nbd_qemu"))\ndef test_d(): ...\n'
    )
    found = {(one.test, one.number, one.bench) for one in claims.marks(source)}
    assert found == {
        *((name, number, "sim") for name, number in (
            ("test_a", 1), ("test_a", 2), ("test_a", 3), ("test_a", 4),
            ("TestB::test_c", 1), ("TestB::test_c", 5), ("TestB::test_c", 6),
        )),
        ("test_d[neg_ack]", 9, "drbd_qemu"),
        ("test_d", 1, "sim"), ("test_d", 2, "nvme_qemu"), ("test_d", 2, "nbd_qemu"),
    }  # fmt: skip


def test_each_bench_has_a_test_of_each_requirement_or_a_reason(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    found = claims.proofs(ROOT / "tests")
    assert claims.gaps(found) == [] and claims.unfounded(found, makefile) == []
    assert {"tests/rig", "tests/system/test_scenarios.py"} <= set(
        claims.tests_of("test-rig", makefile)
    )
    lost = [one for one in found if (one.number, one.bench) != (9, "drbd_qemu")]
    assert claims.gaps(lost) == ["claim 9 on drbd_qemu: no test"]
    twice = [*found, claims.Mark(test="tests/rig/test_x.py::test_a", number=10, bench="nbd_qemu")]
    assert claims.gaps(twice) == ["claim 10 on nbd_qemu: a test, and a reason why there is none"]
    elsewhere = claims.Mark(test="tests/system/test_x.py::test_a", number=9, bench="drbd_qemu")
    (said,) = claims.unfounded([*found, elsewhere], makefile)
    assert "test_x.py::test_a: claims 9 on drbd_qemu, and `make test-rig` does not run it" in said
    assert claims.tests_of("smoke-arm64", makefile) == ["tests/arm64"]
    native = claims.Mark(test="tests/system/test_x.py::test_a", number=9, bench="arm64")
    (said,) = claims.unfounded([*found, native], makefile)
    assert "test_x.py::test_a: claims 9 on arm64, and `make smoke-arm64` does not run it" in said
    (tmp_path / "test_x.py").write_text(
        'import pytest\n@pytest.mark.claim(1, bench="drbd")\ndef test_a(): ...\n'
    )
    with pytest.raises(SystemExit, match=r"test_a: there is no bench drbd; allowed: sim, drbd_q"):
        claims.proofs(tmp_path)


def test_a_claim_that_does_not_exist_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import pytest\n@pytest.mark.claim(21)\ndef test_a(): ...\n"
    )
    with pytest.raises(SystemExit, match=r"test_a: there is no claim 21; allowed: 1 to 20"):
        claims.proofs(tmp_path)


# --- in CI nothing is skipped -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ci", "status", "words"),
    [("true", 1, "in CI nothing is skipped: Skipped: no reason"), ("", 0, "2 skipped")],
)
def test_a_skip_fails_in_ci_and_says_why(tmp_path: Path, ci: str, status: int, words: str) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_one.py").write_text(
        "import pytest\ndef test_it(): pytest.skip('no reason')\n"
    )
    (tmp_path / "test_two.py").write_text(
        "import pytest\npytest.skip('nor here', allow_module_level=True)\n"
    )
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:freezeframe",
        "--continue-on-collection-errors",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "CI": ci}, timeout=200,
    )  # fmt: skip
    assert (done.returncode != 0) == bool(status) and words in done.stdout, done.stdout


@pytest.mark.parametrize(("left", "status"), [("0.d", 1), (".hypothesis", 0)])
def test_what_a_test_leaves_in_the_checkout_fails_the_run(
    tmp_path: Path, left: str, status: int
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_one.py").write_text(
        f"from pathlib import Path\ndef test_it(): Path({left!r}).mkdir()\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:freezeframe", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, timeout=200,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    assert ("left something behind" in done.stdout and left in done.stdout) == bool(status)
