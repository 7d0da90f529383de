"""Write pcapng captures that a kill cannot damage, and read pcap and pcapng within limits.

The reader takes both byte orders, microseconds and nanoseconds, and the link types of
``core.link.linklayers``, whose frames it returns as Ethernet frames.

The writer passes whole runs of blocks (``core.skimpure``) to the kernel and buffers nothing.
Whenever the process is killed, the file contains complete blocks up to the last run. When the disk
is full it cuts the file back to the last complete run and stops. A file given up by ``retire`` is
overwritten in place: reusing its pages takes a fraction of the time of new ones. The old data
after the last run are separated by a block of length zero, where readers stop. The next run is
written first, its first type and length last. The reader returns runs.

pcapng: section header, one interface description (nanosecond times), one enhanced packet block per
frame, interface statistics at the end (draft-ietf-opsawg-pcapng). Times are CLOCK_REALTIME
nanoseconds.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from freezeframe.harness.core.link import linklayers
from freezeframe.harness.core.link.skim import Buffer, Run, blocks, encode, survey
from freezeframe.harness.core.link.skimpure import MAX_BLOCK_BYTES, MAX_FRAME_BYTES
from freezeframe.harness.errors import RigError, WireError

LINKTYPE_ETHERNET: Final = 1
_SHB, _IDB, _SPB, _ISB, _EPB = 0x0A0D0D0A, 1, 3, 5, 6
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_OPT_END, _OPT_COMMENT, _SHB_HARDWARE, _SHB_OS, _SHB_USERAPPL = 0, 1, 2, 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_TSOFFSET = 2, 3, 9, 14
_ISB_STARTTIME, _ISB_ENDTIME, _ISB_IFRECV, _ISB_IFDROP, _ISB_OSDROP = 2, 3, 4, 5, 7
_NANOSECONDS: Final = 9
"""if_tsresol: powers of ten."""
_DEFAULT_TSRESOL: Final = 6
_U32: Final = struct.Struct("<I")
_TWO: Final = struct.Struct("<II")
END: Final = bytes(8)
"""Marks the end of the data in an overwritten file, in place of the type and length of a block.
What follows belongs to the older file."""
_PAD: Final = (b"", b"\x00\x00\x00", b"\x00\x00", b"\x00")
"""Padding to a multiple of four, by ``length % 4``."""
_READ_BYTES: Final = 64 << 10
_RUN_FRAMES: Final = 4096
MAX_INTERFACES: Final = 256
_LINKTYPE_MASK: Final = 0x0FFFFFFF
"""The upper bits of pcap's field say how long a frame check sequence is."""
_Interface = tuple[int, int, int, int]
"""Units of time a second, offset in seconds, snap length, link type."""


class CapturedFrame(msgspec.Struct, frozen=True, eq=False):
    """A frame of a file. ``t_ns`` is CLOCK_REALTIME."""

    t_ns: int
    data: bytes
    original_length: int
    interface: int = 0


def option(code: int, value: bytes) -> bytes:
    """One option of a block: code, length, value, padding."""
    return struct.pack("<HH", code, len(value)) + value + _PAD[len(value) % 4]


def block(kind: int, body: bytes) -> bytes:
    """One block around ``body``, whose length is a multiple of four."""
    total = _U32.pack(12 + len(body))
    return _U32.pack(kind) + total + body + total


