"""The boundary between FreezeFrame and a driver, whoever wrote it.

Every call to a driver goes through here. What a driver raises that it was not meant to raise, what
it returns that its role does not promise, and a call that does not end by its deadline, all become a
DriverError, which names the driver, the method and what is expected. A DriverError is a RigError: it
costs what was asked for, and neither the other side's root cause data set nor the incident.
"""

import inspect
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from freezeframe.harness.bench.options import make_options, secrets_of
from freezeframe.harness.core import rootcause
from freezeframe.harness.core.events import NS_PER_S, Ns, Side
from freezeframe.harness.core.text import escape, where_raised
from freezeframe.harness.errors import DriverError, HarnessError, UsageError
from freezeframe.harness.promises.values import (
    OPTIONAL,
    PROMISES,
    BrokenPromiseError,
    Promise,
    pulled_set,
    shown,
)
from freezeframe.harness.roles import (
    BlockReading,
    ByteLink,
    Controller,
    HostPort,
    PowerRail,
    SetEntry,
)

GRACE_S: Final = 5.0
"""After its deadline a call may take so long to end; then it is given up, and the driver with it
until the call has ended after all: of a block read, its block reads only."""
MAX_SAID_CHARS: Final = 300
"""Of the text of an exception."""
_BY_BYTES: Final = (ValueError, LookupError, ArithmeticError, EOFError, OSError)
"""Exceptions that a device's bytes may have caused in a driver that is otherwise right."""
READS: Final = ((HostPort, "read"), (BlockReading, "read_blocks"))
"""Methods that return as many bytes as their ``length_bytes``."""
T = TypeVar("T")


# --- calling ------------------------------------------------------------------------------------------------
class DriverGuard:
    """Calls the methods of one driver object, one at a time."""

    def __init__(self, driver: str, where: str, secrets: tuple[str, ...] = ()) -> None:
        """``where``: the part of the bench that it plays, for people."""
        self.who = f"driver {driver!r} ({where})" if where else f"driver {driver!r}"
        self._secrets = secrets
        self._stuck: threading.Thread | None = None
        self._stuck_in = ""

    def error(self, what: str, expected: str = "", *, is_broken: bool = True) -> DriverError:
        text = f"{self.who}: {what}" + (f"; expected: {expected}" if expected else "")
        return DriverError(self.without_secrets(text), is_broken=is_broken)

    def without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "<secret>")
        return text

    def raised(self, method: str, error: BaseException, expected: str) -> DriverError:
        """What a driver raised that no role knows, as its own error."""
        said = escape(str(error))[:MAX_SAID_CHARS]
        where = where_raised(error)
        what = f"{method} raised {type(error).__name__}" + (f": {said}" if said else "") + where
        return self.error(what, expected, is_broken=not isinstance(error, _BY_BYTES))

    def call(
        self, name: str, promise: Promise, bound: Callable[[], object], deadline_ns: Ns | None
    ) -> object:
        """The method's value, checked. DriverError, or what the driver raised on purpose."""
        method = f"{name}()"
        try:
            value = bound() if deadline_ns is None else self._bounded(method, bound, deadline_ns)
            return promise.take(value)
        except BrokenPromiseError as error:
            raise self.error(f"{method} {error}", promise.expected) from None
        except HarnessError as error:
            if self._secrets and (said := self.without_secrets(str(error))) != str(error):
                raise self.error(f"{method}: {said}") from None
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self.raised(method, error, promise.expected) from error

    def _bounded(self, method: str, bound: Callable[[], object], deadline_ns: Ns) -> object:
        """In a thread of its own, so that a driver which never returns stops nobody else."""
        if self._stuck is not None and self._stuck.is_alive():
            raise self.error(f"{self._stuck_in} has still not returned, {method} is not called")
        done: list[tuple[bool, Any]] = []

        def run() -> None:
            try:
                done.append((True, bound()))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                done.append((False, error))

        thread = threading.Thread(target=run, name=f"{self.who} {method}", daemon=True)
        thread.start()
        left_s = max(0, deadline_ns - time.monotonic_ns()) / NS_PER_S
        thread.join(left_s + GRACE_S)
        if not done:
            self._stuck, self._stuck_in = thread, method
            raise self.error(
                f"{method} did not return by its deadline, nor {GRACE_S:.0f} s later",
                "every call returns or raises RigError by deadline_ns",
            )
        is_value, value = done[0]
        if is_value:
            return value
        assert isinstance(value, BaseException)
        raise value


