"""What a Linux node tells, understood: kernel log lines, the archive that its evidence comes in;
and what a kind of replication has to say to be one (``Replication``).

Pure, and nothing in the bytes is believed: they come from a node that has just crashed.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from freezeframe.drivers.controllers.linux_scripts import NOTE, Scripts
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.errors import WireError
from freezeframe.harness.wire.control import PairState

MAX_RAW_BYTES: Final = 64 << 20
MAX_MEMBERS: Final = 64
MAX_NAME_CHARS: Final = 200
MAX_LOG_LINES: Final = 200_000
MAX_LINE_CHARS: Final = 4096

LEVELS: Final = ("EMERG", "ALERT", "CRIT", "ERROR", "WARN", "NOTE", "INFO", "DEBUG")
"""Kernel log levels 0 to 7."""
_KERNEL_LINE: Final = re.compile(r"^(?:<(\d+)>)?\[ *(\d+)\.(\d+)\](?:\[[^\]]*\])? ?(.*)$")


class Seen(Protocol):
    """The state of the replication on one node. Numbers as in wire.drbd."""

    @property
    def role(self) -> int: ...
    @property
    def conn(self) -> int: ...
    @property
    def disk(self) -> int: ...
    @property
    def peer_disk(self) -> int: ...
    @property
    def counters(self) -> Mapping[str, int]:
        """By DRBD's names: oos (out of sync, KiB), ep, ap, pe. A missing one is 0."""
        ...

    @property
    def pair_state(self) -> PairState: ...
    @property
    def pair_detail(self) -> str:
        """Why, for a person; "": it needs no words."""
        ...


KnownLines = Sequence[tuple[str, re.Pattern[str]]]
BOOT_LINE: Final = ("BOOT", re.compile(r"^Linux version \d()()"))


@dataclass(frozen=True, kw_only=True)
class Replication:
    """One kind of replication, as a Linux node shows it."""

    model: str
    scripts: Scripts
    parse: Callable[[str], Seen]
    """What ``ff_state`` printed, without the prefixes. Of anything else: a node that stands alone."""
    is_state: re.Pattern[str]
    """Found in what ``ff_state`` printed."""
    state_of_log: Callable[[str], str] = lambda log: ""
    """The last state in a kernel log, in the words of ``ff_state``; "": it holds none."""
    known: KnownLines = (BOOT_LINE,)
    """Kernel lines that prove something of one write, or a boot: the name of the event record, and
    groups for sector and bytes."""


def kernel_events(log: str, known: KnownLines) -> list[dict[str, Any]]:
    """Kernel log lines as event records; lines without a time belong to the one before."""
    events: list[dict[str, Any]] = []
    uptime_ns, level = 0, "INFO"
    for line in log.splitlines()[:MAX_LOG_LINES]:
        found = _KERNEL_LINE.match(line[:MAX_LINE_CHARS])
        text = line[:MAX_LINE_CHARS]
        if found is not None:
            level = LEVELS[int(found[1][-3:]) & 7] if found[1] else "INFO"
            uptime_ns = int(found[2][-12:]) * NS_PER_S + int(found[3][:9].ljust(9, "0"))
            text = found[4]
        if text:
            name, where = _meaning(text, known)
            head = {"seq": len(events), "uptime_ns": uptime_ns, "name": name, "level": level}
            events.append(head | where | {"text": text})
    return events


def _meaning(text: str, known: KnownLines) -> tuple[str, dict[str, int]]:
    for name, pattern in known:
        found = pattern.search(text)
        if found is not None:
            return name, {"sector": int(found[1]), "bytes": int(found[2])} if found[1] else {}
    return "KERNEL", {}


def state_record(
    seen: Seen, sections: Mapping[str, str], boot_epoch: int, uptime_ns: int
) -> dict[str, Any]:
    """Keys as in wire.rootcause.STATE_KEYS; what such a node cannot tell is empty. ``linux``: each
    file as it came."""
    counters = seen.counters
    return {
        "role": seen.role,
        "pair_state": int(seen.pair_state),
        "conn": seen.conn,
        "disk": seen.disk,
        "peer_disk": seen.peer_disk,
        "uuids": [],
        "dirty_blocks": counters.get("oos", 0) // 4,
        "epoch": counters.get("ep", 0),
        "epoch_writes": 0,
        "queues": {
            "host_requests": counters.get("ap", 0),
            "unacked_writes": counters.get("pe", 0),
            "outgoing_bytes": 0,
        },
        "cache": {},
        "last_writes": [],
        "bitmap": [],
        "diagnostics": {},
        "faults": [],
        "boot_epoch": boot_epoch,
        "uptime_ns": uptime_ns,
        "protocol_version": 0,
        "linux": dict(sections),
    }


def unpack(stored: bytes) -> dict[str, str]:
    """The files of a set's archive (gzip of tar), by their names, which are never paths of ours:
    nothing is extracted. WireError: not one, too large, cut off."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(stored)) as packed:
            raw = packed.read(MAX_RAW_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise WireError(f"the set is no whole gzip file: {error}", 0, stored) from error
    if len(raw) > MAX_RAW_BYTES:
        raise WireError(f"the set unpacks to more than {MAX_RAW_BYTES} bytes", 0, stored)
    files: dict[str, str] = {}
    seen = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            for seen, member in enumerate(archive, 1):
                if seen > MAX_MEMBERS:
                    raise WireError(f"the set holds more than {MAX_MEMBERS} files")
                # A sparse file unpacks to zeroes without end; links and devices are nothing that we
                # read.
                if not member.isfile() or member.issparse() or member.size > len(raw):
                    continue
                content = archive.extractfile(member)
                if content is not None:
                    files[member.name.removeprefix("./")[:MAX_NAME_CHARS]] = content.read().decode(
                        "utf-8", "replace"
                    )
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise WireError(
            f"the set is no tar archive: {type(error).__name__}: {error}"[:200]
        ) from error
    return files


def to_set(stored: bytes, header: dict[str, Any], replication: Replication) -> RootCauseSet:
    """The root cause data set of a pulled archive.

    Record of a crash: the kernel's log ring as the crash left it, with the state that the freeze
    wrote into it. Of a save: the log ring then, and the state then.
    """
    files = unpack(stored)
    log = files.pop("record", "") or files.pop("dmesg", "")
    if not log:
        raise WireError("the set holds neither a record of the crash nor a kernel log")
    events = kernel_events(log, replication.known)
    noted = "\n".join(
        event["text"].partition(NOTE)[2].removeprefix(" ")
        for event in events
        if NOTE in event["text"]
    )
    uptime_ns = int(events[-1]["uptime_ns"]) if events else 0
    has_noted = replication.is_state.search(noted) is not None
    # "drbd": its name in the sets of older versions.
    text = files.get("state") or files.get("drbd")
    text = text or (noted if has_noted else replication.state_of_log(log))
    state = state_record(replication.parse(text), files, header["boot_epoch"], uptime_ns)
    header = header | {
        "uptime_ns": uptime_ns,
        "first_seq": 0,
        "next_seq": len(events),
    }
    return RootCauseSet(
        header=header,
        state=state,
        events=events,
        tells=frozenset(name for name, _ in replication.known),
    )
