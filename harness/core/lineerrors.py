"""What the serial driver of a line counted: Linux' ``struct serial_icounter_struct``, decoded. Pure.

A driver that counts nothing (a pseudo-terminal, a socket, some adapters) is no driver that counted
none: its line has no ``LineErrors`` at all.
"""

import struct
from typing import Annotated, Final, Self

import msgspec

COUNTERS: Final = struct.Struct("@11I36x")
"""include/uapi/linux/serial.h: cts, dsr, rng, dcd, rx, tx, frame, overrun, parity, brk, buf_overrun, and
nine reserved ints."""
MAX_COUNT: Final = (1 << 32) - 1
_FIRST: Final = 6
"""Of the error counters; those before count edges of modem lines, and bytes."""
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class LineErrors(msgspec.Struct, frozen=True, kw_only=True):
    """What the serial driver of a line counted: since its port was opened, or since an earlier reading."""

    framing: Count = 0
    """Characters without a stop bit: a wrong rate, noise, or a sender that was switched off."""
    overruns: Count = 0
    """Characters that the UART lost because nobody fetched those before in time."""
    parity: Count = 0
    breaks: Count = 0
    """BREAKs. They lose nothing."""
    buffer_overruns: Count = 0
    """Characters that the kernel's buffer had no room for."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """``data``: COUNTERS.size bytes. ValueError: there are fewer or more."""
        if len(data) != COUNTERS.size:
            raise ValueError(f"{len(data)} bytes are no counters of a serial line")
        framing, overruns, parity, breaks, full = COUNTERS.unpack(data)[_FIRST:]
        return cls(
            framing=framing, overruns=overruns, parity=parity, breaks=breaks, buffer_overruns=full
        )

    def since(self, earlier: "LineErrors") -> "LineErrors":
        """Return what was counted after an earlier reading of the same port."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(earlier), strict=True)
        return LineErrors(**dict(zip(NAMES, (_grown(*pair) for pair in pairs), strict=True)))

    def plus(self, other: "LineErrors") -> "LineErrors":
        """Return the sum, of a line that was opened again."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return LineErrors(**dict(zip(NAMES, map(sum, pairs), strict=True)))

    @property
    def losses(self) -> str:
        """Name what cost bytes, "3 overruns, 1 framing"; "": nothing did."""
        counts = zip(NAMES, msgspec.structs.astuple(self), strict=True)
        return ", ".join(
            f"{count} {name.replace('_', ' ')}"
            for name, count in counts
            if count and name != "breaks"
        )


NAMES: Final = LineErrors.__struct_fields__


def _grown(now: int, before: int) -> int:
    """Growth of a counter of 32 bits, which may have wrapped; one that was set back counts from 0."""
    grown = (now - before) & MAX_COUNT
    return grown if grown <= MAX_COUNT // 2 else now