class PcapngWriter:
    """Writes a new file, or overwrites a retired one."""

    def __init__(
        self,
        path: Path,
        *,
        interface: str,
        snaplen_bytes: int,
        hardware: str,
        system: str,
        application: str,
        description: str = "",
        comment: str = "",
    ) -> None:
        """Create the file. Raises RigError."""
        self.path = path
        self.full = ""
        """Why no more is written; "": no problem."""
        self.frames = 0
        """Length of the data in the file."""
        self.size_bytes = 0
        try:
            self._older_bytes = path.stat().st_size if is_retired(path) else 0
            """Length of the older file while it is not completely overwritten."""
            flags = (
                os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if self._older_bytes else os.O_TRUNC)
            )
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise RigError(f"cannot write the capture file {path}: {error.strerror}") from error
        section = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
        section += option(_SHB_HARDWARE, hardware.encode()) + option(_SHB_OS, system.encode())
        section += option(_SHB_USERAPPL, application.encode())
        section += (option(_OPT_COMMENT, comment.encode()) if comment else b"") + option(
            _OPT_END, b""
        )
        described = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snaplen_bytes) + option(
            _IF_NAME, interface.encode()
        )
        if description:
            described += option(_IF_DESCRIPTION, description.encode())
        described += option(_IF_TSRESOL, bytes([_NANOSECONDS])) + option(_OPT_END, b"")
        self._put(block(_SHB, section) + block(_IDB, described))
        if self.full:
            os.close(self._fd)
            raise RigError(f"cannot write the capture file {path}: {self.full}")

    def write(self, run: Buffer, frames: int) -> bool:
        """Write a run of ``frames`` enhanced packet blocks. False: not written, and ``full`` gives
        the reason."""
        if self.full or not self._put(run):
            return False
        self.frames += frames
        return True

    def close(
        self, *, start_ns: int, end_ns: int, frames_received: int, frames_dropped: int
    ) -> None:
        """Write the interface statistics (realtime ns; frames dropped by the kernel) and close the
        file."""
        body = struct.pack("<III", 0, end_ns >> 32, end_ns & 0xFFFFFFFF)
        for code, t_ns in ((_ISB_STARTTIME, start_ns), (_ISB_ENDTIME, end_ns)):
            body += option(code, struct.pack("<II", t_ns >> 32, t_ns & 0xFFFFFFFF))
        for code, count in ((_ISB_IFRECV, frames_received), (_ISB_OSDROP, frames_dropped)):
            body += option(code, struct.pack("<Q", count))
        try:
            self._put(block(_ISB, body + option(_OPT_END, b"")))
            self.seal()
            os.fsync(self._fd)
        except OSError as error:
            self.full = self.full or str(error.strerror)
        finally:
            os.close(self._fd)

    def seal(self) -> None:
        """Cut off the rest of an older file. Raises OSError."""
        if self._older_bytes:
            os.ftruncate(self._fd, self.size_bytes)
            self._older_bytes = 0

    def abandon(self) -> None:
        """Close the file without statistics; another one continues the capture."""
        os.close(self._fd)

    def _put(self, data: Buffer) -> bool:
        """Write all of it or none; in the second case ``full`` gives the reason."""
        view, at = memoryview(data), self.size_bytes
        try:
            if at + len(view) + len(END) > self._older_bytes:
                self.seal()
                self._write(at, view)
            else:
                # A kill may interrupt both writes, but the second only between type and length.
                self._write(at + len(END), view[len(END) :], END)
                self._write(at, view[: len(END)])
        except OSError as error:
            self.full = str(error.strerror)
            # If the disk fails completely, readers stop at the incomplete block.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, at)
            return False
        self.size_bytes += len(view)
        return True

    def _write(self, at: int, *parts: Buffer) -> None:
        written = os.pwritev(self._fd, parts, at)
        if written < sum(map(len, parts)):  # a signal or the end of the disk
            self._write(at + written, b"".join(parts)[written:])


def retire(path: Path) -> None:
    """Mark the capture file as free to be overwritten, also after a kill."""
    with path.open("r+b", buffering=0) as file:
        file.write(END)


def is_retired(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(END)) == END
    except FileNotFoundError:
        return False


# --- reading ------------------------------------------------------------------------------------------------

_PCAP_MAGICS: Final[dict[bytes, tuple[str, int]]] = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
"""First four bytes of a pcap file -> byte order, nanoseconds per unit of the fraction."""
_EPB_FIELDS: Final = {order: struct.Struct(order + "IIIII") for order in "<>"}
"""Interface, time (high, low), captured and original length."""
_NS_PER_S: Final = 1_000_000_000
_MAX_TIME_NS: Final = (1 << 63) - 1
"""A file's unit and offset can say any time; one that no clock gives (before 1970, after 2262) becomes
the nearest that a capture file of ours can hold."""
_SHB_BYTES: Final = b"\x0a\x0d\x0d\x0a"


def read_frames(path: Path) -> Iterator[CapturedFrame]:
    """Yield the frames of a pcap or pcapng file, in order, as Ethernet frames.

    A file of a killed writer ends after its last complete frame. Raises RigError when it cannot be
    opened, WireError when it is not a capture of a link type that is read.
    """
    with _opened(path) as file:
        yield from frames_of(file, str(path))


def read_runs(path: Path) -> Iterator[Run]:
    """Yield the same frames in runs, which is several times faster. Each run is valid as long as
    it is referenced."""
    with _opened(path) as file:
        yield from runs_of(file, str(path))


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise RigError(f"cannot read the capture {path}: {error.strerror}") from error


def frames_of(file: BinaryIO, name: str) -> Iterator[CapturedFrame]:
    """Like ``read_frames``, for an open file; ``name`` is used in errors."""
    for part in _parts(file, name, False):
        if isinstance(part, CapturedFrame):
            yield part
        else:
            yield from run_frames(part)


