"""The host port's protocol: one NBD fixed-newstyle server session. No I/O: bytes in, requests out.

The session decides alone what concerns only the protocol (handshake, refusals); whoever owns the
data answers the requests, in any order, with ``reply``. What the session decided to send lies in
``take_output``.
"""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from freezeframe.harness.wire import nbd

Kind = Literal["read", "write", "flush", "trim", "write_zeroes", "cache"]

KINDS: Final[dict[int, Kind]] = {
    nbd.Command.READ: "read",
    nbd.Command.WRITE: "write",
    nbd.Command.FLUSH: "flush",
    nbd.Command.TRIM: "trim",
    nbd.Command.WRITE_ZEROES: "write_zeroes",
    nbd.Command.CACHE: "cache",
}
CHANGING: Final = frozenset({"write", "trim", "write_zeroes"})
BULK: Final = frozenset({"trim", "write_zeroes", "cache"})
"""Requests that carry no data in either direction: the block size limit does not bind them, the
volume's size does."""
FUA: Final = int(nbd.CommandFlag.FUA)
NO_HOLE: Final = int(nbd.CommandFlag.NO_HOLE)
"""Plain integers: the inverse of an IntFlag knows only the named bits, and looking up an enum's
member takes a tenth of a microsecond."""
WRITE: Final = int(nbd.Command.WRITE)
DISC: Final = int(nbd.Command.DISC)
SERVER_FLAGS: Final = int(nbd.Handshake.FIXED_NEWSTYLE | nbd.Handshake.NO_ZEROES)
EXPORT_FLAGS: Final = int(
    nbd.Transmission.HAS_FLAGS
    | nbd.Transmission.SEND_FLUSH
    | nbd.Transmission.SEND_FUA
    | nbd.Transmission.SEND_TRIM
    | nbd.Transmission.SEND_WRITE_ZEROES
    | nbd.Transmission.CAN_MULTI_CONN
    | nbd.Transmission.SEND_CACHE
)


class Request(NamedTuple):
    """One command of the host, already checked against the volume's size, the block size and the
    access rights."""

    cookie: bytes
    """8 bytes of the client, given back in the reply."""
    kind: Kind
    offset_bytes: int
    """Multiple of 512; 0 for a flush."""
    length_bytes: int
    """Multiple of 512, > 0; 0 for a flush."""
    data: bytes = b""
    """A write's data, ``length_bytes`` long."""
    fua: bool = False
    """The reply may leave only when this request's data is on the medium."""
    no_hole: bool = False
    """write_zeroes: the space stays allocated."""


