"""Public: checks of what you wrote against the role that it plays. Free of pytest.

Each ``check_...`` function returns nothing when all is well and raises ``ConformanceError`` at the
first statement of the role that does not hold. They use the real device: each says what it changes.
"""

import hashlib
import re
import time
from typing import Final

from freezeframe.harness.core.events import NS_PER_S, Ns, Side
from freezeframe.harness.core.link.check import ExpectedOnLink, check_protocol
from freezeframe.harness.core.rootcause import RootCauseSet
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.roles import (
    Clock,
    Controller,
    HostPort,
    PowerRail,
    Preparable,
    SetEntry,
)
from freezeframe.harness.wire.control import PAIR_STATE_NAMES, Reason
from freezeframe.harness.wire.rootcause import HEADER_KEYS, STATE_KEYS

__all__ = [
    "ConformanceError", "ExpectedOnLink", "check_controller", "check_host_port", "check_power_rail", "check_protocol",
]  # fmt: skip

SECTOR_BYTES: Final = 512
MAX_TRANSFER_BYTES: Final = 1 << 20
INCIDENT_ID: Final = b"freezeframe test"
assert len(INCIDENT_ID) == 16
OFF_V: Final = 0.5
"""An output that is off may still measure this much: leakage, and the error of the instrument."""


class ConformanceError(AssertionError):
    """The object does not do what its role promises; the text names the statement."""


class _MonotonicClock:
    def now(self) -> Ns:
        return time.monotonic_ns()


def _hold(condition: bool, statement: str) -> None:
    if not condition:
        raise ConformanceError(statement)