def run_frames(run: Run) -> Iterator[CapturedFrame]:
    view = memoryview(run.data)
    for at, captured, original, t_ns in blocks(view):
        yield CapturedFrame(t_ns, bytes(view[at : at + captured]), original)


def runs_of(file: BinaryIO, name: str, *, is_growing: bool = False) -> Iterator[Run]:
    """Like ``read_runs``, for an open file. The interface of a frame is lost if there are several.

    ``is_growing``: the file may be, or may have been, overwritten; it ends at the mark of its
    writer. Otherwise such a place is damage and raises WireError.
    """
    single: list[CapturedFrame] = []
    try:
        for part in _parts(file, name, is_growing):
            if single and (not isinstance(part, CapturedFrame) or len(single) >= _RUN_FRAMES):
                yield _as_run(single)
                single = []
            if isinstance(part, CapturedFrame):
                single.append(part)
            else:
                yield part
    except WireError:
        if single:
            yield _as_run(single)  # what stands before the damage
        raise
    if single:
        yield _as_run(single)


def _as_run(frames: list[CapturedFrame]) -> Run:
    data = encode((one.t_ns, one.data, one.original_length) for one in frames)
    size = sum(len(one.data) for one in frames)
    return Run(data, len(frames), size, frames[0].t_ns, frames[-1].t_ns)


def _parts(file: BinaryIO, name: str, is_growing: bool) -> Iterator[Run | CapturedFrame]:
    """Yield runs where the blocks of the file have the required form, otherwise single frames."""
    magic = file.read(4)
    if magic in _PCAP_MAGICS:
        yield from _read_pcap(file, *_PCAP_MAGICS[magic])
    elif magic == _SHB_BYTES:
        yield from _read_pcapng(file, magic, is_growing)
    else:
        raise WireError(f"{name} is neither pcap nor pcapng", 0, magic)


def _read_pcap(file: BinaryIO, order: str, unit_ns: int) -> Iterator[CapturedFrame]:
    header = file.read(20)
    if len(header) < 20:
        return
    linktype = struct.unpack_from(order + "I", header, 16)[0] & _LINKTYPE_MASK
    _check_linktype(linktype, 20, header[16:20])
    record = struct.Struct(order + "IIII")
    while len(head := file.read(record.size)) == record.size:
        seconds, fraction, length, original = record.unpack(head)
        if length > MAX_FRAME_BYTES:
            raise WireError(
                f"frame of {length} bytes, at most {MAX_FRAME_BYTES}", file.tell() - 16, head
            )
        data = file.read(length)
        if len(data) < length:
            return
        t_ns = seconds * 1_000_000_000 + fraction * unit_ns
        yield CapturedFrame(t_ns, linklayers.ethernet(linktype, data), original)


def _read_pcapng(file: BinaryIO, data: bytes, is_growing: bool) -> Iterator[Run | CapturedFrame]:
    """``data``: bytes already read."""
    section, at, start = _Section(), 0, 0
    """Position in ``data``, and its offset in the file."""
    while True:
        if section.is_plain:
            end, frames, bytes_captured, t_first_ns, t_last_ns = survey(data, at, _RUN_FRAMES)
            if frames:
                yield Run(memoryview(data)[at:end], frames, bytes_captured, t_first_ns, t_last_ns)
                at = end
                continue
        kind, length = data[at : at + 4], data[at + 4 : at + 8]
        if is_growing and END[:4] in (kind, length):
            return
        whole = section.block(data, at, start)
        if whole is None:
            more = file.read(_READ_BYTES)
            if not more:
                return
            data, at, start = data[at:] + more, 0, start + at
            continue
        found = section.take(data, at, whole, start)
        if found is not None:
            yield found
        at += whole


