"""Write a file whole or not at all."""

import contextlib
import secrets
from pathlib import Path

from freezeframe.harness.errors import RigError


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step: an existing file stays until all of it is written.

    Raises RigError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        raise RigError(f"{path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
