"""The scripted host of ``world.py``: a minimal NBD client, fed with bytes, that notes when each
request is answered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.wire import nbd

COMMANDS: Final = {
    "read": nbd.Command.READ,
    "write": nbd.Command.WRITE,
    "flush": nbd.Command.FLUSH,
    "trim": nbd.Command.TRIM,
    "write_zeroes": nbd.Command.WRITE_ZEROES,
}
LOST: Final = -1
"""``HostRequest.error`` of a request whose session ended without an answer."""


@dataclass(eq=False)
class HostRequest:
    """One request of the host and what came of it."""

    number: int
    kind: str
    offset_bytes: int
    length_bytes: int
    data: bytes = b""
    done: bool = False
    error: int = 0
    result: bytes = b""

    def overlaps(self, other: "HostRequest") -> bool:
        return (
            self.kind != "flush"
            and self.offset_bytes < other.offset_bytes + other.length_bytes
            and other.offset_bytes < self.offset_bytes + self.length_bytes
        )


class HostClient:
    """One NBD session. Requests may be made before the handshake is through; they leave after
    it."""

    def __init__(self, send: Callable[[bytes], None], done: Callable[[HostRequest], None]) -> None:
        self._send = send
        self._done = done
        self._held = b""
        self._phase = self._greeting
        self._waiting: list[bytes] = []
        self._open: dict[int, HostRequest] = {}
        self._next = 1
        self._up = False

    def request(
        self,
        kind: str,
        offset_bytes: int,
        length_bytes: int,
        data: bytes = b"",
        *,
        fua: bool = False,
    ) -> HostRequest:
        made = HostRequest(self._next, kind, offset_bytes, length_bytes, data)
        self._next += 1
        self._open[made.number] = made
        flags = nbd.CommandFlag.FUA if fua else 0
        wire = nbd.REQUEST.pack(
            nbd.REQUEST_MAGIC, flags, COMMANDS[kind], made.number, offset_bytes, length_bytes
        )
        if self._up:
            self._send(wire + data)
        else:
            self._waiting.append(wire + data)
        return made

    def feed(self, data: bytes) -> None:
        self._held += data
        while self._phase():
            pass

    def lost(self) -> None:
        """The session is gone: what was not answered has failed."""
        for request in self._open.values():
            request.done, request.error = True, LOST
        self._open.clear()

    def _take(self, length_bytes: int) -> bytes | None:
        if len(self._held) < length_bytes:
            return None
        taken, self._held = self._held[:length_bytes], self._held[length_bytes:]
        return taken

    def _greeting(self) -> bool:
        if self._take(nbd.GREETING.size) is None:
            return False
        flags = nbd.Handshake.FIXED_NEWSTYLE | nbd.Handshake.NO_ZEROES
        go = bytes(6)  # The default export's empty name, and no information asked for.
        self._send(
            nbd.CLIENT_FLAGS.pack(flags)
            + nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.GO, len(go))
            + go
        )
        self._phase = self._option_reply
        return True

    def _option_reply(self) -> bool:
        if len(self._held) < nbd.OPTION_REPLY.size:
            return False
        _, _, kind, length = nbd.OPTION_REPLY.unpack_from(self._held)
        if self._take(nbd.OPTION_REPLY.size + length) is None:
            return False
        if kind == nbd.Rep.ACK:
            self._up = True
            self._phase = self._reply
            self._send(b"".join(self._waiting))
            self._waiting.clear()
        return True

    def _reply(self) -> bool:
        if len(self._held) < nbd.SIMPLE_REPLY.size:
            return False
        _, error, number = nbd.SIMPLE_REPLY.unpack_from(self._held)
        request = self._open[number]
        size = request.length_bytes if request.kind == "read" and not error else 0
        if len(self._held) < nbd.SIMPLE_REPLY.size + size:
            return False
        self._take(nbd.SIMPLE_REPLY.size)
        request.result = self._take(size) or b""
        del self._open[number]
        request.done, request.error = True, error
        self._done(request)
        return True
