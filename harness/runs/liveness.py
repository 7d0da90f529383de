"""What nobody reports about a bench under watch is looked at twice a second: control lines that hung up,
a console full of garbage, a silent link, the disk, the clock."""

import os
import select
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, SIDES, LinkStats, Ns, Side
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.facts import CONTROL
from freezeframe.harness.core.policy.messages import Trouble
from freezeframe.harness.wire.control import MAX_SET_BYTES

LOOK_EVERY_NS: Final = NS_PER_S // 2
HANG_UP: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL | select.POLLRDHUP
FULL_BYTES: Final = len(SIDES) * MAX_SET_BYTES
"""Space for both sets: below it nobody is armed."""
LOW_BYTES: Final = 8 * FULL_BYTES
CLOCK_STEP_NS: Final = NS_PER_S // 2
"""The wall clock against CLOCK_MONOTONIC between two looks: a clock that is slewed stays far below."""
STEADY_NS: Final = 60 * NS_PER_S
"""After so long without another step or garbage the trouble is over."""
SILENT_NS: Final = 60 * NS_PER_S
"""DRBD pings every 10 s, and so do others. A link without a frame for so long is reported."""
GARBAGE_BYTES: Final = 256
"""At least so many new bytes are judged."""
GARBAGE_SHARE: Final = 0.3
"""Of bytes that no text has. A line at a wrong rate has more than half."""
LOOKED_AT_BYTES: Final = 4096
_TEXT: Final = bytes([*range(0x20, 0x7F), *b"\t\n\v\f\r\b\a\x1b\0"])
"""ASCII, what a terminal understands, and the zeros of a BREAK."""
REPLACEMENT: Final = "\ufffd"
"""What Python decodes bytes to that are no UTF-8."""


def garbage_share(data: bytes) -> float:
    """Return the share of bytes that are neither ASCII text nor part of a UTF-8 character."""
    replaced = data.decode("utf-8", "replace").count(REPLACEMENT)
    strange = replaced - data.count(REPLACEMENT.encode())  # a text may have that character, too
    controls = sum(byte < 0x80 for byte in data.translate(None, _TEXT))
    return min(1.0, (strange + controls) / max(1, len(data)))


