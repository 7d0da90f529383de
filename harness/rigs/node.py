"""One virtual node: a QEMU process, its disks and its two serial lines. Power off means: kill the
process.

Works without KVM: the processor is emulated (TCG). As on a board, memory survives a reset of the
guest and is lost with the power.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from freezeframe.harness.core.events import Side
from freezeframe.harness.core.nodepair import CONFIGURED, NodePair
from freezeframe.harness.errors import RigError
from freezeframe.harness.rigs.image import Image
from freezeframe.harness.rigs.wiring import HOST_NETWORKS, REPLICATION_ADDRESSES

QEMU: Final = "qemu-system-x86_64"
MIB: Final = 1 << 20
METADATA_BYTES: Final = 4 * MIB
"""Size of a disk for metadata; DRBD needs some kilobytes for these volumes."""
RECORD_ADDRESS: Final = 0x8000000
"""Address of the ramoops record: 4 MiB reserved from the kernel. Not at the top of memory, where
QEMU puts the initrd again at a reset."""
TRACE_ARGUMENTS: Final = "trace_event=block:block_bio_queue,block:block_bio_complete trace_buf_size=32k ftrace_dump_on_oops"
"""The last disk requests are dumped into the kernel log with a crash, after its own lines. DRBD
8.4 has no trace events, md has few."""
KERNEL_ARGUMENTS: Final = (
    f"{TRACE_ARGUMENTS} console=ttyS0,115200 panic=-1 sysrq_always_enabled printk.devkmsg=on memmap=4M${RECORD_ADDRESS:#x} "
    "mitigations=off nowatchdog quiet loglevel=7"
)
PR_SET_PDEATHSIG: Final = 1
BANNER: Final = f"node: {CONFIGURED}".encode()
"""Line printed by the init of the guest once its replication runs."""
MAC_PREFIX: Final = "52:54:00:ff"
OFFLOADS_OFF: Final = ",".join(
    f"{name}=off"
    for name in ("csum", "gso", "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "host_tso4",
                 "host_tso6", "host_ecn", "host_ufo", "mrg_rxbuf")
)  # fmt: skip
"""Offloads off: frames on the link have wire size and valid checksums."""
LAST_LINES: Final = 5
PEER_LINE_IRQ: Final = 10
"""A third UART would share the interrupt of the first, which is busy with the console."""


@dataclass
class Node:
    """A node of the rig in ``directory``."""

    side: Side
    directory: Path
    image: Image
    pair: NodePair
    serial_number: str
    size_mib: int
    memory_mib: int
    mtu_bytes: int
    taps: tuple[int, int]
    boot_options: Mapping[str, str] = field(default_factory=dict)
    """Additional ff_NAME=VALUE arguments for the init of the guest."""
    bad_sector: int | None = None
    """Of the disk: the first write that covers it fails with an input/output error."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def console_log(self) -> Path:
        """Everything the node printed since the rig was started."""
        return self.directory / f"{self.side}.console.log"

    @property
    def _disks(self) -> tuple[str, ...]:
        return ("img", "md") if self.pair.has_metadata_disk else ("img",)

    @property
    def pid(self) -> int:
        """Process id of QEMU; 0: powered off."""
        return (
            self._process.pid if self._process is not None and self._process.poll() is None else 0
        )

    def prepare(self) -> None:
        """Create new disks with all zeros."""
        sizes = {"img": self.size_mib * MIB, "md": METADATA_BYTES}
        for name, size_bytes in ((name, sizes[name]) for name in self._disks):
            with (self.directory / f"{self.side}.{name}").open("wb") as disk:
                disk.truncate(size_bytes)

    def power_on(self) -> None:
        if self.pid:
            return
        if shutil.which(QEMU) is None:
            raise RigError(
                f"{QEMU} is missing: apt install --no-install-recommends qemu-system-x86"
            )
        with (self.directory / f"{self.side}.qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self.taps,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def power_off(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def status(self) -> dict[str, object]:
        state: dict[str, object] = {
            "running": bool(self.pid),
            "pid": self.pid,
            "last_lines": self.last_lines(),
        }
        if self._process is not None and not self.pid:
            state["exit_status"] = self._process.poll()
            state["qemu"] = _tail(self.directory / f"{self.side}.qemu.log")
        return state

    def last_lines(self) -> list[str]:
        return _tail(self.console_log)

    def _file(self, path: str) -> str:
        if self.bad_sector is None or not path.endswith(".img"):
            return f"file.driver=file,file.filename={path}"
        error = f"event=none,iotype=write,errno=5,once=on,sector={self.bad_sector}"
        wrong = ",".join(f"file.inject-error.0.{one}" for one in error.split(","))
        return f"file.driver=blkdebug,{wrong},file.image.driver=file,file.image.filename={path}"

    def _argv(self) -> list[str]:
        words = {
            "name": self.side,
            "role": self.side,
            "address": REPLICATION_ADDRESSES[self.side],
            "peer": REPLICATION_ADDRESSES["secondary" if self.side == "primary" else "primary"],
            "host_address": f"{HOST_NETWORKS[self.side]}.2",
            "mtu": str(self.mtu_bytes),
            "device": self.pair.host_device,
            **self.boot_options,
        }
        append = " ".join(
            (KERNEL_ARGUMENTS, *(f"ff_{name}={value}" for name, value in words.items()))
        )
        folder = _value(self.directory)
        argv = [
            QEMU, "-name", f"freezeframe-{self.side}", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1",
            "-m", str(self.memory_mib),
            "-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", append,
            "-smbios", f"type=1,manufacturer=QEMU,product=FreezeFrame-node,serial={_value(self.serial_number)}",
        ]  # fmt: skip
        for index, name in enumerate(self._disks):
            argv += [
                "-blockdev",
                f"driver=raw,node-name=disk{index},cache.no-flush=on,{self._file(f'{folder}/{self.side}.{name}')}",
                "-device", f"virtio-blk-pci,drive=disk{index},werror=report",
            ]  # fmt: skip
        for index, fd in enumerate(self.taps):
            mac = f"{MAC_PREFIX}:{index:02x}:{1 if self.side == 'primary' else 2:02x}"
            argv += [
                "-netdev", f"tap,id=net{index},fd={fd}",
                "-device", f"virtio-net-pci,netdev=net{index},mac={mac},romfile=,{OFFLOADS_OFF}",
            ]  # fmt: skip
        # The second link of autonomic mode: a UART of each node, wired to the other's without a process between.
        is_server = self.side == "secondary"
        argv += [
            "-chardev",
            f"socket,id=peer,path={folder}/peer,{'server=on,wait=off' if is_server else 'reconnect=1'}",
            "-device", f"isa-serial,chardev=peer,index=2,irq={PEER_LINE_IRQ}",
        ]  # fmt: skip
        # Telnet on the console, so that a BREAK can be sent in-band, as IAC BREAK.
        for line, options in (
            ("console", f",telnet=on,logfile={_value(self.console_log)},logappend=on"),
            ("control", ""),
        ):
            argv += [
                "-chardev",
                f"socket,id={line},path={folder}/{self.side}.{line},server=on,wait=off{options}",
                "-serial", f"chardev:{line}",
            ]  # fmt: skip
        return argv


def _value(text: object) -> str:
    """Escape a value of a QEMU option, where a comma starts the next option."""
    return str(text).replace(",", ",,")


def _die_with_parent() -> None:
    """Run in the child before QEMU: a node must not outlive its rig, even if that is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return []
