"""Room for new incidents: old ones go, but of each kind the first and the newest stay."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from freezeframe.harness.incidents.index import Index, Indexed
from freezeframe.harness.incidents.store import OPEN, naming_errors

GIB: Final = 1 << 30
_GOING: Final = ".deleting-"
"""A folder on its way out: a crash leaves it, and the next pruning takes it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What pruning does."""

    total_bytes: int
    keep_bytes: int
    remove: tuple[tuple[str, int], ...]
    """(name, bytes), oldest first."""

    @property
    def left_bytes(self) -> int:
        return self.total_bytes - sum(size for _, size in self.remove)

    @property
    def is_enough(self) -> bool:
        return self.left_bytes <= self.keep_bytes


def plan(incidents: list[Indexed], sizes: Mapping[str, int], keep_bytes: int) -> Plan:
    """``incidents`` oldest first. Kept whatever their size: the first and the newest of each kind,
    and open ones."""
    first: dict[str, str] = {}
    newest: dict[str, str] = {}
    for one in incidents:
        first.setdefault(one.signature, one.name)
        newest[one.signature] = one.name
    kept = {*first.values(), *newest.values()}
    left = sum(sizes.values())
    remove = []
    for one in incidents:
        if left <= keep_bytes:
            break
        if one.name not in kept and one.outcome != OPEN:
            remove.append((one.name, sizes[one.name]))
            left -= sizes[one.name]
    return Plan(total_bytes=sum(sizes.values()), keep_bytes=keep_bytes, remove=tuple(remove))


def prune(out_dir: Path, keep_bytes: int, *, dry_run: bool) -> Plan:
    """Remove what the plan says; with ``dry_run`` only tell."""
    with Index(out_dir) as index:
        incidents = index.incidents()
    made = plan(incidents, {one.name: size_of(out_dir / one.name) for one in incidents}, keep_bytes)
    if not dry_run:
        if out_dir.is_dir():
            for left_over in sorted(out_dir.glob(f"{_GOING}*")):
                _remove(left_over)
        for name, _ in made.remove:
            going = out_dir / (_GOING + name)
            with naming_errors(out_dir / name):
                (out_dir / name).rename(going)  # from here on it is no incident, whatever happens
            _remove(going)
    return made


def _remove(path: Path) -> None:
    with naming_errors(path):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)  # follows no links


def size_of(folder: Path) -> int:
    """Bytes of its files; links count as themselves."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:
                continue  # it went while we looked
    return total
