"""Report to the service manager (systemd) that started this process, if one did: the datagrams of
sd_notify(3)."""

import contextlib
import os
import socket
from collections.abc import MutableMapping
from typing import Final

from freezeframe.harness.core.text import escape

MAX_STATUS_CHARS: Final = 500
VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """Where nobody listens, nothing is sent; an error is none of the caller's concern."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Take the variables out of the environment: they are not for the processes that this one
        starts."""
        found = {name: environment.pop(name, "") for name in VARIABLES}
        address = found["NOTIFY_SOCKET"]
        is_service = environment.get("SYSTEMD_EXEC_PID") == str(os.getpid())
        self.has_started_us = bool(address) or is_service
        """The process itself was started by a service manager, not typed by a person."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_ours = found["WATCHDOG_PID"] in ("", str(os.getpid()))
        wanted = found["WATCHDOG_USEC"]
        self.watchdog_s = int(wanted) / 1e6 if is_ours and wanted.isdecimal() else 0.0
        """A ``WATCHDOG=1`` is expected at least so often; 0: none is."""

    @property
    def is_there(self) -> bool:
        return bool(self._address)

    def send(self, *lines: str, wait_s: float = 0.0) -> bool:
        """Send assignments, ``READY=1``, in one datagram; return whether it went out. ``wait_s``: for a
        manager that is busy."""
        if not self._address:
            return False
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as one:
            one.settimeout(wait_s)
            one.sendto("\n".join(lines).encode(), self._address)
            return True
        return False

    def status(self, text: str) -> str:
        """Return the assignment that shows ``text`` in ``systemctl status``."""
        return f"STATUS={escape(text)[:MAX_STATUS_CHARS]}"
