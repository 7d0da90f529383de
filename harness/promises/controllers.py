"""The conformance kit for controllers: one whole save, and what a verdict needs of its set."""

import contextlib
import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from freezeframe.harness.core import rootcause
from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, SIDES, Ns
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.errors import HarnessError, WireError
from freezeframe.harness.promises.kit import MonotonicTime, RoleTrial, ignore
from freezeframe.harness.roles import (
    MAX_BLOCK_READ_BYTES,
    REHEARSED,
    UNREHEARSED,
    BlockReading,
    BreakingIn,
    Clock,
    Controller,
    Identity,
    Preparable,
    Printing,
    Rehearsing,
    Reply,
    SetEntry,
)
from freezeframe.harness.wire.control import Reason
from freezeframe.harness.wire.rootcause import STATE_KEYS

INCIDENT_ID: Final = b"freezeframe test"
assert len(INCIDENT_ID) == 16
CANARY: Final = "freezeframe conformance check"
LATE_NS: Final = 5 * NS_PER_S
"""A call may end so long after its deadline."""
DISORDER_NS: Final = 10 * NS_PER_MS
"""Of event records: one processor stamps a record, and another queues its own before it (seen in
Linux's log: 6 us)."""


def check_controller(
    controller: Controller,
    *,
    timeout_s: float = 30.0,
    clock: Clock | None = None,
    passed: Callable[[str], None] = ignore,
) -> None:
    """``Controller``: identify, state, and one whole save: frame, answer, list, pull, and a pull
    that goes on after an interruption; and the optional roles that it plays.

    The controller SAVES one root cause data set; it does not warmstart. ``timeout_s`` bounds each
    call; ``clock`` is the one that the driver's deadlines are measured by.
    """
    ControllerTrial(controller, timeout_s, clock or MonotonicTime(), passed).run()


