"""The boundary: ordinary mistakes of a first driver. Each ends in a sentence that names the driver, the
method and what is expected; none costs the other side's set, the raw bytes, or the incident."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from freezeframe.driver import (
    Acknowledging,
    BlockReading,
    ByteLink,
    DriverError,
    FaultArming,
    HostPort,
    Identity,
    Printing,
    Reply,
    RootCauseSet,
    SetEntry,
    Side,
    UsageError,
)
from freezeframe.drivers.skeleton.device import SERIAL_NUMBER, Device, DeviceLine
from freezeframe.drivers.skeleton.driver import SkeletonDriver
from freezeframe.harness.bench import boundary
from freezeframe.harness.core.events import NS_PER_S, SIDES
from freezeframe.harness.core.recovery.messages import (
    AwaitReply,
    Compared,
    Pull,
    PullBroke,
    Pulled,
    RecoveryEvent,
    TimedOut,
)
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.runs.carry import Carrier

INCIDENT = b"0123456789abcdef"


def limit() -> int:
    return time.monotonic_ns() + 60 * NS_PER_S


class Kept:
    """Where a recovery's results are kept, in memory."""

    incident_id = INCIDENT

    def __init__(self) -> None:
        self.raw: dict[Side, bytearray] = {side: bytearray() for side in SIDES}
        self.sets: dict[Side, RootCauseSet] = {}
        self.reasons: dict[Side, str] = {}

    def note(self, text: str) -> None: ...
    def replied(self, side: Side, reply: Reply | None, now: int) -> None: ...
    def set_aside(self, side: Side) -> None: ...
    def store_save(self, side: Side, stored: bytes) -> None: ...

    def received_set(self, side: Side) -> bytes:
        return bytes(self.raw[side])

    def append_set(self, side: Side, data: bytes) -> None:
        self.raw[side] += data

    def missing_set(self, side: Side, reason: str) -> None:
        self.reasons[side] = reason

    def store_set(self, side: Side, pulled: RootCauseSet) -> None:
        self.sets[side] = pulled


class Pair:
    """The skeleton on both sides, each with a saved set; the primary's driver is ``kind``."""

    def __init__(self, kind: Callable[..., object]) -> None:
        self.kept = Kept()
        self.controllers = {}
        self.stored: dict[Side, bytes] = {}
        for side in SIDES:
            device = Device()
            device.clock = MonotonicClock()  # type: ignore[assignment]
            line = DeviceLine(device)
            line.read = lambda most, deadline_ns, line=line: _take(line, most)  # type: ignore[method-assign]
            device.ask(f"1 freeze {SERIAL_NUMBER} 1 0 {INCIDENT.hex()} save")
            self.stored[side] = device.sets[1][1]
            maker = kind if side == "primary" else SkeletonDriver
            name = "first" if side == "primary" else "skeleton"
            self.controllers[side] = boundary.make_controller(
                maker, name, side, line, serial_number=SERIAL_NUMBER
            )

    def await_full_duplex(self, deadline_ns: int) -> object: ...
    def power_cycle(self, side: Side) -> None: ...
    def reopen_control(self, side: Side, gone: ByteLink) -> None: ...

    def carrier(self) -> Carrier:
        return Carrier(
            self, self.kept, MonotonicClock(), armed=dict.fromkeys(SIDES, 1), is_autonomic=False,
            compare=lambda: Compared(equal=True), heard=lambda _: None, pause=lambda _: None,
            is_cancelled=lambda: False, acted=lambda *_: None,
        )  # fmt: skip

    def pull(self, side: Side) -> RecoveryEvent:
        return self.carrier().carry_out(Pull(side=side, attempt=1, deadline_ns=limit()))


def _take(line: DeviceLine, most: int) -> bytes:
    data = bytes(line._answered[:most])
    del line._answered[:most]
    return data


# --- the mistakes -------------------------------------------------------------------------------------------
class TakesNothing:
    """The constructor of somebody who had not read what it is given."""

    def __init__(self, port: str) -> None: ...


class NamesTheSerialDifferently(SkeletonDriver):
    def __init__(self, side: Side, link: ByteLink, *, serial: str) -> None:
        super().__init__(side, link, serial_number=serial)


class RaisesInTheConstructor(SkeletonDriver):
    def __init__(self, side: Side, link: ByteLink, *, serial_number: str, options: Any) -> None:
        raise FileNotFoundError("/etc/vendor.conf")


class ForgetsTheSide(SkeletonDriver):
    def __init__(self, side: Side, link: ByteLink, *, serial_number: str, options: Any) -> None:
        super().__init__("left", link, serial_number=serial_number)  # type: ignore[arg-type]


class PatternAsText(SkeletonDriver):
    warmstart_line = "skeleton: warmstart"  # type: ignore[assignment]


