"""Which end of a session has proved what was read of the other.

After a hole, or where the capture begins in the middle, what looks like packets may be the data of a write:
a capture of DRBD that the host copies. An answer by the other end, with the block_id and the sector of a
write that was found, shows that both stand where the devices read and write.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Literal, Protocol

from freezeframe.harness.core.link.drbd.stream import DrbdStream

_MAX_OPEN: Final = 4096
"""Writes remembered; DRBD has at most 2,048 in an epoch."""


class ReadDirection(Protocol):
    """One direction of one socket."""

    sender: str
    stream: DrbdStream

    def bind(self, socket: Literal["data", "meta"]) -> None:
        """It is of this socket, ``data`` or ``meta``."""


class ProvingAnswers:
    """Of one session."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[bytes, int], tuple[ReadDirection, int]] = OrderedDict()

    def wrote(self, reader: ReadDirection, block_id: bytes, sector: int, offset: int) -> None:
        self._open[block_id, sector] = reader, offset
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)

    def answered(self, reader: ReadDirection, block_id: bytes, sector: int, offset: int) -> None:
        writer, written_at = self._open.pop((block_id, sector), (reader, 0))
        if writer.sender == reader.sender:
            return
        if writer.stream.prove(written_at):
            writer.bind("data")
        if reader.stream.prove(offset):
            reader.bind("meta")