def check_host_port(port: HostPort) -> None:
    """``HostPort``: what is written is read back, at both ends of the volume and up to 1 MiB in one
    call; a flush and a forced write are accepted; a read beyond the end is an error.

    OVERWRITES the first MiB and the last sector of the volume. ``trim`` is called on the first MiB;
    what is read there afterwards is not prescribed.
    """
    size = port.size_bytes
    _hold(
        size >= 2 * SECTOR_BYTES and size % SECTOR_BYTES == 0,
        f"size_bytes is {size}: a positive multiple of {SECTOR_BYTES}, at least two sectors",
    )
    length = min(MAX_TRANSFER_BYTES, size - SECTOR_BYTES)
    data = b"".join(
        hashlib.sha512(number.to_bytes(8, "big")).digest() for number in range(length // 64)
    )
    port.write(0, data)
    _hold(port.read(0, length) == data, f"{length} bytes at offset 0 are read back as written")
    last = size - SECTOR_BYTES
    port.write(last, data[:SECTOR_BYTES], fua=True)
    _hold(
        port.read(last, SECTOR_BYTES) == data[:SECTOR_BYTES],
        "the last sector is read back as written with fua",
    )
    _hold(port.read(0, length) == data, "a write to one place leaves the others as they were")
    port.flush()
    port.write(SECTOR_BYTES, bytes(SECTOR_BYTES))
    _hold(
        port.read(0, length)
        == data[:SECTOR_BYTES] + bytes(SECTOR_BYTES) + data[2 * SECTOR_BYTES :],
        "an overwritten sector holds the new data, its neighbours the old",
    )
    port.trim(0, length)
    try:
        port.read(size, SECTOR_BYTES)
    except HarnessError:
        return
    raise ConformanceError("a read beyond the end raises an error of freezeframe.driver")


def check_power_rail(rail: PowerRail, side: Side) -> None:
    """``PowerRail``: it says who it is, and output and measurement follow ``set_output``, also when
    that changes nothing. SWITCHES the output of ``side`` off and on, and leaves it on."""
    _hold(bool(rail.identify().strip()), "identify() returns a text")
    for on in (False, False, True, True):
        rail.set_output(side, on)
        _hold(rail.output(side) is on, f"after set_output({side!r}, {on}), output() returns {on}")
        volts, amperes = rail.measure(side)
        _hold(amperes > -1, f"measure() returns amperes, not {amperes}")
        _hold((volts > OFF_V) is on, f"after set_output({side!r}, {on}), measured: {volts} V")


def check_controller(
    controller: Controller, *, timeout_s: float = 30.0, clock: Clock | None = None
) -> None:
    """``Controller``: identify, state, and one whole save: frame, answer, list, pull, and a pull
    that goes on after an interruption.

    The controller SAVES one root cause data set; it does not warmstart. ``timeout_s`` bounds each
    call; ``clock`` is the one that the driver's deadlines are measured by.
    """
    now = (clock or _MonotonicClock()).now

    def deadline() -> Ns:
        return now() + int(timeout_s * NS_PER_S)

    re.compile(controller.warmstart_line)
    first, identity = controller.identify(deadline()), controller.identify(deadline())
    _hold(
        bool(identity.model and identity.serial_number), "identify() names model and serial number"
    )
    _hold(
        identity.pair_state in PAIR_STATE_NAMES.values(),
        f"pair_state is one of {', '.join(PAIR_STATE_NAMES.values())}, not {identity.pair_state!r}",
    )
    _hold(
        (identity.serial_number, identity.boot_epoch) == (first.serial_number, first.boot_epoch)
        and identity.uptime_ns >= first.uptime_ns,
        "two calls of identify() in one boot give one serial number and boot epoch, and an uptime"
        " that does not go back",
    )
    missing = set(STATE_KEYS) - set(controller.state(deadline()))
    _hold(not missing, f"state() has all keys of STATE_KEYS; missing: {', '.join(sorted(missing))}")

    before = {entry.set_id for entry in controller.sets(deadline())}
    if isinstance(controller, Preparable):
        controller.prepare(identity, INCIDENT_ID, deadline())
    frame, disruptive = (
        controller.freeze_frame(identity, int(Reason.OPERATOR), INCIDENT_ID, disruptive=word)
        for word in (False, True)
    )
    _hold(
        bool(frame) and frame != disruptive,
        "freeze_frame() returns bytes, and others for a warmstart than for a save",
    )
    until = now() + NS_PER_S // 10
    _hold(
        controller.freeze_reply(disruptive, until) is None and now() >= until,
        "freeze_reply() of a frame that nobody sent returns None at its deadline",
    )
    controller.link.write(frame)
    reply = controller.freeze_reply(frame, deadline())
    _hold(reply is not None and reply.ok, f"the frame to save is answered with ok, not {reply}")
    new = [entry for entry in controller.sets(deadline()) if entry.set_id not in before]
    _hold(len(new) == 1, f"sets() lists one new set after a save, not {len(new)}")
    _hold(
        controller.identify(deadline()).boot_epoch == identity.boot_epoch,
        "a save does not begin a new boot",
    )
    _check_pull(controller, new[0], deadline())


def _check_pull(controller: Controller, entry: SetEntry, deadline_ns: Ns) -> None:
    """The whole set, then its second half."""
    stored = bytearray()
    pulled = controller.pull(entry, b"", deadline_ns, stored.extend)
    _hold(
        len(stored) == entry.stored_bytes,
        f"pull() passes {entry.stored_bytes} bytes to progress, not {len(stored)}",
    )
    _hold(
        hashlib.sha256(stored).hexdigest() == entry.sha256,
        "the bytes passed to progress have the SHA-256 that sets() lists",
    )
    _check_set(pulled)
    half = len(stored) // 2
    rest = bytearray()
    again = controller.pull(entry, bytes(stored[:half]), deadline_ns, rest.extend)
    _hold(rest == stored[half:], "a pull that has the first half passes on the second, no more")
    _hold(again == pulled, "an interrupted pull gives the same set as a whole one")


def _check_set(pulled: RootCauseSet) -> None:
    for name, part, keys in (
        ("header", pulled.header, HEADER_KEYS),
        ("state", pulled.state, STATE_KEYS),
    ):
        missing = sorted(set(keys) - set(part))
        _hold(not missing, f"the set's {name} lacks {', '.join(missing)}")
    ids = [record["seq"] for record in pulled.events]
    _hold(ids == sorted(set(ids)), "the event records have ascending, unique seq")