class Liveness:
    """``give`` takes events of the policy; times and wall times are arguments."""

    def __init__(
        self,
        out_dir: Path,
        give: Callable[[m.Event], None],
        *,
        full_bytes: int = FULL_BYTES,
        low_bytes: int = LOW_BYTES,
    ) -> None:
        self._out_dir = out_dir
        self._give = give
        self._disk_limits = ((Trouble.DISK_FULL, full_bytes), (Trouble.DISK_LOW, low_bytes))
        self._due_ns: Ns = 0
        self._offset_ns: int | None = None
        """Wall time minus CLOCK_MONOTONIC."""
        self._since: dict[Trouble, Ns] = {}
        """Troubles that were reported, and when they were last seen."""
        self._packets = (-1, 0)
        """Frames of the link, and when their number last changed."""
        self._garbled: dict[Side, Ns] = {}
        """Consoles full of garbage, and when it was last seen."""
        self._read_bytes: dict[Side, tuple[str, int]] = {}
        """Console -> its file, and how much of it was looked at."""

    def look(
        self,
        now: Ns,
        wall_ns: int,
        *,
        control_fds: Mapping[Side, int],
        consoles: Mapping[Side, Path],
        link: LinkStats | None,
    ) -> None:
        """``control_fds``: lines that the policy believes to be there; ``consoles``: their
        records."""
        if now < self._due_ns:
            return
        self._due_ns = now + LOOK_EVERY_NS
        for side, reason in hung_up(control_fds).items():
            self._give(m.Lost(part=CONTROL[side], reason=reason))
        self._look_at_clock(now, wall_ns)
        self._look_at_disk(now)
        self._look_at_link(now, link)
        self._look_at_consoles(now, consoles)
        if now - self._since.get(Trouble.CLOCK, now) > STEADY_NS:
            self._ease(Trouble.CLOCK)

    def _trouble(self, trouble: Trouble, detail: str, now: Ns) -> None:
        self._since[trouble] = now
        self._give(m.Troubled(trouble=trouble, detail=detail))

    def _ease(self, trouble: Trouble) -> None:
        if self._since.pop(trouble, None) is not None:
            self._give(m.Eased(trouble=trouble))

    def _look_at_clock(self, now: Ns, wall_ns: int) -> None:
        offset_ns = wall_ns - now
        step_ns = 0 if self._offset_ns is None else offset_ns - self._offset_ns
        self._offset_ns = offset_ns
        if abs(step_ns) > CLOCK_STEP_NS:
            detail = f"this machine's clock was set by {step_ns / NS_PER_S:+.1f} s"
            self._trouble(Trouble.CLOCK, detail, now)

    def _look_at_disk(self, now: Ns) -> None:
        try:
            free_bytes = shutil.disk_usage(self._out_dir).free
        except OSError as error:
            self._trouble(Trouble.DISK_FULL, f"{self._out_dir}: {error.strerror}", now)
            return
        for trouble, limit_bytes in self._disk_limits:
            if free_bytes >= limit_bytes:
                self._ease(trouble)
            elif trouble not in self._since:
                detail = f"{free_bytes >> 20} MiB are free, {limit_bytes >> 20} MiB are wanted"
                self._trouble(trouble, detail, now)

    def _look_at_link(self, now: Ns, link: LinkStats | None) -> None:
        if link is None or not link.down:
            self._ease(Trouble.LINK_DOWN)
        elif Trouble.LINK_DOWN not in self._since:
            self._trouble(Trouble.LINK_DOWN, link.down, now)
        packets, since_ns = self._packets
        if link is None or link.packets != packets:
            self._packets = (link.packets if link is not None else -1, now)
            self._ease(Trouble.SILENT)
        elif now - since_ns > SILENT_NS and Trouble.SILENT not in self._since:
            detail = f"no frame was captured for {SILENT_NS // NS_PER_S} s"
            self._trouble(Trouble.SILENT, detail, now)

    def _look_at_consoles(self, now: Ns, consoles: Mapping[Side, Path]) -> None:
        """One report for what is garbled now: two consoles would take turns in it."""
        before = list(self._garbled)
        found = {side: now for side, path in consoles.items() if self._has_garbage(side, path)}
        known = self._garbled | found
        self._garbled = {
            side: known[side] for side in SIDES if side in known and now - known[side] <= STEADY_NS
        }
        if not self._garbled:
            self._ease(Trouble.GARBAGE)
        elif list(self._garbled) != before:
            whose = " and ".join(f"the {side}'s" for side in self._garbled)
            detail = f"{whose}: is the baud rate right, and the line clean?"
            self._trouble(Trouble.GARBAGE, detail, now)

    def _has_garbage(self, side: Side, path: Path) -> bool:
        """Whether what came since it was last looked at is garbage; too little is none."""
        name, at = self._read_bytes.get(side, ("", 0))
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if name != str(path) or size < at:  # set aside: the record began anew
                    at = 0
                    self._read_bytes[side] = (str(path), at)
                if size - at < GARBAGE_BYTES:
                    return False
                file.seek(max(at, size - LOOKED_AT_BYTES))
                data = file.read(LOOKED_AT_BYTES)
        except OSError:
            return False  # what cannot be written is reported by its writer
        self._read_bytes[side] = (str(path), size)
        return garbage_share(data) > GARBAGE_SHARE


def hung_up(fds: Mapping[Side, int]) -> dict[Side, str]:
    """Return the lines at whose other end nobody is any more, without reading from them."""
    poller = select.poll()
    names = {fd: side for side, fd in fds.items()}
    for fd in names:
        poller.register(fd, select.POLLRDHUP)
    return {
        names[fd]: "the line hung up"
        for fd, events in poller.poll(0)
        if fd in names and events & HANG_UP
    }