class NbdSession:
    """One client's session, from greeting to disconnection."""

    def __init__(self, size_bytes: int, read_only: bool = False, export_name: str = "") -> None:
        self.closed = False
        """Set by a disconnection or a violation: send ``take_output`` and close the socket."""
        self.read_only = read_only
        """May change while the session lasts: a write to a controller that is no longer primary
        gets EPERM."""
        self._size_bytes = size_bytes
        self._name = export_name.encode()
        self._out: list[bytes] = [nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, SERVER_FLAGS)]
        self._phase: Callable[[bytes | memoryview], list[Request]] = self._feed_client_flags
        self._held = b""
        self._no_zeroes = False
        self._options = 0
        # The write whose data is still coming: its header's fields, and what has come. Memory
        # follows what arrived, not what was announced.
        self._pending: tuple[int, int, int, int] | None = None
        self._payload = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Request]:
        """Take what the client sent; return the requests that it completed, in order."""
        if self.closed:
            return []
        return self._phase(data)

    def take_output(self) -> bytes:
        """What the session itself has to say since the last call."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def reply(
        self, request: Request, data: bytes | bytearray | memoryview = b"", error: int = 0
    ) -> bytes:
        """Bytes of the answer to ``request``. ``data``: a read's, of exactly its length, unless
        ``error`` (nbd.Error)."""
        expected_bytes = request.length_bytes if request.kind == "read" and not error else 0
        if len(data) != expected_bytes:
            raise ValueError(
                f"{request.kind} of {request.length_bytes} bytes answered with {len(data)}"
            )
        header = nbd.SIMPLE_REPLY.pack(
            nbd.SIMPLE_REPLY_MAGIC, error, int.from_bytes(request.cookie, "big")
        )
        return b"".join((header, data)) if data else header

    # --- handshake ----------------------------------------------------------------------------------------

    def _flags(self) -> int:
        return EXPORT_FLAGS | (nbd.Transmission.READ_ONLY if self.read_only else 0)

    def _feed_client_flags(self, data: bytes | memoryview) -> list[Request]:
        self._held += bytes(data)
        if len(self._held) < nbd.CLIENT_FLAGS.size:
            return []
        (flags,) = nbd.CLIENT_FLAGS.unpack_from(self._held)
        if flags & ~SERVER_FLAGS or not flags & nbd.Handshake.FIXED_NEWSTYLE:
            self.closed = True
            return []
        self._no_zeroes = bool(flags & nbd.Handshake.NO_ZEROES)
        return self._enter(self._feed_options, nbd.CLIENT_FLAGS.size)

    def _enter(
        self, phase: Callable[[bytes | memoryview], list[Request]], consumed_bytes: int
    ) -> list[Request]:
        rest, self._held = self._held[consumed_bytes:], b""
        self._phase = phase
        return phase(rest)

    def _feed_options(self, data: bytes | memoryview) -> list[Request]:
        self._held += bytes(data)
        while len(self._held) >= nbd.OPTION.size:
            magic, option, length = nbd.OPTION.unpack_from(self._held)
            self._options += 1
            if (
                magic != nbd.OPTION_MAGIC
                or length > nbd.MAX_OPTION_BYTES
                or self._options > nbd.MAX_OPTIONS
            ):
                self.closed = True
                return []
            end = nbd.OPTION.size + length
            if len(self._held) < end:
                self._options -= 1
                return []
            started = self._option(option, self._held[nbd.OPTION.size : end])
            if self.closed:
                return []
            if started:
                return self._enter(self._feed_requests, end)
            self._held = self._held[end:]
        return []

    def _option(self, option: int, data: bytes) -> bool:
        """Answer one option; True when transmission starts."""
        match option:
            case nbd.Option.EXPORT_NAME:
                return self._export_name(data)
            case nbd.Option.ABORT:
                self._answer(option, nbd.Rep.ACK)
                self.closed = True
            case nbd.Option.LIST if data:
                self._answer(option, nbd.Rep.ERR_INVALID)
            case nbd.Option.LIST:
                self._answer(
                    option, nbd.Rep.SERVER, len(self._name).to_bytes(4, "big") + self._name
                )
                self._answer(option, nbd.Rep.ACK)
            case nbd.Option.INFO | nbd.Option.GO:
                return self._info(option, data)
            case _:
                self._answer(option, nbd.Rep.ERR_UNSUP)
        return False

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._out.append(
            nbd.OPTION_REPLY.pack(nbd.OPTION_REPLY_MAGIC, option, kind, len(data)) + data
        )

    def _knows(self, name: bytes) -> bool:
        """The empty name asks for the default export, which is the only one."""
        return name in (b"", self._name)

    def _export_name(self, name: bytes) -> bool:
        # This option has no way to refuse but to hang up.
        if not self._knows(name):
            self.closed = True
            return False
        zeroes = b"" if self._no_zeroes else bytes(nbd.EXPORT_NAME_ZEROES)
        self._out.append(nbd.EXPORT_NAME_REPLY.pack(self._size_bytes, self._flags()) + zeroes)
        return True

    def _info(self, option: int, data: bytes) -> bool:
        """INFO or GO: u32 name length, name, u16 count of info types, u16 each."""
        name_end = 4 + int.from_bytes(data[:4], "big")
        count = int.from_bytes(data[name_end : name_end + 2], "big")
        if len(data) < 6 or len(data) != name_end + 2 + 2 * count:
            self._answer(option, nbd.Rep.ERR_INVALID)
            return False
        if not self._knows(data[4:name_end]):
            self._answer(option, nbd.Rep.ERR_UNKNOWN)
            return False
        self._answer(
            option,
            nbd.Rep.INFO,
            nbd.INFO_EXPORT.pack(nbd.Info.EXPORT, self._size_bytes, self._flags()),
        )
        # Told unasked too: proto.md allows it, and a client that ignores it gets EINVAL for what is
        # not aligned.
        block_size = nbd.INFO_BLOCK_SIZE.pack(
            nbd.Info.BLOCK_SIZE,
            nbd.MIN_BLOCK_BYTES,
            nbd.PREFERRED_BLOCK_BYTES,
            nbd.MAX_REQUEST_BYTES,
        )
        self._answer(option, nbd.Rep.INFO, block_size)
        self._answer(option, nbd.Rep.ACK)
        return option == nbd.Option.GO

    # --- transmission -------------------------------------------------------------------------------------

    def _feed_requests(self, data: bytes | memoryview) -> list[Request]:
        requests: list[Request] = []
        at = self._feed_payload(memoryview(data), requests)
        end = len(data)
        while at < end:
            if self._held or end - at < nbd.REQUEST.size:
                taken = min(nbd.REQUEST.size - len(self._held), end - at)
                self._held += bytes(data[at : at + taken])
                at += taken
                if len(self._held) < nbd.REQUEST.size:
                    break
                fields, self._held = nbd.REQUEST.unpack(self._held), b""
            else:
                fields = nbd.REQUEST.unpack_from(data, at)
                at += nbd.REQUEST.size
            magic, flags, command, cookie, offset, length = fields
            writes = command == WRITE
            if (
                magic != nbd.REQUEST_MAGIC
                or command == DISC
                or (writes and length > nbd.MAX_REQUEST_BYTES)
            ):
                self.closed = True
                break
            if writes and end - at < length:
                self._pending = (flags, cookie, offset, length)
                at += self._feed_payload(memoryview(data)[at:], requests)
                continue
            payload = bytes(data[at : at + length]) if writes else b""
            at += len(payload)
            self._complete(requests, command, flags, cookie, offset, length, payload)
        return requests

    def _feed_payload(self, data: memoryview, requests: list[Request]) -> int:
        """Give ``data`` to the write that waits for it, if any; return how many bytes it took."""
        if self._pending is None:
            return 0
        flags, cookie, offset, length = self._pending
        taken = data[: length - len(self._payload)]
        self._payload += taken
        if len(self._payload) == length:
            payload, self._payload, self._pending = bytes(self._payload), bytearray(), None
            self._complete(requests, WRITE, flags, cookie, offset, length, payload)
        return len(taken)

    def _complete(
        self,
        requests: list[Request],
        command: int,
        flags: int,
        cookie: int,
        offset: int,
        length: int,
        data: bytes = b"",
    ) -> None:
        """A whole request is here: hand it on, or refuse it."""
        kind = KINDS.get(command)
        error = nbd.Error.EINVAL if kind is None else self._refusal(kind, flags, offset, length)
        if kind is None or error:
            self._out.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie))
            return
        fua = bool(flags & FUA)
        no_hole = bool(flags & NO_HOLE)
        requests.append(
            Request(cookie.to_bytes(8, "big"), kind, offset, length, data, fua, no_hole)
        )

    def _refusal(self, kind: Kind, flags: int, offset: int, length: int) -> int:
        """0, or the error of proto.md, section "Error values"."""
        if flags & ~(FUA | NO_HOLE if kind == "write_zeroes" else FUA):
            return nbd.Error.EINVAL
        if kind == "flush":
            return nbd.Error.EINVAL if offset or length else 0
        if self.read_only and kind in CHANGING:
            return nbd.Error.EPERM
        if not length or (offset | length) % nbd.MIN_BLOCK_BYTES:
            return nbd.Error.EINVAL
        if length > nbd.MAX_REQUEST_BYTES and kind not in BULK:
            return nbd.Error.EINVAL
        if offset + length > self._size_bytes:
            return nbd.Error.ENOSPC if kind in ("write", "write_zeroes") else nbd.Error.EINVAL
        return 0
