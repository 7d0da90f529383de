"""The conformance kit: what each role promises, tried on one object that plays it.

Needs no test framework. ``freezeframe.testing`` is its public name; ``freezeframe driver check`` runs
it on the cases that a package registers, or on a bench's real devices.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Final, TypeVar

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.errors import HarnessError, RigError, UsageError, WireError
from freezeframe.harness.promises.values import OPTIONAL, PROMISES, BrokenPromiseError
from freezeframe.harness.roles import (
    Controller,
    HostPort,
    PowerRail,
)

SECTOR_BYTES: Final = 512
MAX_TRANSFER_BYTES: Final = 1 << 20
OFF_V: Final = 0.5
"""An output that is off may still measure this much: leakage, and the error of the instrument."""
T = TypeVar("T")


class ConformanceError(AssertionError):
    """The object does not do what its role promises; the text names the statement."""


class MonotonicTime:
    """CLOCK_MONOTONIC."""

    def now(self) -> Ns:
        return time.monotonic_ns()


def ignore(statement: str) -> None:
    """The default of ``passed``."""


class RoleTrial:
    """Holds one object to its role."""

    def __init__(self, made: object, role: type, passed: Callable[[str], None]) -> None:
        self.made = made
        self.who = type(getattr(made, "driven", made)).__name__
        self.passed = passed
        roles = [role]
        if role is Controller:
            roles += [one for one in OPTIONAL if isinstance(made, one)]
        self._promises = {name: promise for one in roles for name, promise in PROMISES[one].items()}
        lacking = [name for name in PROMISES[role] if not callable(getattr(made, name, None))]
        self.hold(not lacking, f"all methods of {role.__name__} are there", f"it lacks {lacking}")

    def hold(self, condition: bool, statement: str, found: str = "") -> None:
        """``found``: what there is instead."""
        if not condition:
            said = f"{statement}; {found}" if found else statement
            raise ConformanceError(f"{self.who}: does not hold: {said}")
        self.passed(statement)

    def call(self, name: str, *args: object, **kwargs: object) -> object:
        """The method's value, which is what it promises. What it raises on purpose comes
        through."""
        promise = self._promises[name]
        try:
            return promise.take(getattr(self.made, name)(*args, **kwargs))
        except BrokenPromiseError as error:
            problem = f"{name}() {error}"
        except (HarnessError, ConformanceError):
            raise
        except Exception as error:  # noqa: BLE001 - a driver's own mistake is a finding
            problem = f"{name}() raised {type(error).__name__}: {error}"
        raise ConformanceError(f"{self.who}: {problem}; expected: {promise.expected}")

    def one(self, kind: type[T], name: str, *args: object, **kwargs: object) -> T:
        value = self.call(name, *args, **kwargs)
        if not isinstance(value, kind):
            self.hold(False, f"{name}() returns {kind.__name__}", f"it returned {value!r}"[:200])
        assert isinstance(value, kind)
        return value

    def refuses(self, statement: str, call: Callable[[], object]) -> None:
        """``call`` raises RigError or WireError."""
        try:
            call()
        except (RigError, WireError):
            self.passed(statement)
            return
        except UsageError:
            pass
        except ConformanceError:
            raise
        except Exception as error:
            raise ConformanceError(
                f"{self.who}: {statement}; it raises {type(error).__name__}: {error}"
            ) from error
        raise ConformanceError(f"{self.who}: does not hold: {statement}")


# --- hosts and supplies ---------------------------------------------------------------------------------------
def check_host_port(port: HostPort, *, passed: Callable[[str], None] = ignore) -> None:
    """``HostPort``: what is written is read back, at both ends of the volume and up to 1 MiB in one
    call; a flush and a forced write are accepted; a read or a write beyond the end is an error.

    OVERWRITES the first MiB and the last sector of the volume. ``trim`` is called on the first MiB;
    what is read there afterwards is not prescribed.
    """
    kit = RoleTrial(port, HostPort, passed)
    size = getattr(port, "size_bytes", None)
    kit.hold(
        isinstance(size, int) and size >= 2 * SECTOR_BYTES and size % SECTOR_BYTES == 0,
        f"size_bytes is a positive multiple of {SECTOR_BYTES}, at least two sectors",
        f"it is {size!r}",
    )
    assert isinstance(size, int)
    length = min(MAX_TRANSFER_BYTES, size - SECTOR_BYTES)
    data = b"".join(
        hashlib.sha512(number.to_bytes(8, "big")).digest() for number in range(length // 64)
    )
    kit.call("write", 0, data)
    kit.hold(
        kit.call("read", 0, length) == data, f"{length} bytes at offset 0 are read back as written"
    )
    last = size - SECTOR_BYTES
    kit.call("write", last, data[:SECTOR_BYTES], fua=True)
    kit.hold(
        kit.call("read", last, SECTOR_BYTES) == data[:SECTOR_BYTES],
        "the last sector is read back as written with fua",
    )
    kit.hold(
        kit.call("read", 0, length) == data, "a write to one place leaves the others as they were"
    )
    kit.call("flush")
    kit.call("write", SECTOR_BYTES, bytes(SECTOR_BYTES))
    kit.hold(
        kit.call("read", 0, length)
        == data[:SECTOR_BYTES] + bytes(SECTOR_BYTES) + data[2 * SECTOR_BYTES :],
        "an overwritten sector holds the new data, its neighbours the old",
    )
    kit.call("trim", 0, length)
    for name, what in (("read", SECTOR_BYTES), ("write", bytes(SECTOR_BYTES))):
        statement = f"a {name} beyond the end raises an error of freezeframe.driver"
        try:
            kit.call(name, size, what)
        except HarnessError:
            kit.passed(statement)
        else:
            kit.hold(False, statement)


def check_power_rail(
    rail: PowerRail, side: Side, *, passed: Callable[[str], None] = ignore
) -> None:
    """``PowerRail``: it says who it is, and output and measurement follow ``set_output``, also when
    that changes nothing; the other output stays as it is. SWITCHES the output of ``side`` off and
    on, and leaves it on."""
    kit = RoleTrial(rail, PowerRail, passed)
    kit.hold(bool(kit.one(str, "identify").strip()), "identify() returns a text")
    other: Side = "secondary" if side == "primary" else "primary"
    before = kit.call("output", other)
    for on in (False, False, True, True):
        kit.call("set_output", side, on)
        kit.hold(
            kit.call("output", side) is on,
            f"after set_output({side!r}, {on}), output() returns {on}",
        )
        measured = kit.call("measure", side)
        assert isinstance(measured, tuple)
        volts, amperes = measured
        kit.hold(amperes > -1, "measure() returns volts and amperes", f"it returned {measured}")
        kit.hold(
            (volts > OFF_V) is on,
            f"after set_output({side!r}, {on}), measure() agrees",
            f"measured: {volts} V",
        )
        kit.hold(
            kit.call("output", other) is before,
            f"set_output({side!r}, {on}) leaves the output of the {other} as it is",
        )
