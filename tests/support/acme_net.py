"""What a stranger adds to the scaffold of `driver new acme`: the data sets are pulled over the network,
with a password. The test copies this file into the package as ``netdriver.py``."""

import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from acme_pair.driver import AcmeDriver  # type: ignore[import-not-found,unused-ignore]

from freezeframe.driver import Ns, RigError, RootCauseSet, Secret, SetEntry, WireError


class AcmeNet(AcmeDriver):  # type: ignore[misc,unused-ignore]
    @dataclass(frozen=True)
    class Options:
        dump: str
        """HOST:PORT of the dump service."""
        password: Secret

    def __init__(self, *args: Any, options: Options, **kwargs: Any) -> None:
        super().__init__(*args, options=AcmeDriver.Options(), **kwargs)
        self.dump = options

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: Ns, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        host, _, port = self.dump.dump.rpartition(":")
        stored = bytearray(have)
        try:
            left_s = max(0.1, (deadline_ns - time.monotonic_ns()) / 1e9)
            with socket.create_connection((host, int(port)), timeout=left_s) as service:
                ask = f"{self.dump.password.reveal()} {entry.set_id} {len(stored)}\n"
                service.sendall(ask.encode())
                while data := service.recv(4096):
                    stored += data
                    progress(data)
        except OSError as error:
            raise RigError(f"{self.side}: the dump service {self.dump.dump}: {error}") from error
        if len(stored) != entry.stored_bytes:
            raise RigError(f"{self.side}: {len(stored)} of {entry.stored_bytes} bytes came")
        if hashlib.sha256(stored).hexdigest() != entry.sha256:
            raise WireError("the set is not the one that was listed")
        found: RootCauseSet = self.decode_set(bytes(stored), self.serial_number)
        return found
