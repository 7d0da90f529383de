"""LinuxNode: a Linux node that replicates, reached by a root shell on a serial line of its own.

What is put on the node is one file of shell functions under /run (``linux_scripts``), which a reboot
removes. Who it is: the serial number of its DMI table, else its
machine id; or what the file says that ``[SIDE.options] identity_file`` names. Boot epoch: the time of
its boot in seconds (``btime``), fixed per boot id when first seen. Warmstart: one short line of shell
that calls these functions; they check both, note the incident and the state of the replication in the
kernel log, and crash the kernel by SysRq; the record outlives it in pstore (ramoops and others;
systemd moves them) or in /var/crash (kdump). Save: the same evidence, taken while the node runs on.
A root cause data set is a gzipped tar under /run/freezeframe of the node, pulled in pieces of
base64.

Which replication it is, a subclass says with its ``Replication``: ``linux_drbd``, ``linux_nvme``,
``linux_nbd``.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Final

from freezeframe.drivers.controllers import linux_monitor, linux_records, linux_scripts
from freezeframe.drivers.controllers.linux_files import put
from freezeframe.drivers.controllers.linux_records import Replication
from freezeframe.drivers.controllers.linux_scripts import Scripts
from freezeframe.drivers.controllers.linux_shell import MARK, Shell
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.edge.serial_link import BREAK
from freezeframe.harness.errors import RigError, UsageError, WireError, WrongDeviceError
from freezeframe.harness.roles import (
    REHEARSED,
    UNREHEARSED,
    ByteLink,
    Clock,
    Identity,
    Reply,
    RootCauseSet,
    SetEntry,
)
from freezeframe.harness.wire import control
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

PIECE_BYTES: Final = 24 << 10
"""One question's worth of a pull: 2.9 s at 115,200 baud."""
UPTIME_ERROR_NS: Final = 100 * NS_PER_MS
"""/proc/uptime is not the clock of the kernel log: it has two decimals, and the log's may run from
another moment (35 ms seen on a virtual node)."""
MAX_FAILED_PIECES: Final = 5
"""In a row; then the line is given up."""
RECORD_TIMEOUT_NS: Final = 15 * NS_PER_S
"""A node answers before its boot is over, and some keep their records in modules and files that
come late."""
CRASH_ECHO: Final = "Trigger a crash"
"""SysRq's own name for the key, in any kernel's words around it. It answers another key, too, with
its help."""
ECHO_NS: Final = NS_PER_S // 2
"""From BREAK and key to the kernel's line that names the key: some milliseconds."""
CRASH: Final = "crash"
STORE: Final = "store"
TRY: Final = "tryit"
"""What an armed line does, in words of one length."""
assert len(CRASH) == len(STORE) == len(TRY)
NOT_PREPARED: Final = "not prepared"
"""The node was not prepared, or has rebooted since."""
LIST_AGAIN_NS: Final = NS_PER_S // 2
_WHO: Final = re.compile(r"who (.*) (\S+) (\S+) (\d{1,12}(?:\.\d+)?)")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._:-]")
_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]{1,200}")
NO_SERIAL: Final = (
    "; if that is no serial number, name a file of the node that has one: "
    'identity_file = "/etc/machine-id" in the options of that side'
)


