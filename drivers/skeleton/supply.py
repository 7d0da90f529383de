"""The driver of a supply that powers both controllers. A bench file names it:

    [power]
    driver = "skeleton"
    resource = "10.10.7.20:5025"
    volts = 12.0
    limit_a = 3.0
    safe_state = "leave"

The supply of this skeleton answers lines of text over TCP:

    who                         a text
    limit primary 12.0 3.0      ok
    set primary 1               ok
    get primary                 0 or 1
    measure primary             volts and amperes, as measured
    anything else               error and why

Replace the lines by your supply's; keep what each method does.
"""

import socket
from collections.abc import Callable
from typing import Literal, Protocol

from freezeframe.driver import SIDES, HarnessError, RigError, Side, UsageError, WireError

TIMEOUT_S = 5.0
MAX_LINE_BYTES = 4096


class SupplyWire(Protocol):
    """What the driver needs of a TCP connection."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, max_bytes: int, /) -> bytes: ...
    def close(self) -> None: ...


def connect(resource: str) -> SupplyWire:
    """A connection to the supply. UsageError: it is no address; RigError: nobody is there."""
    host, _, port = resource.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{resource!r} is no address of a supply; expected: HOST:PORT")
    try:
        return socket.create_connection((host, int(port)), TIMEOUT_S)
    except OSError as error:
        raise RigError(f"supply {resource}: {error}; is it on, and in this network?") from error


class SkeletonSupply:
    """Plays ``PowerRail`` of freezeframe.driver."""

    def __init__(
        self,
        resource: str,
        *,
        volts: float,
        limit_a: float,
        safe_state: Literal["off", "leave"],
        connected: Callable[[str], SupplyWire] = connect,
    ) -> None:
        self.resource = resource
        self._safe_state = safe_state
        self._wire = connected(resource)
        try:
            for side in SIDES:
                self._tell(f"limit {side} {volts} {limit_a}")
        except BaseException:
            self._wire.close()
            raise

    def set_output(self, side: Side, on: bool) -> None:
        self._tell(f"set {side} {int(on)}")

    def output(self, side: Side) -> bool:
        answer = self._ask(f"get {side}")
        if answer not in ("0", "1"):
            raise WireError(f"supply {self.resource}: get {side} is answered by {answer!r}")
        return answer == "1"

    def measure(self, side: Side) -> tuple[float, float]:
        answer = self._ask(f"measure {side}")
        try:
            volts, amperes = (float(one) for one in answer.split())
        except ValueError as error:
            raise WireError(
                f"supply {self.resource}: measure {side} is answered by {answer!r}"
            ) from error
        return volts, amperes

    def identify(self) -> str:
        return self._ask("who")

    def close(self) -> None:
        """The safe state of the bench file. It is called on every exit. RigError names each output
        that may still be on: one that cannot be switched keeps no other from being switched."""
        failures = []
        try:
            if self._safe_state == "off":
                for side in SIDES:
                    try:
                        self.set_output(side, False)
                    except HarnessError as error:
                        failures.append(f"{side}: {error}")
        finally:
            self._wire.close()
        if failures:
            raise RigError(
                f"supply {self.resource} may still be on, switch it off by hand: "
                f"{'; '.join(failures)}"
            )

    def _tell(self, line: str) -> None:
        if (answer := self._ask(line)) != "ok":
            raise RigError(f"supply {self.resource}: {line}: {answer!r}")

    def _ask(self, line: str) -> str:
        try:
            self._wire.sendall(f"{line}\n".encode())
            data = bytearray()
            while not data.endswith(b"\n"):
                piece = self._wire.recv(MAX_LINE_BYTES)
                data += piece
                if not piece or len(data) > MAX_LINE_BYTES:
                    raise RigError(f"supply {self.resource}: no whole answer to {line!r}")
        except OSError as error:
            raise RigError(f"supply {self.resource}: {line}: {error}") from error
        answer = data.decode("ascii", "backslashreplace").strip()
        if answer.startswith("error"):
            raise RigError(f"supply {self.resource}: {line}: {answer!r}")
        return answer