class _Section:
    """Byte order and interfaces of the present section."""

    def __init__(self) -> None:
        self._order = "<"
        self._interfaces: list[_Interface] = []

    @property
    def is_plain(self) -> bool:
        """Its packets of interface 0 have the form of a run."""
        first = self._interfaces[0] if self._interfaces else None
        is_ours = first is not None and first[:2] == (_NS_PER_S, 0)
        return (
            self._order == "<" and first is not None and is_ours and first[3] == LINKTYPE_ETHERNET
        )

    def block(self, data: bytes, at: int, start: int) -> int | None:
        """Return the length of the block at ``data[at]``; None: it is incomplete. Raises WireError
        if the length is impossible."""
        is_section = data[at : at + 4] == _SHB_BYTES
        if len(data) - at < (12 if is_section else 8):
            return None
        if is_section:
            magic = data[at + 8 : at + 12]
            self._order, self._interfaces = (
                ("<" if magic == _U32.pack(_BYTE_ORDER_MAGIC) else ">"),
                [],
            )
            if struct.unpack(self._order + "I", magic)[0] != _BYTE_ORDER_MAGIC:
                raise WireError(
                    "section header without its byte-order magic", start + at, data[at : at + 12]
                )
        (total,) = struct.unpack_from(self._order + "I", data, at + 4)
        if total < 12 or total % 4 or total > MAX_BLOCK_BYTES:
            raise WireError(f"block of {total} bytes", start + at, data[at : at + 8])
        return int(total) if at + total <= len(data) else None

    def take(self, data: bytes, at: int, total: int, start: int) -> CapturedFrame | None:
        (kind,) = struct.unpack_from(self._order + "I", data, at)
        end = at + total
        if data[end - 4 : end] != data[at + 4 : at + 8]:
            raise WireError(
                "the two lengths of a block differ",
                start + at,
                data[at : at + 8] + data[end - 4 : end],
            )
        if kind == _EPB:
            return _enhanced_packet(data[at + 8 : end], self._order, self._interfaces, start + at)
        body = data[at + 8 : end - 4]
        if kind == _IDB and len(body) >= 8:
            self._interfaces.append(_interface(body, self._order, start + at))
            if len(self._interfaces) > MAX_INTERFACES:
                raise WireError(f"more than {MAX_INTERFACES} interfaces", start + at, body[:8])
        elif kind == _SPB and len(body) >= 4:
            original = struct.unpack_from(self._order + "I", body)[0]
            snaplen = self._interfaces[0][2] if self._interfaces else 0
            linktype = self._interfaces[0][3] if self._interfaces else LINKTYPE_ETHERNET
            captured = min(original, snaplen or original, len(body) - 4, MAX_FRAME_BYTES)
            return CapturedFrame(0, linklayers.ethernet(linktype, body[4 : 4 + captured]), original)
        return None


def first_packet_at(data: Buffer | mmap.mmap) -> int:
    """Return the offset of the first packet in a file of ``PcapngWriter``."""
    at = 0
    while at + 8 <= len(data):
        kind, total = _TWO.unpack_from(data, at)
        if kind not in (_SHB, _IDB) or not 12 <= total <= len(data) - at:
            break
        at += total
    return at


def whole_to(data: Buffer | mmap.mmap, at: int) -> int:
    """Return the end of the last complete block, from the packets at ``at`` on."""
    at = survey(memoryview(data), at, len(data))[0]
    while at + 12 <= len(data):
        _, total = _TWO.unpack_from(data, at)
        if not 12 <= total <= len(data) - at:
            break
        at += total
    return at


def _check_linktype(linktype: int, at: int, excerpt: bytes) -> None:
    if linktype not in linklayers.SUPPORTED:
        known = ", ".join(f"{name} ({number})" for number, name in sorted(linklayers.NAMES.items()))
        raise WireError(f"link type {linktype} is not read; read are {known}", at, excerpt)


def _interface(body: bytes, order: str, at: int) -> _Interface:
    linktype, _, snaplen = struct.unpack_from(order + "HHI", body)
    _check_linktype(linktype, at, body[:8])
    resolution, offset_s = _DEFAULT_TSRESOL, 0
    position = 8
    while position + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, position)
        value = body[position + 4 : position + 4 + length]
        if code == _OPT_END:
            break
        if code == _IF_TSRESOL and len(value) == 1:
            resolution = value[0]
        elif code == _IF_TSOFFSET and len(value) == 8:
            offset_s = struct.unpack(order + "q", value)[0]
        position += 4 + (length + 3 & ~3)
    units = 1 << (resolution & 0x7F) if resolution & 0x80 else 10 ** (resolution & 0x7F)
    return units, offset_s, snaplen, linktype


def _enhanced_packet(
    body: bytes, order: str, interfaces: list[_Interface], at: int
) -> CapturedFrame:
    """``body`` includes the second length of the block."""
    if len(body) < 24:
        raise WireError("enhanced packet block without its header", at, body)
    number, high, low, length, original = _EPB_FIELDS[order].unpack_from(body)
    if number >= len(interfaces):
        raise WireError(f"packet of interface {number}, which is not described", at, body[:20])
    if length > len(body) - 24 or length > MAX_FRAME_BYTES:
        raise WireError(f"packet of {length} bytes in a block of {len(body) - 4}", at, body[:20])
    units, offset_s, _, linktype = interfaces[number]
    ticks = high << 32 | low
    if units != _NS_PER_S:
        ticks = ticks * _NS_PER_S // units
    t_ns = min(max(offset_s * _NS_PER_S + ticks, 0), _MAX_TIME_NS)
    data = linklayers.ethernet(linktype, body[20 : 20 + length])
    return CapturedFrame(t_ns, data, original, number)
