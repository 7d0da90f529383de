"""A volume that the host sees as a block device (iSCSI, Fibre Channel, a loop device), or as a
file.

Address: ``blockdev:///dev/disk/by-id/NAME?serial=SERIAL&size_bytes=N``. Writing to the wrong disk
destroys it. Therefore serial number and size are compared before a byte is written, and a device
in use by the machine itself (mounted, swap, part of another device) is refused. A file has no
serial number; its ``size_bytes`` is enough. I/O bypasses the page cache where possible (O_DIRECT):
reads return what the device holds, and an acknowledgement comes from the device.
"""

import contextlib
import errno
import mmap
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from freezeframe.drivers.hosts.nbd_client import Buffer, Command, Completion
from freezeframe.harness.errors import RigError, UsageError, WrongDeviceError
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

SCHEME: Final = "blockdev"
FORM: Final = "blockdev:///dev/disk/by-id/NAME?serial=SERIAL&size_bytes=N"
MAX_REQUEST_BYTES: Final = 32 << 20
PIECE_BYTES: Final = 1 << 20
"""Maximum length of one request, as for NbdHost; longer reads and writes are split."""
THREADS: Final = 16
"""Maximum number of requests in flight."""
_SERIAL_FILES: Final = ("serial", "device/serial", "device/wwid", "wwid", "loop/backing_file")
"""Files under /sys/class/block/NAME with the identity of a disk."""


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    path: str
    serial: str
    """"" only for a file."""
    size_bytes: int


def parse_uri(uri: str) -> DeviceAddress:
    """Parse an address. Raises UsageError: not of the form given in the module docstring."""
    parts = urlsplit(uri)
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    size = asked.get("size_bytes", "")
    known = set(asked) <= {"serial", "size_bytes"}
    if parts.scheme != SCHEME or parts.netloc or not parts.path.startswith("/") or not known:
        raise UsageError(f"{uri!r} is not the address of a block device: {FORM}")
    if not size.isdecimal() or not 0 < int(size) < 1 << 60:
        raise UsageError(
            f"{uri!r} needs size_bytes=N, the size of the device: writing to a wrong device destroys it"
        )
    return DeviceAddress(unquote(parts.path), asked.get("serial", ""), int(size))


def identified(address: DeviceAddress) -> os.stat_result:
    """Check the device without opening it for writing. Raises WrongDeviceError when it is not the
    one in the bench file, RigError when the machine itself uses it."""
    with _translated(address.path):
        seen = Path(address.path).stat()
        if stat.S_ISBLK(seen.st_mode):
            _check_serial(address, seen)
            _check_unused(address, seen)
        elif not stat.S_ISREG(seen.st_mode):
            raise UsageError(f"{address.path} is neither a block device nor a file")
        size_bytes = _size_bytes(address.path)
    if size_bytes != address.size_bytes:
        raise WrongDeviceError(
            f"{address.path} has {size_bytes} bytes, the bench file says {address.size_bytes}: "
            "is it another disk? nothing was written"
        )
    return seen


