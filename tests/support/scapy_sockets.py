"""Scapy sockets as a driver may give them: a capture file, and one that fails."""

import os
from typing import Any

from scapy.utils import PcapReader


def from_file(_interface: str) -> Any:
    """The capture file that the environment names, whatever the interface."""
    return PcapReader(os.environ["SCAPY_SOURCE"])


def broken(interface: str) -> Any:
    raise OSError(f"no tap on {interface}")