def guarded(
    made: object, role: type, driver: str, where: str, secrets: tuple[str, ...] = ()
) -> Any:
    """``made`` behind the boundary: it plays the same roles. What is no method of a role is the
    driver's own."""
    guard = DriverGuard(driver, where, secrets)
    # An extra beside the recovery: one that does not return costs no identify, no set.
    beside = DriverGuard(driver, where, secrets)
    roles = [role, *(one for one in OPTIONAL if role is Controller and isinstance(made, one))]
    methods = {
        name: _method(beside if one is BlockReading else guard, one, name, promise)
        for one in roles
        for name, promise in PROMISES[one].items()
    }
    if role is Controller:
        methods["pull"] = _pull(guard)
    kind = type(f"Guarded{role.__name__}", (_Guarded,), methods)
    return kind(made)


class _Guarded:
    """Passes everything on; its methods are made by ``guarded``."""

    def __init__(self, made: object) -> None:
        self.__dict__["driven"] = made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["driven"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["driven"], name, value)


def _method(guard: DriverGuard, role: type, name: str, promise: Promise) -> Callable[..., object]:
    signature = inspect.signature(getattr(role, name))

    def call(self: _Guarded, *args: Any, **kwargs: Any) -> object:
        given = signature.bind(self, *args, **kwargs).arguments
        driven = self.__dict__["driven"]

        def bound() -> object:
            return getattr(driven, name)(*args, **kwargs)

        value = guard.call(name, promise, bound, given.get("deadline_ns"))
        wanted = given.get("length_bytes") if (role, name) in READS else None
        if wanted is not None and isinstance(value, bytes) and len(value) != wanted:
            raise guard.error(f"{name}() returned {len(value)} bytes", f"{wanted}, as asked for")
        return value

    call.__name__ = name
    return call


def _pull(guard: DriverGuard) -> Callable[..., object]:
    """``pull`` keeps raw bytes: what it passes to ``progress`` is checked as it comes."""
    promise = PROMISES[Controller]["pull"]

    def pull(
        self: _Guarded,
        entry: SetEntry,
        have: bytes,
        deadline_ns: Ns,
        progress: Callable[[bytes], None],
    ) -> object:
        driven, arrived, is_over = self.__dict__["driven"], len(have), False

        def keep(data: bytes) -> None:
            nonlocal arrived
            if is_over:
                raise guard.error("pull() goes on after it was given up")
            if not isinstance(data, bytes | bytearray | memoryview):
                raise guard.error(f"pull() passed {shown(data)} to progress", "bytes")
            if arrived + len(data) > entry.stored_bytes:
                raise guard.error(
                    f"pull() passed more than the {entry.stored_bytes} bytes to progress that sets() lists",
                    "each stored byte once, from the first that was not there yet",
                )
            arrived += len(data)
            progress(bytes(data))

        try:
            value = guard.call(
                "pull", promise, lambda: driven.pull(entry, have, deadline_ns, keep), deadline_ns
            )
        finally:
            is_over = True
        if arrived != entry.stored_bytes:
            raise guard.error(
                f"pull() returned a set and passed {arrived} of {entry.stored_bytes} bytes to progress",
                "every stored byte: without them the incident cannot be read again",
            )
        return value

    return pull


