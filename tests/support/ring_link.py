"""A link in virtual time whose frames go into a capture ring, and what is in its files afterwards."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.link.skim import Run, run_of
from freezeframe.harness.edge.capture_ring import (
    Bounds,
    CaptureRing,
    kept_runs,
)
from freezeframe.harness.edge.pcapng import (
    PcapngWriter,
    read_frames,
)

MIB = 1 << 20
T_NS = 1_795_394_356_000_000_000
FRAME_BYTES = 8192
STEP_NS = NS_PER_S // 100


def make(path: Path, comment: str) -> PcapngWriter:
    return PcapngWriter(
        path,
        interface="repl0",
        snaplen_bytes=0,
        hardware="h",
        system="s",
        application="a",
        comment=comment,
    )


class Link:
    """Frames that carry their number since the capture began, one each STEP_NS."""

    def __init__(
        self, directory: Path, *, mib: int = 16, before_s: float = 600, after_s: float = 600
    ) -> None:
        self.path = directory / "link.pcapng"
        bounds = Bounds(
            max_bytes=mib * MIB,
            before_ns=int(before_s * NS_PER_S),
            after_ns=int(after_s * NS_PER_S),
        )
        self.ring = CaptureRing(self.path, make, bounds)
        self.number = 0
        self.wall_ns = T_NS
        """CLOCK_REALTIME when the number was 0, as the clock has been set by now."""

    @property
    def now_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return self.number * STEP_NS

    def pass_on(self, frames: int, *, at_once: int = 5) -> None:
        for _ in range(frames // at_once):
            batch = []
            for _ in range(at_once):
                self.number += 1
                batch.append(
                    (
                        self.wall_ns + self.now_ns,
                        self.number.to_bytes(8, "big").ljust(FRAME_BYTES, b"\0"),
                    )
                )
            self.ring.write(run_of(batch), self.now_ns)

    def on_disk(self) -> int:
        return sum(one.stat().st_size for one in self.path.parent.iterdir())

    def close(self) -> None:
        end_ns = self.wall_ns + self.now_ns
        self.ring.close(start_ns=T_NS, end_ns=end_ns, frames_received=self.number, frames_dropped=3)


def in_file(path: Path) -> list[int]:
    return [int.from_bytes(frame.data[:8], "big") for frame in read_frames(path)]


def reading(path: Path) -> Iterator[Run]:
    return kept_runs(path, lambda name: (path.parent / name).open("rb"))


def kept(path: Path) -> list[int]:
    return [
        int.from_bytes(bytes(memoryview(run.data)[at : at + 8]), "big")
        for run in reading(path)
        for at in range(28, len(run.data), FRAME_BYTES + 32)
    ]


def is_gapless(found: list[int]) -> bool:
    return all(one + 1 == other for one, other in pairwise(found))
