"""What a capture shows at all, before anybody understands it: which TCP ports, and whether its frames
are whole. Pure. What of the link it cannot show is in ``core.link.blindness``.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Final

from freezeframe.harness.core.link.ipheaders import HOSTILE, locate_tcp

MAX_LOOKED_AT: Final = 1_000_000
"""Frames; the first of a longer capture stand for it."""
MAX_NAMED: Final = 5
_LEAST_FRAME_BYTES: Final = 54
_TCP_BYTES: Final = 20


class Sighting:
    """``add`` every frame."""

    def __init__(self, ports: frozenset[int]) -> None:
        """``ports``: of the replication link; empty: any."""
        self._wanted = ports
        self.frames = self.cut_frames = self.link_frames = 0
        """``link_frames``: on these ports."""
        self.ports: Counter[int] = Counter()
        """Frames by TCP port, of either end."""

    def add(self, frame: bytes | memoryview, original_length: int) -> None:
        self.frames += 1
        self.cut_frames += original_length > len(frame)
        if self.frames > MAX_LOOKED_AT:
            return
        located = locate_tcp(memoryview(frame)) if len(frame) >= _LEAST_FRAME_BYTES else None
        if located is None or located is HOSTILE or located[0] + _TCP_BYTES > len(frame):
            return
        ends = struct.unpack_from(">HH", frame, located[0])
        self.ports.update(ends)
        self.link_frames += not self._wanted or not self._wanted.isdisjoint(ends)

    def sentences(self) -> list[str]:
        """Why not all of the link's data can be seen, a sentence each."""
        says = []
        if self.frames and not self.link_frames:
            ports = " or ".join(map(str, sorted(self._wanted))) or "any port"
            found = ", ".join(str(port) for port, _ in self.ports.most_common(MAX_NAMED))
            is_there = f"the ports seen most are {found}" if found else "there is no TCP at all"
            says.append(f"no frame of TCP port {ports} was captured: {is_there}")
        if self.cut_frames:
            says.append(
                f"{self.cut_frames} of {self.frames} frames were cut short when they were captured (snap length): "
                "the data after that are not known"
            )
        return says
