"""What a part of a bench can do. A driver plays one role; nothing above this seam knows a driver's
name.

All calls may block until their deadline, never longer. Deadlines are CLOCK_MONOTONIC nanoseconds. A
call that cannot be carried out raises RigError (the bench), WireError (the device's bytes), or
returns a value that says what the device refused: a failing device is a result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.rootcause import RootCauseSet as RootCauseSet


class Secret:
    """A password or a key that a driver needs. It is shown nowhere: its text is ``reveal()``."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__


@runtime_checkable
class ByteLink(Protocol):
    """A serial line or a stream that behaves like one. Bytes arrive in order or not at all; never
    blocks in fileno."""

    name: str

    def fileno(self) -> int: ...
    def read(self, max_bytes: int, deadline_ns: Ns) -> bytes:
        """Bytes as they are there, at least one; b"" when the deadline passes. RigError when the
        line is gone."""
        ...

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who answers at the other end of a control link."""

    model: str
    serial_number: str
    firmware_version: str
    boot_epoch: int
    role: int
    """wire.drbd.Role"""
    pair_state: str
    """simplex | copy pending | full duplex | suspended"""
    uptime_ns: int
    events_logged: int
    capabilities: int = 0
    uptime_error_ns: int = 0
    """How far ``uptime_ns`` may be from the clock of its console lines and its event log, where
    these are two."""
    pair_detail: str = ""
    """Why the pair is in that state, for a person; "": the controller does not say."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a controller answered to an instruction."""

    ok: bool
    status: str
    """"ok", or the refusal by its name: "wrong target", "stale epoch", ..."""
    text: str = ""
    set_id: int = 0
    boot_epoch: int = 0
    events_logged: int = 0
    uptime_ns: int = 0
    t_received_ns: Ns = 0


@dataclass(frozen=True, kw_only=True)
class SetEntry:
    """One root cause data set as its controller lists it."""

    set_id: int
    kind: str
    complete: bool
    reason: int
    incident_id: bytes
    raw_bytes: int
    stored_bytes: int
    boot_epoch: int
    sha256: str


class Controller(Protocol):
    """A storage controller's control link: identify, freeze, collect. One dialogue at a time.

    A driver is made by ``NAME(side, link, serial_number=...)``. When its class has an attribute
    ``Options``, a dataclass whose fields are str, int, float, bool or Secret, it is made with
    ``options=Options(...)`` too, from ``[SIDE.options]`` of the bench file.
    """

    side: Side
    link: ByteLink
    warmstart_line: bytes
    """Regex: what the console says first when a warmstart begins."""
    # Optional: ``boot_line``, a regex of what the console says first in a boot. With it a controller
    # that rebooted while it was armed is identified and armed again.
    # Optional: ``frame_repeats``, how often a frame that was not answered is written again; 0: never. Only
    # where the device refuses or just answers a second copy of a frame that it has carried out.

    def identify(self, deadline_ns: Ns) -> Identity: ...
    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        """The bytes that warmstart (or, not disruptive, save) exactly this target in exactly this
        boot. A save does no harm: it is also sent seconds after the trigger, to who was not reached
        then. No I/O."""
        ...

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        """Wait for the answer to ``frame``, which somebody else has written; None when none came in
        time."""
        ...

    def state(self, deadline_ns: Ns) -> dict[str, Any]:
        """The live state record, keys as in wire.rootcause.STATE_KEYS."""
        ...

    def sets(self, deadline_ns: Ns) -> list[SetEntry]: ...
    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: Ns, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        """Read ``entry`` from behind ``have`` on; every new stored byte goes to ``progress`` as it
        arrives, in order. RigError when the line is silent too long: call again with what has
        arrived. WireError: the set is damaged."""
        ...


@runtime_checkable
class Printing(Protocol):
    """A controller that can be asked to say something on its console."""

    def print_line(self, text: str, deadline_ns: Ns) -> Reply: ...


@runtime_checkable
class Preparable(Protocol):
    """A controller on which something must be done before a frame is armed for it."""

    def prepare(self, identity: Identity, incident_id: bytes, deadline_ns: Ns) -> None: ...


@runtime_checkable
class SelfMonitoring(Protocol):
    """A secondary whose own monitor has to be armed before each incident of autonomic mode."""

    def monitor(
        self, incident_id: bytes, primary_frame: bytes, own_frame: bytes, deadline_ns: Ns
    ) -> None:
        """From now on watch your own log. When the replication goes wrong, have the primary carry out
        ``primary_frame`` over the line between the two, then carry out ``own_frame``; once. An earlier
        arming is over. Nobody need be there for it. RigError: it does not watch, or the primary does not
        answer on that line."""
        ...


REHEARSED: Final = "rehearsed"
UNREHEARSED: Final = "unrehearsed"
"""Reply.status of a rehearsal: the frame's like went the whole way; or it cannot be sent without its
effect."""


