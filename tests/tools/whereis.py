"""Which tests hold a module: by the test file's name, or by the table ``tests/WHERE.toml``.

A module ``x.py`` is tested by ``test_x.py``, wherever that lies. A module without one has a row in
the table: ``"harness/roles.py" = ["tests/..."]``. ``problems()`` says where this is not true; a row
is believed only when the test reaches the module by imports, or starts the command that does.
"""

import ast
import re
import sys
import tomllib
from collections import deque
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = ROOT / "tests" / "WHERE.toml"
FOLDERS: Final = ("harness", "drivers", "firmware_sim", "fixtures")
COMMANDS: Final = {
    "freezeframe.harness.cli": "harness/cli/app.py",
    "freezeframe.firmware_sim": "firmware_sim/serve.py",
    "from command import": "harness/cli/app.py",
    "from workload_process import": "drivers/hosts/writer.py",
    '"-m", "pytest"': "fixtures/plugin.py",
    "pair": "fixtures/pair.py",
}
"""A text in a test -> the module that it starts in another process, or through the plugin."""
_DOTTED: Final = re.compile(r"freezeframe(?:\.\w+)+")


def modules() -> list[str]:
    """The product's modules, as paths from the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found += (ROOT / "src" / "freezeframe").glob("*.py")
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return sorted(name for name in names if not name.rpartition("/")[2].startswith("__"))


@cache
def tests() -> dict[str, str]:
    """Name of a test file -> its path from the root."""
    found = (ROOT / "tests").rglob("test_*.py")
    return {path.name: path.relative_to(ROOT).as_posix() for path in found}


@cache
def imports(name: str) -> frozenset[str]:
    """Paths of our modules that the file ``name`` imports, anywhere in it, or names in a text: a
    driver, a protocol, the module of another process."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {path for words in _DOTTED.findall(text) if (path := _path(words))}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {path for alias in node.names if (path := _path(alias.name))}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {path for one in names if (path := _path(one))}
    return frozenset(found)


def _path(module: str) -> str | None:
    """freezeframe.harness.roles -> harness/roles.py; a helper of the tests -> its file."""
    if module.startswith("freezeframe."):
        inner = module.removeprefix("freezeframe.").replace(".", "/")
        candidates = [f"{inner}.py", f"{inner}/__init__.py", f"src/freezeframe/{inner}.py"]
    else:
        candidates = [f"tests/{folder}/{module}.py" for folder in ("support", "tools")]
    return next((path for path in candidates if (ROOT / path).is_file()), None)


@cache
def reached(test: str) -> frozenset[str]:
    """Every module that ``test`` imports, directly or by a detour, or starts."""
    text = (ROOT / test).read_text(encoding="utf-8")
    waiting = deque([test, *(path for words, path in COMMANDS.items() if words in text)])
    seen: set[str] = set()
    while waiting:
        name = waiting.popleft()
        if name not in seen:
            seen.add(name)
            waiting.extend(imports(name))
    return frozenset(seen)


def names(test: str, module: str) -> bool:
    """Whether ``test`` loads ``module`` by the name that a bench file has for it."""
    text = (ROOT / test).read_text(encoding="utf-8")
    stem = module.rpartition("/")[2].removesuffix(".py")
    return f'"{stem}"' in text or f'"{stem.replace("_", "-")}"' in text


def own(module: str) -> str | None:
    """The test file of the module's name, if it is about this module: two may have one name."""
    test = tests().get(f"test_{module.rpartition('/')[2]}")
    return test if test and (module in reached(test) or names(test, module)) else None


def problems(table: dict[str, list[str]]) -> list[str]:
    """Where a module has no test, and where a row of the table is not true."""
    known = modules()
    found = []
    for module in known:
        if not table.get(module) and own(module) is None:
            name = module.rpartition("/")[2]
            found.append(f"{module}: neither test_{name} nor a row in tests/WHERE.toml")
    for module, named in table.items():
        if module not in known:
            found.append(f"{module}: no such module; remove the row")
            continue
        for test in named:
            if not (ROOT / test).is_file():
                found.append(f"{module}: there is no {test}")
            elif module not in reached(test) and not names(test, module):
                found.append(f"{module}: {test} does not reach it")
    return found


def main() -> int:
    """`python tests/tools/whereis.py MODULE`: the tests that hold it."""
    table = tomllib.loads(TABLE.read_text())
    for module in sys.argv[1:]:
        print(module, *filter(None, [own(module), *table.get(module, [])]))
    found = problems(table)
    print(*found, sep="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