def _size_bytes(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _check_serial(address: DeviceAddress, seen: os.stat_result) -> None:
    folder = _sys_folder(seen)
    reported = [text for name in _SERIAL_FILES if (text := _line(folder / name))]
    if not address.serial:
        known = f"; it reports {' and '.join(map(repr, reported))}" if reported else ""
        raise UsageError(f"{address.path} is a disk: its address also needs serial=SERIAL{known}")
    if (folder / "partition").exists():
        raise UsageError(
            f"{address.path} is a partition: give the whole disk that the controller exports"
        )
    if address.serial not in reported:
        raise WrongDeviceError(
            f"{address.path} reports {' and '.join(map(repr, reported)) or 'no serial number'}, "
            f"the bench file says {address.serial!r}: nothing was written"
        )


def _check_unused(address: DeviceAddress, seen: os.stat_result) -> None:
    """Mounted, a swap device, or claimed by device mapper, md or LVM; also when only a partition of
    it is."""
    folder = _sys_folder(seen)
    own = {
        _line(folder / "dev"),
        *(_line(one.parent / "dev") for one in folder.glob("*/partition")),
    } - {""}
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[2] in own:
            raise RigError(f"{address.path} is mounted on {fields[4]}: it is not written to")
    for line in Path("/proc/swaps").read_text(errors="replace").splitlines()[1:]:
        name = line.split()[0]
        with contextlib.suppress(OSError):
            if _number(Path(name).stat().st_rdev) in own:
                raise RigError(
                    f"{address.path} is used for swapping ({name}): it is not written to"
                )
    holders = [one.name for part in (folder, *(p.parent for p in folder.glob("*/partition")))
               for one in part.glob("holders/*")]  # fmt: skip
    if holders:
        raise RigError(
            f"{address.path} is part of {', '.join(sorted(holders))}: it is not written to"
        )


def block_bytes(seen: os.stat_result) -> int:
    """Size of a logical block; O_DIRECT requires whole blocks."""
    reported = (
        _line(_sys_folder(seen) / "queue/logical_block_size") if stat.S_ISBLK(seen.st_mode) else ""
    )
    return int(reported) if reported.isdecimal() else SECTOR_BYTES


def _sys_folder(seen: os.stat_result) -> Path:
    return Path(f"/sys/dev/block/{_number(seen.st_rdev)}").resolve()


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _line(path: Path) -> str:
    """Read the text of a file of /sys; "" if it does not exist."""
    try:
        return path.read_bytes()[:4096].decode("utf-8", "replace").strip(" \0\n\t")
    except OSError:
        return ""


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RigError(f"block device {path}: {error.strerror or error}") from error


class _Device:
    """One open descriptor, and one buffer per thread that is aligned for O_DIRECT."""

    def __init__(self, address: DeviceAddress, flags: int) -> None:
        self.path = address.path
        seen = identified(address)
        with _translated(address.path):
            self._fd = _open_direct(address.path, flags)
            now = os.fstat(self._fd)
        if (now.st_dev, now.st_ino, now.st_rdev) != (seen.st_dev, seen.st_ino, seen.st_rdev):
            os.close(self._fd)
            raise WrongDeviceError(
                f"{address.path} was replaced by another device while it was opened"
            )
        self._own = threading.local()

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        done = bytearray()
        while len(done) < length_bytes:
            buffer = self._buffer()[: min(length_bytes - len(done), PIECE_BYTES)]
            count = os.preadv(self._fd, [buffer], offset_bytes + len(done))
            if not count:
                raise OSError(errno.EIO, "it ends there")
            done += buffer[:count]
        return bytes(done)

    def write(self, offset_bytes: int, data: Buffer, *, fua: bool = False) -> None:
        view, done = memoryview(data), 0
        while done < len(view):
            piece = view[done : done + PIECE_BYTES]
            buffer = self._buffer()[: len(piece)]
            buffer[:] = piece
            count = os.pwritev(self._fd, [buffer], offset_bytes + done, os.RWF_DSYNC if fua else 0)
            if not count:
                raise OSError(errno.EIO, "it accepts no data there")
            done += count

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _buffer(self) -> memoryview:
        if not hasattr(self._own, "view"):
            self._own.view = memoryview(mmap.mmap(-1, PIECE_BYTES))
        return self._own.view  # type: ignore[no-any-return]


def _open_direct(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without O_DIRECT, such as tmpfs
            raise
        return os.open(path, flags | os.O_CLOEXEC)


class BlockDeviceHost:
    """``HostPort`` and ``HostWorkload`` over a block device. It is opened for writing at the first
    write."""

    def __init__(self, uri: str) -> None:
        self._address = parse_uri(uri)
        self._reader = _Device(self._address, os.O_RDONLY)
        self._writer: _Device | None = None
        self.size_bytes = self._address.size_bytes

    @staticmethod
    def workload_module() -> str:
        return "freezeframe.drivers.hosts.writer"

    @staticmethod
    def keeps_journal() -> bool:
        return True

    @staticmethod
    def programs() -> tuple[str, ...]:
        return ()

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read from the device. Raises RigError."""
        with _translated(self._address.path):
            return self._reader.read(offset_bytes, length_bytes)

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        with _translated(self._address.path):
            self._for_writing().write(offset_bytes, data, fua=fua)

    def flush(self) -> None:
        with _translated(self._address.path):
            self._for_writing().flush()

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        raise UsageError(f"block device {self._address.path}: trim is not sent to it")

    def close(self) -> None:
        for one in (self._reader, self._writer):
            if one is not None:
                one.close()

    def _for_writing(self) -> _Device:
        if self._writer is None:
            self._writer = _Device(self._address, os.O_RDWR)
        return self._writer


class BlockDeviceConnection:
    """The connection used by the writer, with the interface of ``NbdConnection``: any number of
    requests in flight, completed in any order."""

    def __init__(self, uri: str) -> None:
        address = parse_uri(uri)
        seen = identified(address)
        exclusive = stat.S_ISBLK(seen.st_mode)
        # O_EXCL: the kernel itself refuses a disk that is mounted or claimed, and lets nobody claim it meanwhile.
        self._device = _Device(address, os.O_RDWR | (os.O_EXCL if exclusive else 0))
        self.uri = uri
        self.size_bytes = address.size_bytes
        self.read_only = False
        self.block_bytes = block_bytes(seen)
        self.max_request_bytes = MAX_REQUEST_BYTES
        self.wants_write = False
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="blockdev")
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._done: deque[Completion] = deque()
        self._next_cookie = 1
        self.outstanding = 0

    def fileno(self) -> int:
        return self._event_fd

    def submit(
        self,
        command: Command,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        data: Buffer = b"",
        *,
        fua: bool = False,
    ) -> int:
        """Start a request and return its cookie."""
        cookie, self._next_cookie = self._next_cookie, self._next_cookie + 1
        self.outstanding += 1
        self._pool.submit(self._carry_out, cookie, command, offset_bytes, length_bytes, data, fua)
        return cookie

    def pump(self, timeout_s: float) -> list[Completion]:
        """Wait for a request to end, at most ``timeout_s``, and return all that have ended."""
        poller = select.poll()
        poller.register(self._event_fd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            return []
        os.eventfd_read(self._event_fd)
        done = [self._done.popleft() for _ in range(len(self._done))]
        self.outstanding -= len(done)
        return done

    def close(self) -> None:
        """Close without waiting for requests that the device never answers."""
        self._pool.shutdown(wait=not self.outstanding, cancel_futures=True)
        if not self.outstanding:
            self._device.close()

    def _carry_out(
        self,
        cookie: int,
        command: Command,
        offset_bytes: int,
        length_bytes: int,
        data: Buffer,
        fua: bool,
    ) -> None:
        error, found = 0, b""
        try:
            match command:
                case "read":
                    found = self._device.read(offset_bytes, length_bytes)
                case "write":
                    self._device.write(offset_bytes, data, fua=fua)
                case "flush":
                    self._device.flush()
                case "trim":
                    error = errno.EOPNOTSUPP
        except OSError as failure:
            error = failure.errno or errno.EIO
        self._done.append(Completion(cookie, error, found))
        os.eventfd_write(self._event_fd, 1)
