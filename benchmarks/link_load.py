"""A link with traffic and the link watch on it: the load beside other benchmarks, and the subject
of ``link``."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.common import cpu_seconds, ours, peak_mib, running
from freezeframe.harness.core import events
from freezeframe.harness.core.events import AnyEvent, LinkStats, Stop
from freezeframe.harness.edge.capture_ring import join, segments
from freezeframe.harness.edge.netns import (
    INTERFACE,
    PRIMARY_ADDRESS,
    SECONDARY_ADDRESS,
    LinkPair,
    make_pair,
)
from freezeframe.harness.wire import drbd, nvme_tcp

RULES: Final = [
    {"name": "digest", "event": "digest-mismatch"},
    {"name": "late", "event": "late-ack", "deadline_ms": 5000},
    {"name": "missing", "event": "missing-ack", "deadline_ms": 5000},
    {"name": "barrier", "event": "barrier-count"},
]
PORTS: Final = {"drbd": drbd.PORT, "nvme_tcp": nvme_tcp.PORT}
DRAIN: Final = "import os\nwhile os.read(0, 65536): pass"


class Watch:
    """The link watch as a run starts it."""

    def __init__(
        self,
        child: "subprocess.Popen[bytes]",
        link: LinkPair,
        pcapng: Path,
        ring_mib: int,
        max_mib: int,
        capture: str,
        protocol: str,
    ) -> None:
        self.child = child
        self._decoder = events.Decoder()
        config = {
            "interface": INTERFACE, "namespace": link.secondary.path, "pcapng_path": str(pcapng), "trigger_fd": -1,
            "primary_address": PRIMARY_ADDRESS, "secondary_address": SECONDARY_ADDRESS, "rules": RULES,
            "integrity_alg": "crc32c", "ring_mib": ring_mib, "capture_mib": max_mib,
            "capture": capture, "protocol": protocol, "ports": [PORTS[protocol]],
        }  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(config).encode() + b"\n")
        child.stdin.flush()
        assert self.read(), "linkwatch did not start"

    def read(self) -> list[AnyEvent]:
        assert self.child.stdout is not None
        data = os.read(self.child.stdout.fileno(), 1 << 16)
        return self._decoder.feed(data)

    def stop(self) -> tuple[LinkStats, list[AnyEvent], float, float]:
        """Last counters, all events, CPU seconds, peak MiB."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(events.encode(Stop(t_ns=0)))
        self.child.stdin.flush()
        told: list[AnyEvent] = []
        peak = peak_mib(self.child.pid)
        while True:
            # What has ended already tells its time, and no memory: nan is not above what it told
            # before.
            cpu_s, peak = cpu_seconds(self.child.pid), max(peak, peak_mib(self.child.pid))
            data = os.read(self.child.stdout.fileno(), 1 << 20)
            if not data:
                break
            told += self._decoder.feed(data)
        stats = [event for event in told if isinstance(event, LinkStats)]
        return stats[-1], told, cpu_s, peak


@contextlib.contextmanager
def watching(
    link: LinkPair,
    pcapng: Path,
    *,
    ring_mib: int = 64,
    max_mib: int = 4096,
    capture: str = "ring",
    protocol: str = "drbd",
) -> Iterator[Watch]:
    """``max_mib``: of the capture on disk, half of it before a trigger, which never comes here."""
    for old in (pcapng, *(one for _, one in segments(pcapng))):
        old.unlink(missing_ok=True)
    with running(
        ours("freezeframe.harness.watch.linkwatch"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        yield Watch(child, link, pcapng, ring_mib, max_mib, capture, protocol)
    join(pcapng)


def traffic(
    role: str,
    link: LinkPair,
    size_bytes: int,
    writes: int,
    mb_per_s: float,
    module: str = "benchmarks.traffic",
) -> list[str]:
    namespace = link.primary if role == "sender" else link.secondary
    return [
        *ours(module),
        role,
        namespace.path,
        str(size_bytes),
        str(writes),
        str(mb_per_s),
    ]


@contextlib.contextmanager
def running_link(mb_per_s: float, directory: Path) -> Iterator[None]:
    """A watched link with traffic, and a run's live view, until the end of the block."""
    link = make_pair()
    with contextlib.closing(link), contextlib.ExitStack() as stack:
        watch = stack.enter_context(watching(link, directory / "load.pcapng", max_mib=256))
        receiver = stack.enter_context(
            running(traffic("receiver", link, 65536, 0, 0), stdout=subprocess.PIPE)
        )
        assert receiver.stdout is not None
        receiver.stdout.readline()
        stack.enter_context(
            running(traffic("sender", link, 65536, 1 << 40, mb_per_s), stdout=subprocess.DEVNULL)
        )
        assert watch.child.stdout is not None
        stack.enter_context(
            running([sys.executable, "-c", DRAIN], stdin=watch.child.stdout.fileno())
        )
        stack.enter_context(_live_view())
        time.sleep(0.5)
        yield


@contextlib.contextmanager
def _live_view() -> Iterator[None]:
    """``freezeframe run``'s view on a terminal that somebody reads."""
    theirs, terminal = os.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, theirs)
        stack.enter_context(
            running(ours("benchmarks.view"), stderr=terminal, env=os.environ | {"TERM": "xterm"})
        )
        os.close(terminal)
        stack.enter_context(running([sys.executable, "-c", DRAIN], stdin=theirs))
        yield