class LinuxNode:
    """Plays roles.Controller, Printing, Preparable and Rehearsing; with ``backing_device``
    BlockReading, with ``peer_line`` SelfMonitoring, too. Made of a subclass only, which has the replication."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """``[SIDE.options]`` of a bench file."""

        identity_file: str = ""
        """Absolute path on the node: its first line is the node's serial number. "": DMI's, else the
        machine id."""
        backing_device: str = ""
        """Path on the node of the disk under the replication: the failing block is read from there. "": it
        is not read."""
        peer_line: str = ""
        """Path on the secondary of a serial line that leads to a root shell of the primary: with it the
        secondary's own monitor can be armed (``instructed_by = "secondary"``)."""

    replication: ClassVar[Replication]
    warmstart_line: bytes = rb"sysrq: Trigger a crash"
    boot_line: bytes = rb"Linux version \d+\.\d+"

    def __init__(
        self,
        side: Side,
        link: ByteLink,
        *,
        serial_number: str,
        options: Options | None = None,
        clock: Clock | None = None,
    ) -> None:
        if _UNSAFE.search(serial_number):
            raise UsageError(
                f"{side}: serial_number {serial_number!r}: allowed are letters, digits, '.', '_', ':', '-'"
            )
        options = options or self.Options()
        path = options.identity_file
        for name, given in asdict(options).items():
            if given and _PATH.fullmatch(given) is None:
                raise UsageError(
                    f"{side}: {name} {given!r}: allowed is an absolute path of letters, digits, '.', '_', '-', '/'"
                )
        self._serial = linux_scripts.serial_in(path) if path else ""
        if options.backing_device:  # else it does not play roles.BlockReading
            self.read_blocks = partial(self._read_blocks, options.backing_device)
        if options.peer_line:
            linux_monitor.check(self.replication.scripts, self.replication.model)
            self.monitor = partial(self._monitor, options.peer_line)
        self.side: Side = side
        self.link = link
        self.serial_number = serial_number
        self._clock = clock or MonotonicClock()
        self._shell = Shell(link, self._clock)
        self._epochs: dict[str, int] = {}
        """Boot id -> boot epoch, in the order in which they were seen."""
        self._by_shell = b""
        self._awaited: bytes = b""
        self._is_due = False
        """The incident of the last warmstart that was told to go: its record may take a while to
        appear."""

    @property
    def scripts(self) -> Scripts:
        return replace(self.replication.scripts, serial=self._serial)

    # --- roles.Controller ---
    def identify(self, deadline_ns: Ns) -> Identity:
        """Ask who is there. RigError when it is not the node of the bench file."""
        lines = self._shell.ask(linux_scripts.identify(self.scripts), deadline_ns)
        # Some boards' serial number is a sentence: To be filled by O.E.M.
        who = next((found for line in lines if (found := _WHO.fullmatch(line))), None)
        btime = next(
            (line.split()[1] for line in lines if re.fullmatch(r"btime \d{1,15}", line)), ""
        )
        if who is None or not btime:
            raise RigError(
                f"{self.side}: {self.link.name} answers, but not as a Linux node's root shell"
            )
        serial_number, boot_id, version, uptime_s = who.groups()
        if serial_number != self.serial_number:
            raise WrongDeviceError(
                f"{self.side}: {self.link.name} leads to "
                f"{escape(serial_number.strip()[:80]) or 'a node without a serial number'}, "
                f"the bench file says {self.serial_number}"
                + (NO_SERIAL if _UNSAFE.search(serial_number) or not serial_number else "")
            )
        seen = self.replication.parse(
            "\n".join(line[6:] for line in lines if line.startswith("state "))
        )
        return Identity(
            model=self.replication.model,
            serial_number=serial_number,
            firmware_version=_UNSAFE.sub("?", version)[:64],
            boot_epoch=self._epoch(boot_id, int(btime)),
            role=seen.role,
            pair_state=control.PAIR_STATE_NAMES[seen.pair_state],
            pair_detail=escape(seen.pair_detail),
            uptime_ns=int(float(uptime_s) * NS_PER_S),
            uptime_error_ns=UPTIME_ERROR_NS,
            events_logged=0,
        )

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        """One line of shell, built of builtins, that does nothing on another node or in another
        boot."""
        if len(incident_id) != control.INCIDENT_ID_BYTES:
            raise UsageError(
                f"incident id of {len(incident_id)} bytes, it has {control.INCIDENT_ID_BYTES}"
            )
        boot_id = self._boot_id(identity)
        name, path = incident_id.hex(), linux_scripts.path()
        act = CRASH if disruptive else STORE
        given = f"ff_i={name};ff_r={reason};ff_w={identity.serial_number}/{boot_id};ff_a={act}"
        frame = f"\nif [ -r {path} ];then {given};ff_z=;. {path};ff_go;else {_reply(name, NOT_PREPARED)};fi\n".encode()
        if len(frame) > linux_scripts.MAX_LINE_BYTES:
            raise UsageError(
                f"{self.side}: the line to arm has {len(frame)} bytes, a shell surely takes "
                f"{linux_scripts.MAX_LINE_BYTES}: is the serial number that long?"
            )
        return frame

    # --- roles.Preparable ---
    def prepare(self, identity: Identity, incident_id: bytes, deadline_ns: Ns) -> None:
        """Put the functions on the node that the armed line calls. RigError: they did not arrive
        whole."""
        self._boot_id(identity)
        self._install(deadline_ns)

    def _install(self, deadline_ns: Ns) -> None:
        content, who = linux_scripts.functions(self.scripts), f"{self.side}: {self.link.name}"
        put(self._shell, who, content, linux_scripts.path(), deadline_ns)

    # --- roles.SelfMonitoring, with ``peer_line`` ---
    def _monitor(
        self, line: str, incident_id: bytes, primary_frame: bytes, own_frame: bytes, deadline_ns: Ns
    ) -> None:
        text = linux_monitor.program(self.scripts, line, incident_id, primary_frame, own_frame)
        who = f"{self.side}: {self.link.name}"
        linux_monitor.begin(self._shell, who, text, self._clock, deadline_ns)

    # --- roles.BlockReading, with ``backing_device`` ---
    def _read_blocks(
        self, device: str, offset_bytes: int, length_bytes: int, deadline_ns: Ns
    ) -> bytes:
        """From the disk itself. A piece that the line damaged is asked for again."""
        data = bytearray()
        failed = 0
        while len(data) < length_bytes:
            wanted = min(PIECE_BYTES, length_bytes - len(data))
            first = (offset_bytes + len(data)) // SECTOR_BYTES
            question = linux_scripts.read_block(device, first, wanted // SECTOR_BYTES)
            sha256, *lines = self._shell.ask(question, deadline_ns) or [""]
            piece = _decoded(lines)
            if hashlib.sha256(piece).hexdigest() == sha256:
                if len(piece) != wanted:
                    raise WireError(
                        f"{self.side}: {device} gives {len(piece)} of {wanted} bytes at sector {first}: "
                        "is it the disk under the replication (backing_device), and can it be read there?"
                    )
                data += piece
                continue
            failed += 1
            if failed >= MAX_FAILED_PIECES:
                raise RigError(
                    f"{self.link.name}: the block at sector {first} does not arrive whole"
                )
        return bytes(data)

    # --- roles.Rehearsing ---
    def rehearse(self, frame: bytes, deadline_ns: Ns) -> Reply:
        """The same line with another word of the same length in the place of what it does."""
        asked = re.sub(rb"ff_a=\w+", b"ff_a=" + TRY.encode(), frame)
        assert len(asked) == len(frame)
        self.link.write(asked)
        reply = self.freeze_reply(asked, deadline_ns)
        if reply is None:
            return Reply(ok=False, status="no answer", t_received_ns=self._clock.now())
        return replace(reply, ok=reply.status == REHEARSED)

    def _boot_id(self, identity: Identity) -> str:
        boot_id = next(
            (one for one, epoch in self._epochs.items() if epoch == identity.boot_epoch), ""
        )
        if not boot_id:
            raise UsageError(
                f"{self.side}: boot epoch {identity.boot_epoch} is not one that it was seen in"
            )
        return boot_id

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        named = re.search(rb'@f""f! ([0-9a-f]{32}) ', frame)
        if named is None:
            raise UsageError("not a frame of this driver")
        mark = f"{MARK}! {named[1].decode()} "
        line = self._shell.await_line(lambda text: mark in text, deadline_ns)
        status = None if line is None else line.partition(mark)[2].strip()[:40]
        if status in (None, "ok") and f"ff_a={CRASH};".encode() in frame:
            self._awaited, self._is_due = bytes.fromhex(named[1].decode()), True
        if status is None:
            return None
        return Reply(
            ok=status == "ok",
            status=escape(status),
            set_id=_set_id(named[1].decode()),
            boot_epoch=next(reversed(self._epochs.values()), 0),
            t_received_ns=self._clock.now(),
        )

    def print_line(self, text: str, deadline_ns: Ns) -> Reply:
        """At the level of an error, like the lines that a bench waits for."""
        quoted = "".join(one for one in text if one.isprintable() and one not in "'\\")
        self._shell.ask(f"echo '<3>{quoted}' >{linux_scripts.KERNEL_LOG}", deadline_ns)
        return Reply(ok=True, status="ok", t_received_ns=self._clock.now())

    def state(self, deadline_ns: Ns) -> dict[str, Any]:
        identity = self.identify(deadline_ns)
        script = f"{self.scripts.state}\nff_state state"
        lines = self._shell.ask(linux_scripts.filled(script), deadline_ns)
        text = "\n".join(line.removeprefix("state ") for line in lines)
        seen = self.replication.parse(text)
        return linux_records.state_record(seen, {}, identity.boot_epoch, identity.uptime_ns)

    def sets(self, deadline_ns: Ns) -> list[SetEntry]:
        until_ns = min(self._clock.now() + RECORD_TIMEOUT_NS, deadline_ns)
        while True:
            entries = [_entry(line, self._epochs) for line in self._listed(deadline_ns)]
            is_here = any(one.incident_id == self._awaited for one in entries)
            again_ns = self._clock.now() + LIST_AGAIN_NS
            if is_here or not self._is_due or again_ns >= until_ns:
                self._is_due = False
                return [self._named(one) for one in entries]
            self._shell.await_line(lambda _: False, again_ns)

    def _named(self, entry: SetEntry) -> SetEntry:
        """A crash while an incident was armed is its warmstart when the frame went out."""
        if entry.kind != "armed":
            return entry
        return replace(entry, kind="warmstart" if entry.incident_id == self._awaited else "crash")

    def _listed(self, deadline_ns: Ns) -> list[list[str]]:
        self._install(deadline_ns)
        lines = self._shell.ask(f". {linux_scripts.path()}\nff_list", deadline_ns)
        return [line.split() for line in lines if _ENTRY.fullmatch(line)][: control.MAX_SETS * 4]

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: Ns, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        """Pieces of base64; a damaged one is asked for again."""
        if entry.stored_bytes > control.MAX_SET_BYTES or len(have) > entry.stored_bytes:
            raise WireError(
                f"{self.side}: set {entry.set_id} of {entry.stored_bytes} bytes cannot be"
            )
        stored = bytearray(have)
        path = f"{linux_scripts.FOLDER}/{entry.incident_id.hex()}.set"
        failed = 0
        while len(stored) < entry.stored_bytes:
            wanted = min(PIECE_BYTES, entry.stored_bytes - len(stored))
            lines = self._shell.ask(
                f"tail -c +{len(stored) + 1} {path} | head -c {wanted} | base64", deadline_ns
            )
            piece = _decoded(lines)
            if len(piece) == wanted:
                failed = 0
                stored += piece
                progress(piece)
                continue
            failed += 1
            if failed >= MAX_FAILED_PIECES:
                raise RigError(
                    f"{self.link.name}: {entry.stored_bytes - len(stored)} bytes of set {entry.set_id} do not "
                    f"arrive whole; {len(stored)} did"
                )
        found = hashlib.sha256(stored).hexdigest()
        if found != entry.sha256:
            raise WireError(f"the set's SHA-256 is {found}, its node listed {entry.sha256}")
        stated = {
            "set_id": entry.set_id,
            "kind": entry.kind,
            "reason": entry.reason,
            "incident_id": entry.incident_id,
        }
        header = self._header(self.serial_number, entry.boot_epoch) | stated
        return linux_records.to_set(bytes(stored), header, self.replication)

    # --- roles.SetReader ---
    @classmethod
    def decode_set(cls, stored: bytes, serial_number: str) -> RootCauseSet:
        return linux_records.to_set(stored, cls._header(serial_number, 0), cls.replication)

    def _epoch(self, boot_id: str, btime: int) -> int:
        if not re.fullmatch(r"[0-9a-f-]{36}", boot_id):
            raise RigError(f"{self.side}: {self.link.name} tells no boot id")
        if boot_id not in self._epochs:
            # A clock that was set back must not make a new boot look old.
            self._epochs[boot_id] = max(btime, max(self._epochs.values(), default=0) + 1)
        return self._epochs[boot_id]

    @classmethod
    def _header(cls, serial_number: str, boot_epoch: int) -> dict[str, Any]:
        """What is known without the node's list of its sets."""
        return {
            "set_id": 0, "kind": "", "reason": 0, "incident_id": b"", "model": cls.replication.model,
            "serial_number": serial_number, "firmware_version": "", "boot_epoch": boot_epoch,
            "wall_ns": boot_epoch * NS_PER_S,
        }  # fmt: skip


class LinuxNodeBreak(LinuxNode):
    """Such a node by its console alone: a root shell on that line, and SysRq by BREAK, which
    needs no process of a node that may have none to spare."""

    sends_break = True

    def prepare(self, identity: Identity, incident_id: bytes, deadline_ns: Ns) -> None:
        """What a BREAK cannot carry is noted before: whose the next crash is. RigError: it cannot
        be noted."""
        super().prepare(identity, incident_id, deadline_ns)
        boot_id = self._boot_id(identity)
        # Level 7: for the log ring, not for the console.
        note = f"<7>{linux_scripts.NOTE} armed {incident_id.hex()} 0 {boot_id}"
        lines = self._shell.ask(
            f"echo 1 >/proc/sys/kernel/sysrq; echo '{note}' >{linux_scripts.KERNEL_LOG} && echo noted",
            deadline_ns,
        )
        if "noted" not in lines:
            raise RigError(
                f"{self.side}: {self.link.name}: cannot write to {linux_scripts.KERNEL_LOG}; is it a root shell?"
            )

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        """BREAK and the key; behind them which incident it is, for ``freeze_reply`` and for who
        reads the record."""
        by_shell = super().freeze_frame(identity, reason, incident_id, disruptive=disruptive)
        if not disruptive:
            return by_shell
        self._by_shell = by_shell
        self._shell.forget(len(self._shell.kept))
        return BREAK + b"c\n: " + incident_id.hex().encode() + b"\n"

    def rehearse(self, frame: bytes, deadline_ns: Ns) -> Reply:
        """A BREAK and its key cannot be sent without their effect. The line of shell that takes
        their place when they are lost can."""
        if not frame.startswith(BREAK):
            return super().rehearse(frame, deadline_ns)
        reply = super().rehearse(self._by_shell, deadline_ns)
        if not reply.ok:
            return reply
        return replace(
            reply,
            status=UNREHEARSED,
            text="BREAK and c; the shell's line in its place is rehearsed",
        )

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        """The kernel's echo. A BREAK is often eaten without a word on its way: then the node's
        shell does it."""
        if not frame.startswith(BREAK):
            return super().freeze_reply(frame, deadline_ns)
        incident = frame.split(b": ")[1].strip().decode()
        echo = self._shell.await_line(
            lambda line: CRASH_ECHO in line, min(self._clock.now() + ECHO_NS, deadline_ns)
        )
        if echo is None:
            self.link.write(self._by_shell)
            reply = super().freeze_reply(self._by_shell, deadline_ns)
            return reply and replace(
                reply, text="the BREAK got lost on its way; the node's shell was told instead"
            )
        self._awaited, self._is_due = bytes.fromhex(incident), True
        return Reply(
            ok=True,
            status="ok",
            text=escape(echo.strip()[:80]),
            set_id=_set_id(incident),
            boot_epoch=next(reversed(self._epochs.values()), 0),
            t_received_ns=self._clock.now(),
        )


_ENTRY: Final = re.compile(
    r"set [0-9a-f]{32} \w+ \d{1,5} [\w-]{1,36} \d{1,12} \d{1,12} [0-9a-f]{64} [01]"
)


def _decoded(lines: list[str]) -> bytes:
    """b"": the line damaged them."""
    try:
        return base64.b64decode("".join(lines), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _entry(words: list[str], epochs: Mapping[str, int]) -> SetEntry:
    _, name, kind, reason, boot_id, raw, stored, sha256, incomplete = words
    return SetEntry(
        set_id=_set_id(name),
        kind=kind,
        complete=incomplete == "0",
        reason=int(reason),
        incident_id=bytes.fromhex(name),
        raw_bytes=int(raw),
        stored_bytes=int(stored),
        boot_epoch=epochs.get(boot_id, 0),
        sha256=sha256,
    )


def _set_id(name: str) -> int:
    """Sets are named by their incident; the number is its first bits."""
    return int(name[:7], 16)


def _reply(name: str, status: str) -> str:
    """Shell that prints a reply, and whose echo is not one."""
    return f'echo "{MARK[:2]}""{MARK[2:]}! {name} {status}"'
