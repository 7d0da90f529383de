"""A disk that takes no more, for this process: files of others go on growing."""

import contextlib
import resource
from collections.abc import Iterator


def limit_files(size_bytes: int | None) -> None:
    """No file grows beyond that size: a write is cut short, and the next one fails. None: they may
    again."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size_bytes is None else size_bytes, hard))


@contextlib.contextmanager
def full_disk(size_bytes: int = 0) -> Iterator[None]:
    limit_files(size_bytes)
    try:
        yield
    finally:
        limit_files(None)
