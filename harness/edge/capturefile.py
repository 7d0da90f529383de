"""A capture file with several interfaces and comments, written whole or not at all.

For exports: the capture process's own writer, which a kill must not spoil, is
``edge.pcapng.PcapngWriter``.
"""

import contextlib
import secrets
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from freezeframe.harness.core.events import Ns
from freezeframe.harness.edge.pcapng import block, option
from freezeframe.harness.errors import RigError

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_UPPER_PDU: Final = 252
"""LINKTYPE_WIRESHARK_UPPER_PDU: tags that name a dissector, then the bytes for it."""
_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_COMMENT, _END = 1, 0
_APPLICATION, _IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 4, 2, 3, 9
_SECTION_HEAD: Final = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
_PACKET_HEAD: Final = struct.Struct("<IIIII")
_TAG: Final = struct.Struct(">HH")
_TAG_END, _TAG_DISSECTOR, _TAG_PROTOCOL_COLUMN, _TAG_INFO_COLUMN = 0, 12, 33, 36
"""Tags of Wireshark (epan/exported_pdu.h). The column tags are supported from Wireshark 3.6 on and
ignored before."""
MAX_COMMENT_BYTES: Final = 4096
MAX_TAG_BYTES: Final = 1024
_LAST_TIME_NS: Final = (1 << 64) - 1


class CaptureFile:
    """Writes a capture file: call ``interface`` for each source, then ``packet`` in the order of
    time. A context manager."""

    def __init__(self, path: Path, *, application: str, comment: str) -> None:
        self.path = path
        self.packets = 0
        self._interfaces = 0
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        self._body = (
            _SECTION_HEAD + _comments([comment]) + option(_APPLICATION, application.encode())
        )

    def __enter__(self) -> Self:
        try:
            self._file = self._temporary.open("xb")
        except OSError as error:
            raise RigError(f"{self.path}: {error.strerror}") from error
        self._put(block(_SECTION, self._body + option(_END, b"")))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._temporary.replace(self.path)
        except OSError as problem:
            raise RigError(f"{self.path}: {problem.strerror}") from problem
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink()

    def interface(self, name: str, description: str, linktype: int) -> int:
        """Describe one source of packets and return its number."""
        body = struct.pack("<HHI", linktype, 0, 0)
        body += option(_IF_NAME, name.encode()) + option(_IF_DESCRIPTION, description.encode())
        body += option(_IF_TSRESOL, b"\x09") + option(_END, b"")
        self._put(block(_INTERFACE, body))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(
        self,
        interface: int,
        t_ns: Ns,
        data: bytes,
        *,
        original_length: int = 0,
        comments: tuple[str, ...] = (),
    ) -> None:
        """Append a packet. ``t_ns`` is CLOCK_REALTIME."""
        assert interface < self._interfaces
        t_ns = min(max(t_ns, 0), _LAST_TIME_NS)
        original = min(max(original_length, len(data)), 0xFFFFFFFF)
        body = _PACKET_HEAD.pack(interface, t_ns >> 32, t_ns & 0xFFFFFFFF, len(data), original)
        body += data + bytes(-len(data) % 4)
        if comments:
            body += _comments(comments) + option(_END, b"")
        self._put(block(_PACKET, body))
        self.packets += 1

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise RigError(f"{self.path}: {error.strerror}") from error


def upper_pdu(data: bytes, *, dissector: str, protocol: str, info: str) -> bytes:
    """Encode ``data`` for the dissector of that name, with the text for the columns Protocol and
    Info."""
    tags = ((_TAG_DISSECTOR, dissector), (_TAG_PROTOCOL_COLUMN, protocol), (_TAG_INFO_COLUMN, info))
    head = b""
    for tag, text in tags:
        value = text.encode(errors="replace")[:MAX_TAG_BYTES]
        value += bytes(-len(value) % 4 or 4)  # ends with at least one NUL
        head += _TAG.pack(tag, len(value)) + value
    return head + _TAG.pack(_TAG_END, 0) + data


def _comments(texts: tuple[str, ...] | list[str]) -> bytes:
    return b"".join(
        option(_COMMENT, text.encode(errors="replace")[:MAX_COMMENT_BYTES]) for text in texts
    )
