"""The running text log on the serial console: ``[    8.296893] text\\r\\n``, uptime in seconds.

Text is printable ASCII; everything else is escaped, so that no line can contain the delimiter of
control frames (0x00) on a shared UART. Output consists of whole lines.
"""

from collections.abc import Callable
from typing import Final

NS_PER_S: Final = 1_000_000_000
NS_PER_US: Final = 1_000
ACTIVITY_WRITES: Final = 128
"""Writes per activity line ..."""
ACTIVITY_INTERVAL_NS: Final = 250_000_000
"""... or fewer after this time since the first of them ..."""
ACTIVITY_SPACING_NS: Final = 20_000_000
"""... but at least this time between two lines: a UART transfers 11 kB/s."""
MAX_LINE_CHARS: Final = 512
_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}


def printable(text: str) -> bytes:
    """Return ``text`` as ASCII, with control characters and non-ASCII characters escaped."""
    return text[:MAX_LINE_CHARS].translate(_ESCAPED).encode("ascii", "backslashreplace")


class Console:
    """``garble`` may damage a line on output (fault injection); ``who`` names the counted writes."""

    def __init__(self, who: str, garble: Callable[[bytes], bytes]) -> None:
        self._who = who
        self._garble = garble
        self._out: list[bytes] = []
        self._boot_ns = 0
        self._now_ns = 0
        self._writes = 0
        self._bytes = 0
        self._first_ns = 0
        self._last_line_ns = 0

    def set_time(self, now_ns: int) -> None:
        self._now_ns = now_ns

    def boot(self, now_ns: int) -> None:
        """Restart the uptime. An unfinished activity line is dropped, like the counters of the
        firmware."""
        self._now_ns = self._boot_ns = now_ns
        self._writes = self._bytes = 0

    def line(self, text: str) -> None:
        """Print one line at the current time."""
        uptime_ns = self._now_ns - self._boot_ns
        stamp = b"[%5d.%06d] " % (uptime_ns // NS_PER_S, uptime_ns % NS_PER_S // NS_PER_US)
        self._out.append(self._garble(stamp + printable(text) + b"\r\n"))

    def count_write(self, length_bytes: int) -> None:
        if not self._writes:
            self._first_ns = self._now_ns
        self._writes += 1
        self._bytes += length_bytes

    def tick(self) -> None:
        """Print the activity line when it is due."""
        deadline_ns = self.next_deadline()
        if deadline_ns is not None and self._now_ns >= deadline_ns:
            self.line(f"{self._who}: {self._writes} writes, {self._bytes} bytes")
            self._writes = self._bytes = 0
            self._last_line_ns = self._now_ns

    def next_deadline(self) -> int | None:
        if not self._writes:
            return None
        if self._writes >= ACTIVITY_WRITES:
            return self._last_line_ns + ACTIVITY_SPACING_NS
        return self._first_ns + ACTIVITY_INTERVAL_NS

    def take_output(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        return data
