"""A made-up volume for the tests: it answers the questions of ``host.py``, in memory. With none of your
own, delete this file and check the real one with ``freezeframe driver check NAME --bench FILE
--overwrite``.
"""

from freezeframe.testing import Case, HostCase

from .host import ANSWER, FLUSH, INFO, QUESTION, READ, TRIM, WRITE, SkeletonHost

SIZE_BYTES = 4 << 20


class VolumeInMemory:
    """The connection to a volume, and the volume behind it."""

    def __init__(self, size_bytes: int = SIZE_BYTES) -> None:
        self.content = bytearray(size_bytes)
        self._asked = bytearray()
        self._answered = bytearray()

    def sendall(self, data: bytes) -> None:
        self._asked += data
        while len(self._asked) >= QUESTION.size:
            operation, offset, length = QUESTION.unpack_from(self._asked)
            behind = length if operation == WRITE else 0
            if len(self._asked) < QUESTION.size + behind:
                return
            written = bytes(self._asked[QUESTION.size : QUESTION.size + behind])
            del self._asked[: QUESTION.size + behind]
            self._answered += self._answer(operation, offset, length, written)

    def recv(self, max_bytes: int) -> bytes:
        data = bytes(self._answered[:max_bytes])
        del self._answered[:max_bytes]
        return data

    def close(self) -> None: ...

    def _answer(self, operation: int, offset: int, length: int, written: bytes) -> bytes:
        if offset + length > len(self.content):
            return _packed(1, b"beyond the end")
        match operation:
            case n if n == INFO:
                return _packed(0, len(self.content).to_bytes(8, "big"))
            case n if n == READ:
                return _packed(0, self.content[offset : offset + length])
            case n if n == WRITE:
                self.content[offset : offset + length] = written
            case n if n == TRIM:
                self.content[offset : offset + length] = bytes(length)
            case n if n != FLUSH:
                return _packed(1, b"unknown operation")
        return _packed(0, b"")


def _packed(status: int, data: bytes | bytearray) -> bytes:
    return ANSWER.pack(status, len(data)) + bytes(data)


# --- what `freezeframe driver check` is given ----------------------------------------------------
def cases() -> list[Case]:
    port = SkeletonHost("skeleton://memory:1", connected=lambda _: VolumeInMemory())
    return [HostCase(port=port)]
