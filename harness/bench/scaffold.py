"""A package with a working driver and a made-up device, to be changed into those of a new pair, host or
supply: ``freezeframe driver new NAME``. It is ``drivers/skeleton`` with another name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.registry import names
from freezeframe.harness.core.link import byname
from freezeframe.harness.errors import UsageError

DRIVERS: Final = "freezeframe.drivers"
CASES: Final = "freezeframe.cases"


@dataclass(frozen=True, kw_only=True)
class Template:
    """What a package of one kind is made of."""

    modules: tuple[str, ...]
    """The driver's first, the made-up device's last."""
    points: tuple[tuple[str, str], ...]
    """Entry-point group -> object of the package."""
    has_bench: bool = False
    """A bench file and rules come along."""

    @property
    def driver(self) -> str:
        """The module to change first."""
        return self.modules[0]


TEMPLATES: Final[Mapping[str, Template]] = {
    "pair": Template(
        modules=("driver.py", "link.py", "device.py"),
        points=(
            (DRIVERS, "driver:{Class}Driver"),
            ("freezeframe.links", "link:{Class}Link"),
            (CASES, "device:cases"),
        ),
        has_bench=True,
    ),
    "host": Template(
        modules=("host.py", "volume.py"),
        points=((DRIVERS, "host:{Class}Host"), (CASES, "volume:cases")),
    ),
    "supply": Template(
        modules=("supply.py", "outputs.py"),
        points=((DRIVERS, "supply:{Class}Supply"), (CASES, "outputs:cases")),
    ),
}
"""Kind of package -> what is in it."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{1,39}")

_PYPROJECT: Final = """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "{dashed}-{kind}"
version = "0.1"
requires-python = ">=3.11"
dependencies = ["freezeframe"]

{points}
[tool.setuptools]
packages = ["{name}_{kind}"]
"""
_METADATA: Final = "Metadata-Version: 2.1\nName: {dashed}-{kind}\nVersion: 0.1\n"
_TEST: Final = '''\
"""What this package gives to a bench keeps the promises of its role."""

import pytest

from freezeframe.testing import Case, check_case
from {name}_{kind}.{device} import cases


@pytest.mark.parametrize("case", cases(), ids=lambda case: type(case).__name__)
def test_the_promises_of_the_role_are_kept(case: Case) -> None:
    check_case(case)
'''
_BENCH: Final = """\
# Change what is yours; `freezeframe check bench.toml` says what is wrong, without touching the bench.
[bench]
name = "{name}"

[primary]
driver = "{name}"
serial_number = "SK-0001"
console = "socket://terminal-server.lab:4001"  # or /dev/serial/by-id/...
control = "socket://terminal-server.lab:4002"
host = "nbd://10.10.7.11:10809"
options = {{ read_bytes = 2048 }}

[secondary]
driver = "{name}"
serial_number = "SK-0002"
console = "socket://terminal-server.lab:4003"
control = "socket://terminal-server.lab:4004"
host = "nbd://10.10.7.12:10809"

[link]
interface = "eth1"
protocol = "{name}"
primary_address = "10.77.0.1"
secondary_address = "10.77.0.2"

[policy]
rules = ["rules.toml"]
"""
_RULES: Final = """\
# What is looked for. A link rule's event is one of `freezeframe`'s docs/bench-files.md.
[[rule]]
name = "digest-failed"
source = "console"
literal = "{name}: data error"

[[rule]]
name = "link-digest"
source = "link"
event = "digest-mismatch"

[[rule]]
name = "link-refused"
source = "link"
event = "neg-ack"
"""


def scaffold(name: str, kind: str = "pair") -> Mapping[str, str]:
    """Path in the new folder -> text. UsageError: the name does not fit, or is taken; or there is no
    such kind."""
    template = TEMPLATES.get(kind)
    if template is None:
        raise UsageError(f"{kind!r} is no kind of package; allowed: {', '.join(TEMPLATES)}")
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} is no name of a driver; allowed: 2 to 40 of a-z, 0-9 and _, a letter first"
        )
    if name in names() or name in byname.names():
        raise UsageError(f"{name!r} is the name of an installed driver or protocol; choose another")
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "Class": "".join(part.capitalize() for part in name.split("_") if part),
        "kind": kind,
        "device": template.modules[-1].removesuffix(".py"),
    }
    package = f"{name}_{kind}"
    points = [(group, f"{package}.{point.format(**words)}") for group, point in template.points]
    quoted = "\n".join(
        f'[project.entry-points."{group}"]\n{name} = "{point}"\n' for group, point in points
    )
    # What an installation would write: so the folder works on PYTHONPATH as well.
    metadata = f"{package}.egg-info"
    bench = {"bench.toml": _BENCH.format(**words), "rules.toml": _RULES.format(**words)}
    return {
        "pyproject.toml": _PYPROJECT.format(points=quoted, **words),
        f"{metadata}/PKG-INFO": _METADATA.format(**words),
        f"{metadata}/entry_points.txt": "".join(
            f"[{group}]\n{name} = {point}\n\n" for group, point in points
        ),
        **(bench if template.has_bench else {}),
        f"{package}/__init__.py": f'"""The {name} {kind} for FreezeFrame, and one that is made up."""\n',
        **{f"{package}/{module}": _renamed(module, words) for module in template.modules},
        f"tests/test_{name}.py": _TEST.format(**words),
    }


def _renamed(module: str, words: Mapping[str, str]) -> str:
    folder = resources.files("freezeframe").joinpath("drivers", "skeleton")
    text = folder.joinpath(module).read_text(encoding="utf-8")
    return text.replace("Skeleton", words["Class"]).replace("skeleton", words["name"])


def write_scaffold(name: str, parent: Path, kind: str = "pair") -> list[Path]:
    """Write the package into ``parent``/``name``, which must not exist. UsageError: it does, or it
    cannot be written."""
    folder, files = parent / name, scaffold(name, kind)
    try:
        folder.mkdir(parents=False)
        written = []
        for relative, text in files.items():
            path = folder / relative
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    return written