class PatternUnclosed(SkeletonDriver):
    boot_line = rb"boot (\d+"


class WithOptionsOfNoType(SkeletonDriver):
    Options = dict  # type: ignore[assignment]


class IdentityAsMap(SkeletonDriver):
    def identify(self, deadline_ns: int) -> Identity:
        return vars(super().identify(deadline_ns))  # type: ignore[return-value]


class ReadsAWordThatIsNotThere(SkeletonDriver):
    def identify(self, deadline_ns: int) -> Identity:
        raise KeyError("uptime")


class EndsTheProcess(SkeletonDriver):
    def identify(self, deadline_ns: int) -> Identity:
        raise SystemExit(1)


class FrameAsText(SkeletonDriver):
    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        return super().freeze_frame(identity, reason, incident_id).decode()  # type: ignore[return-value]


class ReplyIsTrue(SkeletonDriver):
    def freeze_reply(self, frame: bytes, deadline_ns: int) -> Reply | None:
        return True  # type: ignore[return-value]


class StateIsNone(SkeletonDriver):
    def state(self, deadline_ns: int) -> dict[str, Any]:
        return None  # type: ignore[return-value]


class EndlessSets(SkeletonDriver):
    def sets(self, deadline_ns: int) -> list[SetEntry]:
        one = super().sets(deadline_ns)[0]
        return iter(lambda: one, None)  # type: ignore[return-value]


class IncidentAsText(SkeletonDriver):
    def sets(self, deadline_ns: int) -> list[SetEntry]:
        found = super().sets(deadline_ns)
        return [replace(one, incident_id=one.incident_id.hex()) for one in found]  # type: ignore[arg-type]


class RawBytesAsText(SkeletonDriver):
    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: int, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        return super().pull(entry, have, deadline_ns, lambda one: progress(one.decode()))  # type: ignore[arg-type]


class KeepsTheRawBytes(SkeletonDriver):
    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: int, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        return super().pull(entry, have, deadline_ns, lambda _: None)


class PassesThemTwice(SkeletonDriver):
    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: int, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        found = super().pull(entry, have, deadline_ns, progress)
        super().pull(entry, b"", deadline_ns, progress)
        return found


class DecodesWrong(SkeletonDriver):
    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        return RootCauseSet(header=json.loads(stored)["heading"], state={}, events=[])


class SetWithoutSector(SkeletonDriver):
    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        found = SkeletonDriver.decode_set(stored, serial_number)
        record = {"seq": 9, "uptime_ns": 1, "name": "REPL_DIGEST_FAILED", "level": "ERROR"}
        return replace(found, events=[*found.events, record])


class SetAsMap(SkeletonDriver):
    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        return json.loads(stored)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Mistake:
    kind: Callable[..., object]
    says: tuple[str, ...]
    """Parts of the sentence, besides the driver's name."""
    keeps_raw: bool = False
    """The raw bytes are in the incident all the same."""


MISTAKES: Mapping[str, Mistake] = {
    "the constructor takes something else": Mistake(
        TakesNothing, ("its constructor", "TypeError", "(side, link, *, serial_number)")
    ),
    "a parameter has another name": Mistake(
        NamesTheSerialDifferently, ("its constructor", "serial_number")
    ),
    "the constructor raises": Mistake(RaisesInTheConstructor, ("its constructor", "vendor.conf")),
    "the side is another one": Mistake(ForgetsTheSide, ("its side is str ('left')", "'primary'")),
    "a pattern is text": Mistake(PatternAsText, ("warmstart_line is str", "b'...'")),
    "a pattern is no regex": Mistake(PatternUnclosed, ("boot_line", "no regular expression")),
    "options without a type": Mistake(WithOptionsOfNoType, ("Options is not a dataclass",)),
    "an identity that is a map": Mistake(
        IdentityAsMap, ("identify() returned dict", "an Identity")
    ),
    "a KeyError": Mistake(
        ReadsAWordThatIsNotThere, ("identify() raised KeyError: 'uptime'", "an Identity", "line")
    ),
    "sys.exit": Mistake(EndsTheProcess, ("identify() raised SystemExit", "an Identity")),
    "str instead of bytes": Mistake(
        FrameAsText, ("freeze_frame() returned str", "expected: bytes")
    ),
    "a reply that is True": Mistake(
        ReplyIsTrue, ("freeze_reply() returned bool", "a Reply, or None")
    ),
    "a state that is None": Mistake(StateIsNone, ("state() returned NoneType", "STATE_KEYS")),
    "endless sets": Mistake(EndlessSets, ("sets() lists more than 4096", "a list of SetEntry")),
    "an incident id as text": Mistake(IncidentAsText, ("sets() returned SetEntry", "not bytes")),
    "raw bytes as text": Mistake(RawBytesAsText, ("pull() passed str", "expected: bytes")),
    "raw bytes that are not passed on": Mistake(
        KeepsTheRawBytes, ("passed 0 of", "every stored byte")
    ),
    "raw bytes twice": Mistake(PassesThemTwice, ("passed more than the", "once"), keeps_raw=True),
    "a decoder's KeyError": Mistake(
        DecodesWrong, ("pull() raised KeyError: 'heading'", "a RootCauseSet"), keeps_raw=True
    ),
    "an event without a sector": Mistake(
        SetWithoutSector, ("(REPL_DIGEST_FAILED) has no 'sector'",), keeps_raw=True
    ),
    "a set that is a map": Mistake(SetAsMap, ("dict is not a RootCauseSet",), keeps_raw=True),
}