def check_break_in(
    controller: Controller,
    *,
    timeout_s: float = 30.0,
    clock: Clock | None = None,
    passed: Callable[[str], None] = ignore,
) -> None:
    """``BreakingIn``: the BREAK reaches the device, which begins a new boot.

    The controller RESTARTS. A device that runs takes a BREAK as one that hangs does; one that does
    not (a Linux node without a key) cannot be checked so. ``timeout_s`` bounds the restart.
    """
    trial = ControllerTrial(controller, timeout_s, clock or MonotonicTime(), passed)
    trial.hold(isinstance(controller, BreakingIn), "the controller has break_in()")
    before = trial.one(Identity, "identify", trial.deadline())
    if isinstance(controller, Preparable):
        trial.call("prepare", before, INCIDENT_ID, trial.deadline())
    unsent = trial.one(
        bytes, "freeze_frame", before, int(Reason.OPERATOR), INCIDENT_ID, disruptive=True
    )
    trial.call("break_in", trial.deadline())
    deadline_ns, boot_epoch = trial.deadline(), before.boot_epoch
    while boot_epoch <= before.boot_epoch and trial.now() < deadline_ns:
        with contextlib.suppress(HarnessError):  # while it boots
            # Nobody answers that frame: a pause by the driver's own clock.
            controller.freeze_reply(unsent, min(deadline_ns, trial.now() + NS_PER_S // 10))
            seen = controller.identify(min(deadline_ns, trial.now() + NS_PER_S))
            boot_epoch = seen.boot_epoch
    trial.hold(boot_epoch > before.boot_epoch, "after break_in() the device begins a new boot")


class ControllerTrial(RoleTrial):
    def __init__(
        self,
        controller: Controller,
        timeout_s: float,
        clock: Clock,
        passed: Callable[[str], None],
    ) -> None:
        super().__init__(controller, Controller, passed)
        self.controller = controller
        self.now = clock.now
        self._timeout_ns = int(timeout_s * NS_PER_S)

    def deadline(self) -> Ns:
        return self.now() + self._timeout_ns

    def call(self, name: str, *args: object, **kwargs: object) -> object:
        value = super().call(name, *args, **kwargs)
        deadlines = [one for one in args if isinstance(one, int) and one > self._timeout_ns]
        if deadlines and self.now() > max(deadlines) + LATE_NS:
            self.hold(False, f"{name}() ends by its deadline")
        return value

    def run(self) -> None:
        self._patterns()
        identity = self._identity()
        self._state()
        before = self._sets()
        frame = self._frames(identity)
        self._refuses_others(identity)
        entry = self._save(identity, frame, before)
        self._pull(identity, entry)
        self._optional(identity, frame, entry)

    def _patterns(self) -> None:
        for name in ("warmstart_line", "boot_line"):
            pattern = getattr(self.made, name, None)
            if pattern is None and name == "boot_line":
                continue
            self.hold(
                isinstance(pattern, bytes) and bool(pattern),
                f"{name} is a regular expression as bytes",
            )
            try:
                re.compile(pattern or b"")
            except re.error as error:
                self.hold(False, f"{name} is a regular expression: {error}")
        self.hold(getattr(self.made, "side", None) in SIDES, "side is 'primary' or 'secondary'")
        self.hold(hasattr(self.made, "link"), "link is the ByteLink that it was made with")

    def _identity(self) -> Identity:
        first = self.one(Identity, "identify", self.deadline())
        second = self.one(Identity, "identify", self.deadline())
        self.hold(
            bool(second.model and second.serial_number),
            "identify() names model and serial number",
        )
        self.hold(
            (second.serial_number, second.boot_epoch) == (first.serial_number, first.boot_epoch)
            and second.uptime_ns >= first.uptime_ns,
            "two calls of identify() in one boot give one serial number and boot epoch, and an uptime"
            " that does not go back",
        )
        return second

    def _state(self) -> None:
        state = self.one(dict, "state", self.deadline())
        missing = set(STATE_KEYS) - set(state)
        self.hold(
            not missing,
            "state() has all keys of STATE_KEYS",
            f"missing: {', '.join(sorted(missing))}",
        )

    def _sets(self) -> set[int]:
        ids = [entry.set_id for entry in self._listed()]
        self.hold(len(set(ids)) == len(ids), "sets() gives each set a set_id of its own")
        self.hold(
            sorted(ids) == sorted(entry.set_id for entry in self._listed()),
            "two calls of sets() list the same sets",
        )
        return set(ids)

    def _listed(self) -> list[SetEntry]:
        return self.one(list, "sets", self.deadline())

    def _frames(self, identity: Identity) -> bytes:
        if isinstance(self.made, Preparable):
            self.call("prepare", identity, INCIDENT_ID, self.deadline())
        frame, disruptive = (
            self.one(
                bytes, "freeze_frame", identity, int(Reason.OPERATOR), INCIDENT_ID, disruptive=word
            )
            for word in (False, True)
        )
        self.hold(
            bool(frame) and frame != disruptive,
            "freeze_frame() returns bytes, and others for a warmstart than for a save",
        )
        until = self.now() + NS_PER_S // 10
        self.hold(
            self.call("freeze_reply", disruptive, until) is None and self.now() >= until,
            "freeze_reply() of a frame that nobody sent returns None at its deadline",
        )
        return frame

    def _refuses_others(self, identity: Identity) -> None:
        """A frame for another boot, which would be one that was armed before a restart."""
        try:
            stale = self.one(
                bytes, "freeze_frame", replace(identity, boot_epoch=identity.boot_epoch + 1),
                int(Reason.OPERATOR), INCIDENT_ID, disruptive=False,
            )  # fmt: skip
        except HarnessError:
            self.passed("freeze_frame() makes no frame for a boot that was never seen")
            return
        self.controller.link.write(stale)
        until = self.now() + NS_PER_S
        reply = self.call("freeze_reply", stale, until)
        self.hold(
            not isinstance(reply, Reply) or not reply.ok,
            "a frame for another boot_epoch is refused by the device",
        )

    def _save(self, identity: Identity, frame: bytes, before: set[int]) -> SetEntry:
        sent_ns = self.now()
        self.controller.link.write(frame)
        reply = self.call("freeze_reply", frame, self.deadline())
        self.hold(
            isinstance(reply, Reply) and reply.ok,
            "the frame to save is answered with ok",
            f"the answer is {reply}",
        )
        assert isinstance(reply, Reply)
        received_ns = getattr(reply, "t_received_ns", 0)
        self.hold(
            sent_ns <= received_ns <= self.now(),
            "Reply.t_received_ns is when the answer came, by the clock of the deadlines",
        )
        new = [entry for entry in self._listed() if entry.set_id not in before]
        self.hold(len(new) == 1, "sets() lists one new set after a save", f"it lists {len(new)}")
        entry = new[0]
        self.hold(
            entry.incident_id == INCIDENT_ID,
            "the new set has the incident_id of the frame: by it the set is found again",
        )
        self.hold(entry.complete, "the new set is complete")
        self.hold(
            self.one(Identity, "identify", self.deadline()).boot_epoch == identity.boot_epoch,
            "a save does not begin a new boot",
        )
        return entry

    def _pull(self, identity: Identity, entry: SetEntry) -> None:
        """The whole set, then its second half, and one that there is not."""
        stored = bytearray()
        pulled = self._pulled(entry, b"", stored)
        self.hold(
            len(stored) == entry.stored_bytes,
            f"pull() passes the {entry.stored_bytes} bytes to progress that sets() lists",
            f"it passed {len(stored)}",
        )
        self.hold(
            hashlib.sha256(stored).hexdigest() == entry.sha256,
            "the bytes passed to progress have the SHA-256 that sets() lists",
        )
        self._judged(identity, entry, pulled, bytes(stored))
        half, rest = len(stored) // 2, bytearray()
        again = self._pulled(entry, bytes(stored[:half]), rest)
        self.hold(
            rest == stored[half:], "a pull that has the first half passes on the second, no more"
        )
        self.hold(again == pulled, "an interrupted pull gives the same set as a whole one")
        absent = replace(entry, set_id=max(one.set_id for one in self._listed()) + 1000,
                         incident_id=bytes(16))  # fmt: skip
        self.refuses(
            "pull() of a set that there is not raises RigError or WireError",
            lambda: self._pulled(absent, b"", bytearray()),
        )

    def _pulled(self, entry: SetEntry, have: bytes, into: bytearray) -> RootCauseSet:
        def keep(data: bytes) -> None:
            if not isinstance(data, bytes):
                self.hold(False, "pull() passes bytes to progress", f"it passed {data!r}"[:200])
            into.extend(data)

        return self.one(RootCauseSet, "pull", entry, have, self.deadline(), keep)

    def _judged(
        self, identity: Identity, entry: SetEntry, pulled: RootCauseSet, stored: bytes
    ) -> None:
        """What a verdict needs of the set."""
        for key, wanted in (
            ("serial_number", identity.serial_number),
            ("boot_epoch", identity.boot_epoch),
            ("incident_id", INCIDENT_ID),
        ):
            self.hold(
                pulled.header[key] == wanted,
                f"the set's header has the right {key}",
                f"{pulled.header[key]!r} is not {wanted!r}",
            )
        unknown = sorted(set(pulled.tells) - rootcause.KNOWN_EVENTS)
        self.hold(
            not unknown,
            "tells names events that a verdict knows, and no others",
            f"not known: {', '.join(unknown)}",
        )
        own = rootcause.this_boot(pulled.events)
        self.hold(
            all(a["uptime_ns"] - b["uptime_ns"] <= DISORDER_NS for a, b in itertools.pairwise(own)),
            "the event log has a BOOT record for each boot: after the last one uptime_ns does not go back",
        )
        reads = callable(getattr(self.made, "decode_set", None))
        self.hold(
            reads or _is_standard(stored),
            "a set of a format of its own is read by a static method decode_set(stored, serial_number)",
        )
        if not reads:
            return
        decode = self.made.decode_set  # type: ignore[attr-defined]
        self.hold(
            decode(stored, identity.serial_number).events == pulled.events,
            "decode_set() gives the events that pull() gave",
        )
        for damaged in (b"", stored[: len(stored) // 2], bytes(len(stored))):
            self.refuses(
                "decode_set() of damaged bytes raises WireError",
                lambda damaged=damaged: decode(damaged, identity.serial_number),  # type: ignore[misc]
            )

    def _optional(self, identity: Identity, frame: bytes, entry: SetEntry) -> None:
        if isinstance(self.made, Printing):
            reply = self.one(Reply, "print_line", CANARY, self.deadline())
            self.hold(reply.ok, "print_line() is answered with ok", f"the answer is {reply}")
        if isinstance(self.made, Rehearsing):
            listed = len(self._listed())
            if isinstance(self.made, Preparable):
                self.call("prepare", identity, INCIDENT_ID, self.deadline())
            reply = self.one(Reply, "rehearse", frame, self.deadline())
            self.hold(
                reply.ok and reply.status in (REHEARSED, UNREHEARSED),
                f"rehearse() is answered with ok and {REHEARSED!r} or {UNREHEARSED!r}",
                f"the answer is {reply}",
            )
            self.hold(len(self._listed()) == listed, "rehearse() saves nothing")
        if isinstance(self.made, BlockReading):
            self._reads_blocks()

    def _reads_blocks(self) -> None:
        """The first 64 KiB, whose second half is read alone too, and a place that no volume has."""
        size, half = MAX_BLOCK_READ_BYTES, MAX_BLOCK_READ_BYTES // 2
        whole = self.one(bytes, "read_blocks", 0, size, self.deadline())
        self.hold(
            len(whole) == size,
            f"read_blocks() returns the {size} bytes that it was asked for",
            f"it returned {len(whole)}",
        )
        self.hold(
            self.one(bytes, "read_blocks", half, half, self.deadline()) == whole[half:],
            "read_blocks() of a part gives what the whole has there",
        )
        sector = self.one(bytes, "read_blocks", 512, 512, self.deadline())
        self.hold(sector == whole[512:1024], "read_blocks() of one sector returns that sector")
        self.refuses(
            "read_blocks() beyond the end of the volume raises RigError or WireError",
            lambda: self.call("read_blocks", 1 << 62, size, self.deadline()),
        )
        self.hold(
            isinstance(getattr(self.made, "reads_while_booting", False), bool),
            "reads_while_booting is True or False",
        )


def _is_standard(stored: bytes) -> bool:
    try:
        rootcause.decode(stored)
    except WireError:
        return False
    return True
