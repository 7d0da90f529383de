"""LinuxDrbd: a Linux node that replicates with DRBD 8.4, reached by a root shell on a serial line
of its own.

Nothing of ours is installed on the node. Who it is: the serial number of its DMI table, else its
machine id. Boot epoch: the time of its boot in seconds (``btime``), fixed per boot id when first
seen. Warmstart: one line of shell that checks both, notes the incident and DRBD's state in the
kernel log, and crashes the kernel by SysRq; the record outlives it in pstore (ramoops and others;
systemd moves them) or in /var/crash (kdump). Save: the same evidence, taken while the node runs on.
A root cause data set is a gzipped tar under /run/freezeframe of the node, pulled in pieces of
base64.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from freezeframe.drivers.controllers import linux_records
from freezeframe.drivers.controllers.linux_records import NOTE
from freezeframe.drivers.controllers.linux_shell import MARK, Shell
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.edge.serial_link import BREAK
from freezeframe.harness.errors import RigError, UsageError, WireError, WrongDeviceError
from freezeframe.harness.roles import ByteLink, Clock, Identity, Reply, RootCauseSet, SetEntry
from freezeframe.harness.wire import control

MODEL: Final = "Linux DRBD"
FOLDER: Final = "/run/freezeframe"
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
LIST_AGAIN_NS: Final = NS_PER_S // 2
_WHO: Final = re.compile(r"who (.*) (\S+) (\S+) (\d{1,12}(?:\.\d+)?)")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._:-]")

WHO: Final = (
    "ff_s=; ff_b=; read -r ff_s </sys/class/dmi/id/product_serial; "
    '[ "$ff_s" ] || read -r ff_s </etc/machine-id; '
    "read -r ff_b </proc/sys/kernel/random/boot_id"
)
"""Builtins only: it is also the start of the line that crashes the node, which is not to wait for a
fork."""
IDENTIFY: Final = f"""{WHO}; read -r ff_v </proc/sys/kernel/osrelease; read -r ff_u ff_x </proc/uptime
echo "who $ff_s $ff_b $ff_v $ff_u"
while read -r ff_k ff_x; do [ "$ff_k" = btime ] && echo "btime $ff_x"; done </proc/stat
while read -r ff_x; do echo "drbd $ff_x"; done </proc/drbd"""

KERNEL_LOG: Final = "/dev/kmsg"
NEWS_CENTISECONDS: Final = 30
NEWS_TRIES: Final = 10_000
"""Where /proc/uptime stands still."""
NEWS: Final = """trap '' INT; read -r ff_t ff_x </proc/uptime; ff_i=0; while [ $ff_i -lt {tries} ]; do ff_i=$((ff_i+1)); \
ff_c=; while read -r ff_n ff_x ff_y; do [ "$ff_n" = 0: ] && ff_c=$ff_x; done </proc/drbd; \
[ "$ff_c" = cs:Connected ] || break; read -r ff_u ff_x </proc/uptime; \
[ $((${{ff_u%.*}}${{ff_u#*.}}-${{ff_t%.*}}${{ff_t#*.}})) -ge {centiseconds} ] && break; done"""
"""Waits until DRBD itself has noticed, for 0.3 s at most. The secondary's complaint is here some 20
ms before its end of the connection reaches the primary's DRBD; a node that crashed at once would
not have its own failure lines in its record. The state of this moment is in the kernel log by then,
and nothing is overwritten meanwhile: its log holds minutes."""
CRASH: Final = (
    "echo 1 >/proc/sys/kernel/sysrq; echo w >/proc/sysrq-trigger; echo c >/proc/sysrq-trigger"
)
"""Blocked tasks into the kernel log, then the crash."""
EVIDENCE: Final = """cat /proc/drbd >drbd; dmesg >dmesg; cat /proc/meminfo >meminfo; cat /proc/interrupts >interrupts
cat /proc/loadavg /proc/uptime >load; cat /proc/net/dev /proc/net/tcp >network; cat /proc/diskstats >diskstats
grep . /proc/[0-9]*/stat /proc/[0-9]*/stack >tasks
drbdsetup show >config; drbdsetup status --verbose --statistics >status || drbdsetup events all --now >status
cat /sys/kernel/tracing/trace >trace || cat /sys/kernel/debug/tracing/trace >trace; find . -size 0 -delete"""
"""What a save collects; a node without one of these just has no such file."""

PACK: Final = """ff_pack() { tar cf - -- * | tee ../$1.tar | gzip -9 >../$1.set; \
echo "set $1 $2 $3 $4 $(wc -c <../$1.tar) $(wc -c <../$1.set) $(sha256sum <../$1.set | cut -c1-64)" >../$1.info; \
rm ../$1.tar; cd ..; }"""
"""ff_pack id kind reason boot_id: the archive of the files here, and the line that lists it. One line,
as each of these is that writes: a shell that has lost a question's start runs no half of it."""

END_OF_RECORD: Final = r"Kernel panic\|sysrq: Trigger a crash\|---\[ end"
LIST: Final = f"""mkdir -p {FOLDER}; cd {FOLDER}
[ -d /sys/fs/pstore ] && ! grep -q pstore /proc/mounts && mount -t pstore pstore /sys/fs/pstore
{PACK}
for r in /sys/fs/pstore/dmesg-* /var/lib/systemd/pstore/dmesg-* /var/crash/*/dmesg.*; do [ -f "$r" ] || continue; \
set -- $(grep -ao '{NOTE} [aw][a-z]* [0-9a-f]* [0-9]* [0-9a-f-]*' "$r" | tail -n 1); \
[ -n "$3" ] || set -- {NOTE} crash $(sha256sum <"$r" | cut -c1-32) 0 unknown; \
cd {FOLDER} && [ -n "$5" ] || continue; [ -f $3.info ] && continue; \
mkdir -p $3.d; cd $3.d; cp "$r" record; echo "$r" >source; cat /proc/drbd >drbd-after; dmesg >dmesg-after; \
grep -aq '{END_OF_RECORD}' record || echo "the record has no end" >incomplete; \
ff_pack $3 $2 $4 $5; done
for i in *.info; do [ -f "$i" ] && echo "$(cat $i) $(ls ${{i%.info}}.d/incomplete 2>/dev/null | wc -l)"; done; cd /"""
"""Makes a set of every record that the node has kept and that is not one yet, and lists all sets. A
record without the note of a freeze is a crash that nobody asked for; it is named by its own hash. A
note "armed" says only which incident was the one to come when the node crashed."""


class LinuxDrbd:
    """Plays roles.Controller."""

    warmstart_line: bytes = rb"sysrq: Trigger a crash"
    boot_line: bytes = rb"Linux version \d+\.\d+"

    def __init__(
        self, side: Side, link: ByteLink, *, serial_number: str, clock: Clock | None = None
    ) -> None:
        if _UNSAFE.search(serial_number):
            raise UsageError(
                f"{side}: serial_number {serial_number!r}: allowed are letters, digits, '.', '_', ':', '-'"
            )
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

    # --- roles.Controller ---
    def identify(self, deadline_ns: Ns) -> Identity:
        """Ask who is there. RigError when it is not the node of the bench file."""
        lines = self._shell.ask(IDENTIFY, deadline_ns)
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
                f"{self.side}: {self.link.name} leads to {escape(serial_number[:80])}, "
                f"the bench file says {self.serial_number}"
            )
        seen = linux_records.parse_proc_drbd(
            "\n".join(line[5:] for line in lines if line.startswith("drbd "))
        )
        return Identity(
            model=MODEL,
            serial_number=serial_number,
            firmware_version=_UNSAFE.sub("?", version)[:64],
            boot_epoch=self._epoch(boot_id, int(btime)),
            role=seen.role,
            pair_state=linux_records.PAIR_STATE_NAMES[seen.pair_state],
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
        name = incident_id.hex()
        act = (
            self._crash(name, reason, boot_id) if disruptive else self._save(name, reason, boot_id)
        )
        refusals = (
            f'elif [ "$ff_s" = "{identity.serial_number}" ]; then {_reply(name, "stale epoch")}; '
            f"else {_reply(name, 'wrong target')}; fi"
        )
        target = f'"$ff_s/$ff_b" = "{identity.serial_number}/{boot_id}"'
        return f"\n{WHO}; if [ {target} ]; then {act}; {refusals}\n".encode()

    def _boot_id(self, identity: Identity) -> str:
        boot_id = next(
            (one for one, epoch in self._epochs.items() if epoch == identity.boot_epoch), ""
        )
        if not boot_id:
            raise UsageError(
                f"{self.side}: boot epoch {identity.boot_epoch} is not one that it was seen in"
            )
        return boot_id

    def _crash(self, name: str, reason: int, boot_id: str) -> str:
        return (
            f"{_reply(name, 'ok')}; exec 9>{KERNEL_LOG}; echo '{NOTE} warmstart {name} {reason} {boot_id}' >&9; "
            f'while read -r ff_x; do echo "{NOTE} $ff_x" >&9; done </proc/drbd; '
            f"{NEWS.format(tries=NEWS_TRIES, centiseconds=NEWS_CENTISECONDS)}; {CRASH}"
        )

    def _save(self, name: str, reason: int, boot_id: str) -> str:
        # Each line by itself: where the start was lost (a node that boots), the rest runs nowhere
        # else.
        inside = f"cd {FOLDER}/{name}.d"
        collect = "\n".join(
            (
                PACK,
                f"mkdir -p {FOLDER}/{name}.d",
                *(f"{inside} && {{ {line}; }}" for line in EVIDENCE.splitlines()),
                f"{inside} && ff_pack {name} save {reason} {boot_id}",
            )
        )
        return f"(\n{collect}\n) 2>/dev/null; {_reply(name, 'ok')}"

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        named = re.search(rb'@f""f! ([0-9a-f]{32}) ', frame)
        if named is None:
            raise UsageError("not a frame of this driver")
        mark = f"{MARK}! {named[1].decode()} "
        line = self._shell.await_line(lambda text: mark in text, deadline_ns)
        status = None if line is None else line.partition(mark)[2].strip()[:40]
        if status in (None, "ok") and f"{NOTE} warmstart".encode() in frame:
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
        self._shell.ask(f"echo '<3>{quoted}' >{KERNEL_LOG}", deadline_ns)
        return Reply(ok=True, status="ok", t_received_ns=self._clock.now())

    def state(self, deadline_ns: Ns) -> dict[str, Any]:
        identity = self.identify(deadline_ns)
        text = "\n".join(self._shell.ask("cat /proc/drbd", deadline_ns))
        return linux_records.state_record(text, {}, identity.boot_epoch, identity.uptime_ns)

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
        lines = self._shell.ask(LIST, deadline_ns)
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
        path = f"{FOLDER}/{entry.incident_id.hex()}.set"
        failed = 0
        while len(stored) < entry.stored_bytes:
            wanted = min(PIECE_BYTES, entry.stored_bytes - len(stored))
            lines = self._shell.ask(
                f"tail -c +{len(stored) + 1} {path} | head -c {wanted} | base64", deadline_ns
            )
            try:
                piece = base64.b64decode("".join(lines), validate=True)
            except (binascii.Error, ValueError):
                piece = b""
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
        told = {
            "set_id": entry.set_id,
            "kind": entry.kind,
            "reason": entry.reason,
            "incident_id": entry.incident_id,
        }
        header = _header(self.serial_number, entry.boot_epoch) | told
        return linux_records.to_set(bytes(stored), header)

    # --- roles.SetReader ---
    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        return linux_records.to_set(stored, _header(serial_number, 0))

    def _epoch(self, boot_id: str, btime: int) -> int:
        if not re.fullmatch(r"[0-9a-f-]{36}", boot_id):
            raise RigError(f"{self.side}: {self.link.name} tells no boot id")
        if boot_id not in self._epochs:
            # A clock that was set back must not make a new boot look old.
            self._epochs[boot_id] = max(btime, max(self._epochs.values(), default=0) + 1)
        return self._epochs[boot_id]


def _header(serial_number: str, boot_epoch: int) -> dict[str, Any]:
    """What is known without the node's list of its sets."""
    return {
        "set_id": 0, "kind": "", "reason": 0, "incident_id": b"", "model": MODEL, "serial_number": serial_number,
        "firmware_version": "", "boot_epoch": boot_epoch, "wall_ns": boot_epoch * NS_PER_S,
    }  # fmt: skip


class LinuxDrbdBreak(LinuxDrbd):
    """The same node by its console alone: a root shell on that line, and SysRq by BREAK, which
    needs no process of a node that may have none to spare. Plays roles.Preparable too."""

    sends_break = True

    def prepare(self, identity: Identity, incident_id: bytes, deadline_ns: Ns) -> None:
        """What a BREAK cannot carry is noted before: whose the next crash is. RigError: it cannot
        be noted."""
        boot_id = self._boot_id(identity)
        # Level 7: for the log ring, not for the console.
        note = f"<7>{NOTE} armed {incident_id.hex()} 0 {boot_id}"
        lines = self._shell.ask(
            f"echo 1 >/proc/sys/kernel/sysrq; echo '{note}' >{KERNEL_LOG} && echo noted",
            deadline_ns,
        )
        if "noted" not in lines:
            raise RigError(
                f"{self.side}: {self.link.name}: cannot write to {KERNEL_LOG}; is it a root shell?"
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