def said_of(kind: Callable[..., object]) -> tuple[str, Pair | None]:
    """What the bench says when this driver plays the primary, by the first call that goes wrong."""
    try:
        pair = Pair(kind)
    except (DriverError, UsageError) as error:
        return str(error), None
    primary = pair.controllers["primary"]
    try:
        identity = primary.identify(limit())
        frame = primary.freeze_frame(identity, 0, bytes(16), disruptive=False)
        primary.link.write(frame)
        primary.freeze_reply(frame, limit())
        primary.state(limit())
    except DriverError as error:
        return str(error), pair
    broke = pair.pull("primary")
    assert isinstance(broke, PullBroke), broke
    assert pair.kept.reasons["primary"] == broke.reason
    return broke.reason, pair


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_first_drivers_mistake_is_named_and_costs_nobody_else(mistake: str) -> None:
    wrong = MISTAKES[mistake]
    said, pair = said_of(wrong.kind)
    assert "driver 'first'" in said and "primary" in said
    for part in wrong.says:
        assert part in said, said
    if pair is None:
        return
    assert pair.pull("secondary") == Pulled(side="secondary")
    assert bytes(pair.kept.raw["secondary"]) == pair.stored["secondary"]
    if wrong.keeps_raw:
        assert bytes(pair.kept.raw["primary"]) == pair.stored["primary"]


def test_a_right_driver_passes_both_ways() -> None:
    pair = Pair(SkeletonDriver)
    assert [pair.pull(side) for side in SIDES] == [Pulled(side=side) for side in SIDES]
    assert pair.kept.sets["primary"].header["incident_id"] == INCIDENT
    primary = pair.controllers["primary"]
    assert isinstance(primary, Printing) and isinstance(primary, FaultArming)
    assert not isinstance(primary, Acknowledging)  # one role does not need another
    reply = primary.print_line("x", limit())
    assert reply.ok and reply.t_received_ns


def test_a_reply_without_a_time_gets_the_time_at_which_it_came() -> None:
    class Timeless(SkeletonDriver):
        def print_line(self, text: str, deadline_ns: int) -> Reply:
            return Reply(ok=True, status="ok")

    primary = Pair(Timeless).controllers["primary"]
    assert isinstance(primary, Printing)
    before = time.monotonic_ns()
    assert before <= primary.print_line("x", limit()).t_received_ns <= time.monotonic_ns()


def test_an_error_that_bytes_may_have_caused_is_asked_again_and_another_is_not() -> None:
    def raising(error: Exception) -> DriverError:
        class Raises(SkeletonDriver):
            def identify(self, deadline_ns: int) -> Identity:
                raise error

        with pytest.raises(DriverError) as caught:
            Pair(Raises).controllers["primary"].identify(limit())
        return caught.value

    assert not raising(ValueError("invalid literal")).is_broken
    assert raising(AttributeError("no such thing")).is_broken


def test_a_call_that_never_returns_is_given_up_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "GRACE_S", 0.05)
    goes_on = threading.Event()

    class Hangs(SkeletonDriver):
        def identify(self, deadline_ns: int) -> Identity:
            goes_on.wait(60)
            return super().identify(deadline_ns)

    primary = Pair(Hangs).controllers["primary"]
    try:
        with pytest.raises(DriverError, match=r"identify\(\) did not return by its deadline"):
            primary.identify(time.monotonic_ns())
        with pytest.raises(DriverError, match=r"identify\(\) has still not returned, state\(\) is"):
            primary.state(limit())
    finally:
        goes_on.set()


