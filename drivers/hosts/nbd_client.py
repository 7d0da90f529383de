"""The client side of NBD: one fixed-newstyle session. No I/O: bytes in, replies out. Table:
harness/wire/nbd.py."""

from dataclasses import dataclass
from typing import Final, Literal

from freezeframe.harness.errors import WireError
from freezeframe.harness.wire import nbd

Command = Literal["read", "write", "flush", "trim"]
COMMANDS: Final[dict[Command, int]] = {
    "read": nbd.Command.READ,
    "write": nbd.Command.WRITE,
    "flush": nbd.Command.FLUSH,
    "trim": nbd.Command.TRIM,
}
MAX_REPLY_BYTES: Final = 64 << 10
"""Limit for an option reply: a name of 4096 bytes, or the text of an error."""
MAX_OPTION_REPLIES: Final = 64
DISCONNECT: Final = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.Command.DISC, 0, 0, 0)

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request."""

    cookie: int
    error: int
    """0, or an NBD error number (nbd.Error, as errno)."""
    data: bytes = b""
    """The bytes of a read."""


class NbdClientSession:
    """One session, from greeting to disconnection. Pass in what the server sent; send what
    ``take_output`` and ``request`` return.

    Raises WireError on everything that the protocol does not allow; the session is unusable
    afterwards.
    """

    def __init__(self, export_name: str) -> None:
        name = export_name.encode()
        if len(name) > nbd.MAX_NAME_BYTES:
            raise ValueError(f"export name of {len(name)} bytes")
        self.ready = False
        """The handshake is over; the four values below are known."""
        self.size_bytes = 0
        self.flags = 0
        """nbd.Transmission"""
        self.min_block_bytes = nbd.MIN_BLOCK_BYTES
        self.max_request_bytes = nbd.MAX_REQUEST_BYTES
        infos = (nbd.Info.EXPORT, nbd.Info.BLOCK_SIZE)
        go = len(name).to_bytes(4, "big") + name + len(infos).to_bytes(2, "big")
        go += b"".join(info.to_bytes(2, "big") for info in infos)
        self._go = nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.Option.GO, len(go)) + go
        self._greeted = False
        self._option_replies = 0
        self._out = b""
        self._held = b""
        self._received_bytes = 0
        # Cookie -> bytes that its reply brings. The server may answer in any order.
        self._awaited: dict[int, int] = {}
        self._next_cookie = 1
        # The read whose data is coming: cookie, bytes missing, pieces so far.
        self._reading: tuple[int, int] | None = None
        self._pieces: list[bytes | memoryview] = []

    @property
    def outstanding(self) -> int:
        """Number of requests without a complete reply."""
        return len(self._awaited) + (self._reading is not None)

    def request(
        self, command: Command, offset_bytes: int, length_bytes: int, *, fua: bool = False
    ) -> tuple[int, bytes]:
        """Return cookie and header of a new request. The data of a write must follow the header on
        the wire."""
        cookie = self._next_cookie
        self._next_cookie += 1
        self._awaited[cookie] = length_bytes if command == "read" else 0
        flags = nbd.CommandFlag.FUA if fua else 0
        header = nbd.REQUEST.pack(
            nbd.REQUEST_MAGIC, flags, COMMANDS[command], cookie, offset_bytes, length_bytes
        )
        return cookie, header

    def take_output(self) -> bytes:
        """Return the handshake bytes to send since the last call."""
        out, self._out = self._out, b""
        return out

    def feed(self, data: bytes) -> list[Completion]:
        """Process bytes of the server; return the requests completed by them."""
        done: list[Completion] = []
        if not self.ready:
            self._held += data
            data = b""
            while not self.ready and self._step_handshake():
                pass
            if self.ready:
                data, self._held = self._held, b""
        if data:
            self._feed_replies(data, done)
        return done

    # --- handshake ----------------------------------------------------------------------------------------

    def _consume(self, length: int) -> bytes:
        taken, self._held = self._held[:length], self._held[length:]
        self._received_bytes += length
        return taken

    def _wrong(self, what: str, excerpt: bytes) -> WireError:
        return WireError(f"NBD server: {what}", self._received_bytes, excerpt)

    def _step_handshake(self) -> bool:
        """Process one message; False: more bytes are needed."""
        if not self._greeted:
            if len(self._held) < nbd.GREETING.size:
                return False
            magic, option_magic, flags = nbd.GREETING.unpack_from(self._held)
            if (magic, option_magic) != (nbd.INIT_MAGIC, nbd.OPTION_MAGIC):
                raise self._wrong("no newstyle greeting", self._held)
            if not flags & nbd.Handshake.FIXED_NEWSTYLE:
                raise self._wrong("does not speak fixed newstyle", self._held)
            self._consume(nbd.GREETING.size)
            agreed = flags & (nbd.Handshake.FIXED_NEWSTYLE | nbd.Handshake.NO_ZEROES)
            self._out += nbd.CLIENT_FLAGS.pack(agreed) + self._go
            self._greeted = True
            return True
        if len(self._held) < nbd.OPTION_REPLY.size:
            return False
        magic, option, kind, length = nbd.OPTION_REPLY.unpack_from(self._held)
        self._option_replies += 1
        if magic != nbd.OPTION_REPLY_MAGIC or option != nbd.Option.GO or length > MAX_REPLY_BYTES:
            raise self._wrong("damaged option reply", self._held)
        if self._option_replies > MAX_OPTION_REPLIES:
            raise self._wrong("endless option replies", self._held)
        if len(self._held) < nbd.OPTION_REPLY.size + length:
            self._option_replies -= 1
            return False
        payload = self._consume(nbd.OPTION_REPLY.size + length)[nbd.OPTION_REPLY.size :]
        self._take_option_reply(kind, payload)
        return True

    def _take_option_reply(self, kind: int, payload: bytes) -> None:
        if kind & nbd.REP_ERROR:
            text = payload[:200].decode("utf-8", "replace")
            reason = "unknown export" if kind == nbd.Rep.ERR_UNKNOWN else f"option error {kind:#x}"
            raise self._wrong(
                f"refuses the export: {reason} {ascii(text) if text else ''}".rstrip(), payload
            )
        if kind == nbd.Rep.INFO and payload[:2] == nbd.Info.EXPORT.to_bytes(2, "big"):
            if len(payload) != nbd.INFO_EXPORT.size:
                raise self._wrong("damaged export information", payload)
            _, self.size_bytes, self.flags = nbd.INFO_EXPORT.unpack(payload)
        elif kind == nbd.Rep.INFO and payload[:2] == nbd.Info.BLOCK_SIZE.to_bytes(2, "big"):
            if len(payload) != nbd.INFO_BLOCK_SIZE.size:
                raise self._wrong("damaged block size information", payload)
            _, self.min_block_bytes, _, largest = nbd.INFO_BLOCK_SIZE.unpack(payload)
            if not 0 < self.min_block_bytes <= largest:
                raise self._wrong("impossible block sizes", payload)
            self.max_request_bytes = min(largest, nbd.MAX_REQUEST_BYTES)
        elif kind == nbd.Rep.ACK:
            if not self.flags & nbd.Transmission.HAS_FLAGS:
                raise self._wrong("said nothing of the export", payload)
            self.ready = True
        elif kind != nbd.Rep.INFO:
            raise self._wrong(f"option reply of unknown type {kind}", payload)

    # --- transmission -------------------------------------------------------------------------------------

    def _feed_replies(self, data: bytes, done: list[Completion]) -> None:
        at = 0
        end = len(data)
        while at < end:
            if self._reading is not None:
                at += self._feed_read(memoryview(data)[at:], done)
                continue
            taken = min(nbd.SIMPLE_REPLY.size - len(self._held), end - at)
            self._held += data[at : at + taken]
            at += taken
            if len(self._held) < nbd.SIMPLE_REPLY.size:
                break
            magic, error, cookie = nbd.SIMPLE_REPLY.unpack(self._held)
            length = self._awaited.pop(cookie, None)
            if magic != nbd.SIMPLE_REPLY_MAGIC:
                raise self._wrong("damaged reply", self._held)
            if length is None:
                raise self._wrong(f"reply to a request {cookie} that was not made", self._held)
            self._consume(nbd.SIMPLE_REPLY.size)
            if length and not error:
                self._reading = (cookie, length)
            else:
                done.append(Completion(cookie, error))

    def _feed_read(self, data: memoryview, done: list[Completion]) -> int:
        """Pass ``data`` to the read that waits for it; return the number of bytes used."""
        assert self._reading is not None
        cookie, missing = self._reading
        piece = data[:missing]
        self._pieces.append(piece)
        self._received_bytes += len(piece)
        self._reading = (cookie, missing - len(piece))
        if len(piece) == missing:
            done.append(Completion(cookie, 0, b"".join(self._pieces)))
            self._pieces.clear()
            self._reading = None
        return len(piece)
