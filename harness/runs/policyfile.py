"""What the policy of a watch persists, so that a killed watch is continued: the armed frames, the ids
of their incidents, the storm guard's memory. Synced before the frames are armed."""

import contextlib
import time
from collections.abc import Container, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.core.events import SIDES, Ns
from freezeframe.harness.core.policy import Settings
from freezeframe.harness.core.policy.messages import Saved
from freezeframe.harness.edge.wholefile import replace_synced
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.runs.audit import state_directory

NAME: Final = "{bench}.policy.json"
"""``bench``: the bench's id. Earlier versions took its name."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
MAX_BYTES: Final = 4 << 20
MAX_NAMES: Final = 256
"""Armings whose incident a report may still name; one or two are open at a time."""


def settings_of(bench: Bench, *, dry_run: bool = False) -> Settings:
    """Return what the bench file says to the policy of a watch. UsageError: a dry run of a bench
    whose pair acts by itself."""
    if dry_run and bench.policy.instructed_by != "harness":
        raise UsageError(
            "--dry-run: in autonomic mode the harness sends no frame, and the pair would really act"
        )
    policy = bench.policy
    return Settings(
        serial_numbers={side: bench.controller(side).serial_number for side in SIDES},
        instruct=bench.instruct,
        controlled=bench.controlled,
        poll_s=policy.poll_s,
        during_recovery=policy.during_recovery,
        dry_run=dry_run,
    )


class WatchStart(Enum):
    """Who started a watch. It decides whether an open breaker of the storm guard is closed: a storm
    that restarts the watch itself must not be answered anew after each restart."""

    UNATTENDED = "a service manager, or a dry run"
    TYPED = "a person"
    ARMING = "a person who has looked, and says so"

    @classmethod
    def of(cls, *, is_service: bool, dry_run: bool, arm: bool) -> "WatchStart":
        """``arm``: the option --arm. UsageError: it is given for a dry run."""
        if arm and dry_run:
            raise UsageError("--arm: a dry run arms nobody")
        if arm:
            return cls.ARMING
        return cls.UNATTENDED if is_service or dry_run else cls.TYPED

    def closes_breaker(self, *, was_killed: bool) -> bool:
        """``was_killed``: the process before did not end in order, so nobody has ended it."""
        return self is WatchStart.ARMING or (self is WatchStart.TYPED and not was_killed)


class ArmedIncident(msgspec.Struct, frozen=True, kw_only=True):
    """The incident that frames are armed for."""

    incident_id_hex: str
    folder: str
    """Absolute path."""
    frames_hex: dict[str, str] = {}
    """Side -> the frame that a console's trigger sends."""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    boot_id: str
    """Of this machine: times of another boot are moved."""
    t_ns: Ns
    wall_ns: int
    """When it was written, by both clocks."""
    saved: Saved
    incidents: dict[str, ArmedIncident]
    """Name of the policy -> incident."""


class PolicyFile:
    """The file of one bench."""

    def __init__(self, bench: Bench) -> None:
        self.path = state_directory() / NAME.format(bench=bench.id)
        self._by_name = state_directory() / NAME.format(bench=bench.name)
        self._is_real = bench.simulation is None and bench.rig is None

    def take_over(self) -> None:
        """Give the file that an earlier version wrote under the bench's name to this bench, once: it may
        hold an open breaker. One of a bench that each command makes anew is left where it is."""
        if self._is_real and not self.path.exists():
            with contextlib.suppress(OSError):
                self._by_name.rename(self.path)

    def write(self, saved: Saved, incidents: Mapping[str, ArmedIncident]) -> None:
        """Write it whole, synced. RigError when it cannot be: the one before stays."""
        file = _File(
            boot_id=_boot_id(), t_ns=time.monotonic_ns(), wall_ns=time.time_ns(), saved=saved,
            incidents=dict(incidents),
        )  # fmt: skip
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_synced(self.path, msgspec.json.encode(file), mode=0o600)
        except OSError as error:
            raise RigError(
                f"{self.path}: {error.strerror}: what is armed would not survive a kill"
            ) from error

    def read(self) -> tuple[Saved, dict[str, ArmedIncident]] | None:
        """Return what a process before had persisted; None: nothing. RigError: it cannot be read, so an
        open breaker may stand in it."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_BYTES)
            found = msgspec.json.decode(data, type=_File)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RigError(f"{self.path} cannot be read: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise RigError(f"{self.path} is damaged: {error}") from error
        if found.boot_id == _boot_id():
            return found.saved, found.incidents
        moved_ns = time.monotonic_ns() - found.t_ns - max(0, time.time_ns() - found.wall_ns)
        log = tuple(replace(one, t_ns=one.t_ns + moved_ns) for one in found.saved.guard_log)
        down = tuple((part, t_ns + moved_ns) for part, t_ns in found.saved.down)
        return replace(found.saved, guard_log=log, down=down), found.incidents

    def set_aside(self) -> str:
        """Keep a file that cannot be read for a person; say where."""
        kept = self.path.with_name(f"{self.path.name}.unreadable")
        with contextlib.suppress(OSError):
            self.path.replace(kept)
            return f" (kept as {kept.name})"
        return ""


class ArmedIncidents:
    """The incidents that frames are armed for, by the policy's names, in memory and in the file."""

    def __init__(self, bench: Bench) -> None:
        self._file = PolicyFile(bench)
        self._known: dict[str, ArmedIncident] = {}
        self._names: dict[str, str] = {}
        """Name of the policy -> name of the folder: a report may come after its incident is forgotten."""

    def read(self) -> Saved | None:
        """Take over what a process before had persisted; None: nothing. Where that cannot be read, the
        breaker is open: it may have been, and incidents that were armed are not known any more."""
        self._file.take_over()
        try:
            found = self._file.read()
        except RigError as error:
            return Saved(broken=f"its memory {error}{self._file.set_aside()}")
        if found is None:
            return None
        saved, self._known = found
        self._names = {name: Path(one.folder).name for name, one in self._known.items()}
        return saved

    def get(self, name: str) -> ArmedIncident | None:
        return self._known.get(name)

    def folder_of(self, name: str) -> str:
        """Return how a person finds the incident of this name of the policy; what is no such name
        stays as it is."""
        return self._names.get(name, name)

    def id_of(self, name: str) -> bytes:
        """Return the incident's id; b"": it is not known."""
        known = self._known.get(name)
        return bytes.fromhex(known.incident_id_hex) if known is not None else b""

    def arm(self, name: str, incident: Incident, frames_hex: Mapping[str, str]) -> None:
        """In memory, until ``write``."""
        self._known[name] = ArmedIncident(
            incident_id_hex=incident.incident_id.hex(),
            folder=str(incident.path.absolute()),
            frames_hex=dict(frames_hex),
        )
        self._names[name] = incident.path.name
        while len(self._names) > MAX_NAMES:
            del self._names[next(iter(self._names))]

    def write(self, saved: Saved, more: Container[str] = ()) -> None:
        """Persist ``saved`` and the incidents that it names; those in ``more`` are kept, too, all
        others are forgotten. RigError: it cannot be written."""
        names = {one.incident for one in saved.armed} | {one.incident for one in saved.open}
        self._known = {
            name: one for name, one in self._known.items() if name in names or name in more
        }
        self._file.write(saved, self._known)


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()
    return ""