def test_a_hung_block_read_costs_the_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "GRACE_S", 0.05)
    goes_on = threading.Event()

    class Hangs(SkeletonDriver):
        def read_blocks(self, offset_bytes: int, length_bytes: int, deadline_ns: int) -> bytes:
            goes_on.wait(60)
            return bytes(length_bytes)

    pair = Pair(Hangs)
    primary = pair.controllers["primary"]
    assert isinstance(primary, BlockReading)
    try:
        with pytest.raises(DriverError, match=r"read_blocks\(\) did not return by its deadline"):
            primary.read_blocks(0, 512, time.monotonic_ns())
        with pytest.raises(DriverError, match=r"read_blocks\(\) has still not returned"):
            primary.read_blocks(0, 512, limit())
        assert primary.identify(limit()).serial_number == SERIAL_NUMBER
        assert pair.pull("primary") == Pulled(side="primary")
        assert bytes(pair.kept.raw["primary"]) == pair.stored["primary"]
    finally:
        goes_on.set()


# --- hosts and supplies --------------------------------------------------------------------------------------
class ShortReads:
    size_bytes = 1 << 20

    def __init__(self, url: str) -> None: ...
    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return bytes(length_bytes - 1)

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        raise OSError(5, "Input/output error")

    def flush(self) -> None: ...
    def trim(self, offset_bytes: int, length_bytes: int) -> None: ...
    def close(self) -> None: ...


def test_a_hosts_mistakes_are_named() -> None:
    port: HostPort = boundary.make_host(ShortReads, "vol", "secondary", "vol://1")
    with pytest.raises(
        DriverError, match=r"driver 'vol' \(secondary host\): read\(\) returned 511"
    ):
        port.read(0, 512)
    with pytest.raises(DriverError, match=r"write\(\) raised OSError: .*Input/output error"):
        port.write(0, bytes(512))
    sizeless = type("Sizeless", (ShortReads,), {"size_bytes": "1 MiB"})
    with pytest.raises(DriverError, match="size_bytes is str"):
        boundary.make_host(sizeless, "vol", "primary", "vol://1")


def test_a_supplys_mistakes_are_named() -> None:
    class Supply:
        def __init__(self, resource: str, *, volts: float, limit_a: float, safe_state: str) -> None:
            self.resource = resource

        def set_output(self, side: Side, on: bool) -> None:
            raise ZeroDivisionError

        def output(self, side: Side) -> bool:
            return 1  # type: ignore[return-value]

        def measure(self, side: Side) -> tuple[float, float]:
            return (12.0,)  # type: ignore[return-value]

        def identify(self) -> str:
            return b"supply"  # type: ignore[return-value]

        def close(self) -> None: ...

    given = {"volts": 12.0, "limit_a": 1.0, "safe_state": "off"}
    rail = boundary.make_power(Supply, "amp", "TCPIP::x", **given)
    calls: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: rail.set_output("primary", True), "set_output() raised ZeroDivisionError"),
        (lambda: rail.output("primary"), "output() returned int (1); expected: True or False"),
        (lambda: rail.measure("primary"), "measure() returned tuple ((12.0,))"),
        (rail.identify, "identify() returned bytes"),
    )
    for call, words in calls:
        with pytest.raises(DriverError) as caught:
            call()
        assert words in str(caught.value) and "driver 'amp' (power)" in str(caught.value)
    with pytest.raises(DriverError, match="its constructor raised TypeError"):
        boundary.make_power(TakesNothing, "amp", "x", **given)


# --- sets, read again without the device ------------------------------------------------------------------------
def test_a_decoders_mistake_is_named_when_an_incident_is_read_again() -> None:
    with pytest.raises(
        DriverError, match=r"driver 'acme' \(primary\): decode_set\(\) raised KeyErr"
    ):
        boundary.decoded("acme", "primary", DecodesWrong.decode_set, b"{}", "1")
    device = Device()
    device.ask(f"1 freeze {SERIAL_NUMBER} 1 0 {INCIDENT.hex()} save")
    stored = device.sets[1][1]
    found = boundary.decoded("acme", "primary", SkeletonDriver.decode_set, stored, SERIAL_NUMBER)
    assert found.events and hashlib.sha256(stored).hexdigest() == device.sets[1][0]["sha256"]


def test_an_exception_in_a_recovery_is_a_time_out_with_its_reason() -> None:
    class Refuses(SkeletonDriver):
        def freeze_reply(self, frame: bytes, deadline_ns: int) -> Reply | None:
            raise UsageError("not a frame of this driver")

    carrier = Pair(Refuses).carrier()
    carrier.frames["primary"] = b"1 freeze"
    done = carrier.carry_out(AwaitReply(side="primary", deadline_ns=limit()))
    assert isinstance(done, TimedOut) and "not a frame of this driver" in done.detail


def test_constructors_are_checked_without_a_device() -> None:
    assert boundary.constructor_problem(SkeletonDriver) == ""
    assert "does not fit" in boundary.constructor_problem(NamesTheSerialDifferently)
    assert "(side, link, *, serial_number)" in boundary.constructor_problem(TakesNothing)
