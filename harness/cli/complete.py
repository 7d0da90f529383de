"""Shell completion. It must be fast and never fail, so it imports no module of the bench."""

import contextlib
from importlib import resources
from pathlib import Path
from typing import Final

INCIDENTS_SHOWN: Final = 50
"""Only this many of the newest incidents are offered."""


def _built_in(folder: str) -> list[str]:
    with contextlib.suppress(OSError, ModuleNotFoundError):
        files = resources.files("freezeframe.bench_configs").joinpath(folder).iterdir()
        return sorted(
            file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")
        )
    return []


def is_built_in(folder: str, name: str) -> bool:
    """Whether ``name`` alone is enough to name it: a scenario ("scenarios"), or a bench (".")."""
    return name in _built_in(folder)


def _files(incomplete: str) -> list[str]:
    """Return TOML files, and directories that may contain some."""
    folder, _, start = incomplete.rpartition("/")
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).iterdir()):
            if path.name.startswith(start) and (
                path.suffix == ".toml" or (folder and path.is_dir())
            ):
                found.append(f"{folder}/{path.name}" if "/" in incomplete else path.name)
    return found


def _starting(words: list[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def scenarios(incomplete: str) -> list[str]:
    return _starting(_built_in("scenarios"), incomplete) + _files(incomplete)


def benches(incomplete: str) -> list[str]:
    return _starting(_built_in("."), incomplete) + _files(incomplete)


def sides(incomplete: str) -> list[str]:
    return _starting(["primary", "secondary"], incomplete)


def incidents(incomplete: str) -> list[str]:
    """Return incidents of the default folder."""
    with contextlib.suppress(OSError):
        names = sorted(
            (path.name for path in Path("incidents").iterdir() if path.is_dir()), reverse=True
        )
        return _starting(["last", *names[:INCIDENTS_SHOWN]], incomplete)
    return _starting(["last"], incomplete)
