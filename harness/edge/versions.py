"""Collect the versions of the software for the incident."""

import platform
from functools import cache
from importlib import metadata
from typing import Any, Final

PACKAGES: Final = ("scapy", "pyserial", "pyvisa", "hyperscan", "crc32c", "msgspec", "pydantic")


@cache
def versions() -> dict[str, Any]:
    """Return the versions of FreezeFrame, Python, the kernel, and the packages that can influence
    an incident."""
    return {
        "freezeframe": _version("freezeframe"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
