"""A campaign's runs shared among processes: ``shared(run, numbers, processes)``."""

import multiprocessing
from collections.abc import Callable, Iterable
from typing import TypeVar

_N = TypeVar("_N")
_T = TypeVar("_T")
CHUNK = 8


def shared(run: Callable[[_N], _T], numbers: Iterable[_N], processes: int) -> list[_T]:
    """``run`` of each number, in their order. ``run`` and its results must be picklable."""
    if processes <= 1:
        return [run(number) for number in numbers]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return list(pool.imap(run, numbers, CHUNK))