# --- making -------------------------------------------------------------------------------------------------
def make_controller(
    maker: Callable[..., object],
    driver: str,
    side: Side,
    link: ByteLink,
    *,
    serial_number: str,
    options: Mapping[str, object] | None = None,
    folder: Path = Path(),
) -> Controller:
    """A controller behind the boundary. ``options`` as the bench file has them. UsageError: they do
    not fit; DriverError: the driver cannot be made, or lacks what its role promises."""
    try:
        made_options = make_options(maker, options or {}, folder)
    except UsageError as error:
        raise UsageError(f"{side}: driver {driver!r}: {error}") from None
    secrets = secrets_of(made_options)
    guard = DriverGuard(driver, side, secrets)
    expected = CONSTRUCTOR + (", options=Options(...))" if made_options is not None else ")")
    extra = {"options": made_options} if made_options is not None else {}
    made = _made(guard, lambda: maker(side, link, serial_number=serial_number, **extra), expected)
    for name in ("side", "link"):
        if not hasattr(made, name):
            raise guard.error(
                f"the object has no attribute {name}", f"self.{name} = {name} in its constructor"
            )
    if (has := getattr(made, "side", None)) != side:
        raise guard.error(f"its side is {shown(has)}", f"{side!r}, as it was given")
    for name in ("warmstart_line", "boot_line"):
        _check_pattern(guard, name, getattr(made, name, None), is_needed=name == "warmstart_line")
    repeats = getattr(made, "frame_repeats", 0)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or not 0 <= repeats <= MAX_REPEATS:
        raise guard.error(f"frame_repeats is {shown(repeats)}", f"a number from 0 to {MAX_REPEATS}")
    controller: Controller = guarded(made, Controller, driver, side, secrets)
    return controller


MAX_REPEATS: Final = 5
"""Of a frame; each waits for ``reply_timeout_s``."""
CONSTRUCTOR: Final = "a constructor (side, link, *, serial_number"


def constructor_problem(maker: Callable[..., object]) -> str:
    """Why a controller's driver cannot be made, as far as its constructor's parameters show; "":
    they fit."""
    extra = {"options": None} if getattr(maker, "Options", None) is not None else {}
    expected = CONSTRUCTOR + (", options)" if extra else ")")
    try:
        inspect.signature(maker).bind("primary", None, serial_number="", **extra)
    except (TypeError, ValueError) as error:
        return f"its constructor does not fit: {error}; expected: {expected}"
    return ""


def _check_pattern(guard: DriverGuard, name: str, pattern: object, *, is_needed: bool) -> None:
    expected = "a regular expression as bytes, b'...'"
    if pattern is None and not is_needed:
        return
    if not isinstance(pattern, bytes) or (is_needed and not pattern):
        raise guard.error(f"{name} is {shown(pattern)}", expected)
    try:
        re.compile(pattern)
    except re.error as error:
        raise guard.error(
            f"{name} {pattern!r} is no regular expression: {error}", expected
        ) from None


def _made(guard: DriverGuard, make: Callable[[], T], expected: str) -> T:
    try:
        return make()
    except (HarnessError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise guard.raised("its constructor", error, expected) from error


def make_host(maker: Callable[..., object], driver: str, side: Side, url: str) -> HostPort:
    """A host port behind the boundary."""
    guard = DriverGuard(driver, f"{side} host")
    made = _made(guard, lambda: maker(url), "a constructor (url)")
    size = getattr(made, "size_bytes", None)
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise guard.error(f"size_bytes is {shown(size)}", "the volume's length in bytes")
    port: HostPort = guarded(made, HostPort, driver, f"{side} host")
    return port


def make_power(
    maker: Callable[..., object], driver: str, resource: str, **given: object
) -> PowerRail:
    """A supply behind the boundary."""
    guard = DriverGuard(driver, "power")
    expected = "a constructor (resource, *, volts, limit_a, safe_state)"
    made = _made(guard, lambda: maker(resource, **given), expected)
    rail: PowerRail = guarded(made, PowerRail, driver, "power")
    return rail


def decoded(
    driver: str,
    where: str,
    decode: Callable[[bytes, str], object],
    stored: bytes,
    serial_number: str,
) -> rootcause.RootCauseSet:
    """A set by its driver's ``decode_set``, checked."""
    promise = Promise("a RootCauseSet, or WireError for damaged bytes", pulled_set)
    found = DriverGuard(driver, where).call(
        "decode_set", promise, lambda: decode(stored, serial_number), None
    )
    assert isinstance(found, rootcause.RootCauseSet)
    return found