@runtime_checkable
class Rehearsing(Protocol):
    """A controller whose armed frame can be tried out."""

    def rehearse(self, frame: bytes, deadline_ns: Ns) -> Reply:
        """Send what is as long as ``frame``, a ``freeze_frame`` of this boot, the whole way and
        without its effect: it is read, understood and answered by the part of the device that acts
        on ``frame``. ``ok`` with status REHEARSED; ``ok`` with UNREHEARSED and ``text`` when that
        cannot be done; else what the device answered, or that it did not."""
        ...


@runtime_checkable
class BreakLine(Protocol):
    """A ByteLink that may carry a BREAK."""

    def send_break(self) -> None:
        """RigError: this line carries none, or is gone."""
        ...


@runtime_checkable
class BreakingIn(Protocol):
    """A controller that hangs in its warmstart may be made to restart by a BREAK on its control line."""

    def break_in(self, deadline_ns: Ns) -> None:
        """Send the BREAK, and what has to follow it. A BREAK names no target: the caller knows who is
        there. Nothing is read, its effect shows in the boot epoch. RigError: the line carries none."""
        ...


MAX_BLOCK_READ_BYTES: Final = 64 << 10
"""Of one ``read_blocks``."""


@runtime_checkable
class BlockReading(Protocol):
    """A controller that can be asked what its volume holds, without its host: the block that a failure is
    about is kept as it was before the pair rejoined."""

    # Optional: ``reads_while_booting = True`` in the class of a driver whose device answers this question, and
    # no other, while it boots: before its replication begins.

    def read_blocks(self, offset_bytes: int, length_bytes: int, deadline_ns: Ns) -> bytes:
        """Content of the volume, offsets as the replication link counts them; multiples of 512, at most
        MAX_BLOCK_READ_BYTES. Nothing on the device changes. RigError: no answer; WireError: a refusal, or
        an answer that makes no sense."""
        ...


@runtime_checkable
class Acknowledging(Protocol):
    """A controller that may free a root cause data set once it has been pulled."""

    def acknowledge(self, entry: SetEntry, identity: Identity, deadline_ns: Ns) -> Reply: ...


@runtime_checkable
class FaultArming(Protocol):
    """A controller that produces faults by itself, for a scenario."""

    def set_faults(self, identity: Identity, plan: Mapping[str, Any], deadline_ns: Ns) -> Reply:
        """Arm ``plan``: {"seed": int, "faults": [{"kind", "side", "at_write", "count", "delay_ms"}]}.
        No faults: disarm."""
        ...


@runtime_checkable
class Tracing(Protocol):
    """A controller whose event log can be made more detailed, for a redrive."""

    def set_trace_level(self, identity: Identity, level: int, deadline_ns: Ns) -> Reply: ...


@runtime_checkable
class Serviceable(Printing, Acknowledging, FaultArming, Tracing, Protocol):
    """All that a controller may offer beside Controller. No part needs the others: FreezeFrame asks
    for the part that it uses."""


@runtime_checkable
class SetReader(Protocol):
    """What a controller's driver offers whose root cause data sets are not of the format of
    ``wire.rootcause``."""

    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        """A set as it was pulled, without the device. Pure. WireError: it is damaged, or not
        one."""
        ...


class HostPort(Protocol):
    """A controller's block device as its host sees it. Offsets and lengths in bytes, multiples of
    512."""

    size_bytes: int
    # Optional: ``read_only = True`` in the class of a driver that never writes. A run's workload is
    # not started on such a volume.

    def read(self, offset_bytes: int, length_bytes: int) -> bytes: ...
    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None: ...
    def flush(self) -> None: ...
    def trim(self, offset_bytes: int, length_bytes: int) -> None: ...
    def close(self) -> None: ...


class HostWorkload(Protocol):
    """Who plays the host: a process of its own. ``drivers/hosts/writer.py`` says what it is sent
    and what it tells."""

    @staticmethod
    def workload_module() -> str:
        """The module that is run."""
        ...

    @staticmethod
    def keeps_journal() -> bool:
        """Whether it writes down each write and its acknowledgement: without that nobody knows what
        was promised."""
        ...

    @staticmethod
    def programs() -> Sequence[str]:
        """What it runs that must be installed on this machine."""
        ...


class PowerRail(Protocol):
    """A supply that powers the controllers. ``close`` leaves its safe state: limits set, what the
    bench file says."""

    def set_output(self, side: Side, on: bool) -> None: ...
    def output(self, side: Side) -> bool: ...
    def measure(self, side: Side) -> tuple[float, float]:
        """Measured volts and amperes."""
        ...

    def identify(self) -> str: ...
    def close(self) -> None: ...


class FrameSocket(Protocol):
    """A scapy socket (``scapy.supersocket.SuperSocket``) or reader (``scapy.utils.PcapReader``) on
    the replication link. The driver is called with the interface's name, inside the link's network
    namespace, in the process of the link watch.

    Frames come in the order of capture. ``time`` of a packet is when it was on the wire; where the
    first one differs from this machine's clock by more than 1 s, all are moved by that much.
    EOFError from ``recv`` ends the watch.
    """

    def recv(self, x: int = ...) -> Any:
        """The next scapy packet, or None when there is none now."""
        ...

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Clock(Protocol):
    def now(self) -> Ns: ...
