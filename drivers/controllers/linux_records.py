"""What a Linux DRBD node tells, understood: /proc/drbd, kernel log lines, the archive that its
evidence comes in.

Pure, and nothing in the bytes is believed: they come from a node that has just crashed.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from freezeframe.drivers.controllers.linux_scripts import NOTE
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.errors import WireError
from freezeframe.harness.wire import control, drbd, drbdnames
from freezeframe.harness.wire.control import PairState

MAX_RAW_BYTES: Final = 64 << 20
MAX_MEMBERS: Final = 64
MAX_NAME_CHARS: Final = 200
MAX_LOG_LINES: Final = 200_000
MAX_LINE_CHARS: Final = 4096

CONN: Final[dict[str, int]] = {
    **{name: int(conn) for conn, name in drbdnames.CONN_NAMES.items()},
    # DRBD 9 (not run here): its names where they differ.
    "Connecting": drbd.Conn.WF_CONNECTION,
    "Established": drbd.Conn.CONNECTED,
}
DISK: Final[dict[str, int]] = {
    **{name: int(disk) for disk, name in drbdnames.DISK_NAMES.items()},
    "Detaching": drbd.Disk.FAILED,  # DRBD 9
}
ROLE: Final[dict[str, int]] = {"Unknown": 0, "Primary": 1, "Secondary": 2}
LEVELS: Final = ("EMERG", "ALERT", "CRIT", "ERROR", "WARN", "NOTE", "INFO", "DEBUG")
"""Kernel log levels 0 to 7."""
_STATE: Final = re.compile(r"^ *\d+: cs:(\w+) ro:(\w+)/(\w+) ds:(\w+)/(\w+)(?: |$)", re.M)
_COUNTER: Final = re.compile(r"\b(ns|nr|dw|dr|al|bm|lo|pe|ua|ap|ep|oos):(\d+)")
_KERNEL_LINE: Final = re.compile(r"^(?:<(\d+)>)?\[ *(\d+)\.(\d+)\](?:\[[^\]]*\])? ?(.*)$")


@dataclass(frozen=True, kw_only=True)
class DrbdState:
    """The first volume of /proc/drbd (8.4). Numbers as in wire.drbd."""

    role: int = drbd.Role.UNKNOWN
    peer_role: int = drbd.Role.UNKNOWN
    conn: int = drbd.Conn.STANDALONE
    disk: int = drbd.Disk.DISKLESS
    peer_disk: int = drbd.Disk.UNKNOWN
    counters: Mapping[str, int] = field(default_factory=dict)
    """Documented in drbdsetup(8): oos is in KiB."""

    @property
    def pair_state(self) -> PairState:
        """Full duplex only when one of them is primary: before that the pair serves no host."""
        if self.conn in (drbd.Conn.STANDALONE, drbd.Conn.DISCONNECTING):
            return PairState.SIMPLEX
        if self.conn < drbd.Conn.CONNECTED:
            return PairState.SUSPENDED
        in_sync = (
            self.conn == drbd.Conn.CONNECTED and self.disk == self.peer_disk == drbd.Disk.UP_TO_DATE
        )
        has_primary = drbd.Role.PRIMARY in (self.role, self.peer_role)
        return PairState.FULL_DUPLEX if in_sync and has_primary else PairState.COPY_PENDING


def parse_proc_drbd(text: str) -> DrbdState:
    """An absent volume, or unknown words, read as a node that stands alone without a disk."""
    found = _STATE.search(text)
    if found is None:
        return DrbdState()
    conn, role, peer_role, disk, peer_disk = found.groups()
    counters = {name: int(value[:18]) for name, value in _COUNTER.findall(text[found.end() :])}
    return DrbdState(
        role=ROLE.get(role, 0),
        peer_role=ROLE.get(peer_role, 0),
        conn=CONN.get(conn, drbd.Conn.STANDALONE),
        disk=DISK.get(disk, drbd.Disk.DISKLESS),
        peer_disk=DISK.get(peer_disk, drbd.Disk.UNKNOWN),
        counters=counters,
    )


_KNOWN: Final = (
    ("BOOT", re.compile(r"^Linux version \d()()")),
    ("REPL_DIGEST_FAILED", re.compile(r"Digest integrity check FAILED: (\d{1,18})s \+(\d{1,9})")),
    (
        "REPL_BUFFER_CHANGED",
        re.compile(
            r"Digest mismatch, buffer modified by upper layers during write: (\d{1,18})s \+(\d{1,9})"
        ),
    ),
)
"""Lines that prove something of one write. The last is the sender's second look: with an
integrity-alg it makes the digest again when the data are in the socket (drbd_send_dblock, 8.4 and
9), and tells when its buffer has changed meanwhile."""
TELLS: Final = frozenset(name for name, _ in _KNOWN)


_CHANGE: Final = re.compile(r"\b(role|peer|conn|disk|pdsk)\( \w+ -> (\w+) \)")


def state_of_log(log: str) -> str:
    """The last state that DRBD told of itself, in the words of /proc/drbd; empty: it told of
    none."""
    seen = {
        "conn": "StandAlone",
        "role": "Secondary",
        "peer": "Unknown",
        "disk": "Diskless",
        "pdsk": "DUnknown",
    }
    changes = [
        found for line in log.splitlines() if "drbd" in line for found in _CHANGE.findall(line)
    ]
    if not changes:
        return ""
    seen |= dict(changes)
    return (
        f" 0: cs:{seen['conn']} ro:{seen['role']}/{seen['peer']} ds:{seen['disk']}/{seen['pdsk']}"
    )


def kernel_events(log: str) -> list[dict[str, Any]]:
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
            name, where = _meaning(text)
            head = {"seq": len(events), "uptime_ns": uptime_ns, "name": name, "level": level}
            events.append(head | where | {"text": text})
    return events


def _meaning(text: str) -> tuple[str, dict[str, int]]:
    for name, pattern in _KNOWN:
        found = pattern.search(text)
        if found is not None:
            return name, {"sector": int(found[1]), "bytes": int(found[2])} if found[1] else {}
    return "KERNEL", {}


def state_record(
    drbd_text: str, sections: Mapping[str, str], boot_epoch: int, uptime_ns: int
) -> dict[str, Any]:
    """Keys as in wire.rootcause.STATE_KEYS; what such a node cannot tell is empty. ``linux``: each
    file as it came."""
    seen = parse_proc_drbd(drbd_text)
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


def to_set(stored: bytes, header: dict[str, Any]) -> RootCauseSet:
    """The root cause data set of a pulled archive.

    Record of a crash: the kernel's log ring as the crash left it, with the state that the freeze
    wrote into it. Of a save: the log ring then, and the state then.
    """
    files = unpack(stored)
    log = files.pop("record", "") or files.pop("dmesg", "")
    if not log:
        raise WireError("the set holds neither a record of the crash nor a kernel log")
    events = kernel_events(log)
    noted = "\n".join(
        event["text"].partition(NOTE)[2].removeprefix(" ")
        for event in events
        if NOTE in event["text"]
    )
    uptime_ns = int(events[-1]["uptime_ns"]) if events else 0
    told = files.get("drbd") or (noted if _STATE.search(noted) else state_of_log(log))
    state = state_record(told, files, header["boot_epoch"], uptime_ns)
    header = header | {
        "uptime_ns": uptime_ns,
        "first_seq": 0,
        "next_seq": len(events),
    }
    return RootCauseSet(header=header, state=state, events=events, tells=TELLS)


PAIR_STATE_NAMES: Final = control.PAIR_STATE_NAMES
