"""The skeleton that `driver new` copies keeps every promise of its roles, and the conformance kit finds
each deliberate violation of one."""

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from freezeframe import testing
from freezeframe.driver import (
    SIDES,
    HarnessError,
    Identity,
    Reply,
    RigError,
    RootCauseSet,
    SetEntry,
    UsageError,
    WireError,
    state_record,
)
from freezeframe.drivers.skeleton import outputs, volume
from freezeframe.drivers.skeleton.device import (
    SERIAL_NUMBER,
    Device,
    DeviceLine,
    controller_case,
    link_case,
)
from freezeframe.drivers.skeleton.driver import SkeletonDriver
from freezeframe.drivers.skeleton.host import SkeletonHost
from freezeframe.drivers.skeleton.link import SkeletonLink, message
from freezeframe.drivers.skeleton.supply import SkeletonSupply
from freezeframe.harness.core.link.pdus import PduConnection, PduDirection
from freezeframe.harness.core.link.protocol import Tell


def test_the_skeletons_driver_keeps_its_promises() -> None:
    statements: list[str] = []
    testing.check_case(controller_case(), passed=statements.append)
    assert len(statements) > 30


def test_the_skeletons_protocol_keeps_the_guarantees() -> None:
    testing.check_case(replace(link_case(), trials=5))


# --- hosts and supplies -------------------------------------------------------------------------------------
@pytest.mark.parametrize("made", [volume.cases, outputs.cases])
def test_the_skeletons_volume_and_supply_keep_their_promises(
    made: Callable[[], list[testing.Case]],
) -> None:
    (case,) = made()
    statements: list[str] = []
    testing.check_case(case, passed=statements.append)
    assert len(statements) >= 8


class ShortVolume(volume.VolumeInMemory):
    """Answers with a byte less than was asked for, or closes in the middle."""

    cut_bytes = 1

    def recv(self, max_bytes: int, /) -> bytes:
        return super().recv(max(0, max_bytes - self.cut_bytes))


def test_an_answer_in_pieces_is_read_whole_and_one_that_ends_early_is_an_error() -> None:
    whole = SkeletonHost("skeleton://memory:1", connected=lambda _: Trickling())
    whole.write(512, b"x" * 1024)
    assert whole.read(0, 2048) == bytes(512) + b"x" * 1024 + bytes(512)
    with pytest.raises(RigError, match="refused: beyond the end"):
        whole.read(volume.SIZE_BYTES, 512)
    with pytest.raises(RigError, match="the connection was closed"):
        SkeletonHost("skeleton://memory:1", connected=lambda _: ShortVolume())


class Trickling(volume.VolumeInMemory):
    """Gives one to three bytes at a time."""

    def recv(self, max_bytes: int, /) -> bytes:
        return super().recv(min(max_bytes, 1 + len(self._answered) % 3))


def test_a_length_that_cannot_be_is_not_waited_for() -> None:
    wire = volume.VolumeInMemory()
    port = SkeletonHost("skeleton://memory:1", connected=lambda _: wire)
    wire._answered += b"\x00\xff\xff\xff\xff"
    with pytest.raises(WireError, match="an answer of 4294967295 bytes"):
        port.read(0, 512)


@pytest.mark.parametrize("url", ["nbd://a:1", "skeleton://a", "skeleton://:1", "a:1", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected: skeleton://HOST:PORT"):
        SkeletonHost(url)
    with pytest.raises(UsageError, match="expected: HOST:PORT"):
        SkeletonSupply(url.rpartition(":")[0], volts=12, limit_a=3, safe_state="off")


def test_nobody_there_is_the_benchs_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RigError, match="is the volume exported there"):
        SkeletonHost(f"skeleton://127.0.0.1:{port}")
    with pytest.raises(RigError, match="is it on, and in this network"):
        SkeletonSupply(f"127.0.0.1:{port}", volts=12, limit_a=3, safe_state="off")


@pytest.mark.parametrize(("safe_state", "is_on"), [("off", False), ("leave", True)])
def test_a_supply_is_left_in_its_safe_state(
    safe_state: Literal["off", "leave"], is_on: bool
) -> None:
    supply = outputs.SupplyInMemory()
    rail = SkeletonSupply(
        "memory:1", volts=12, limit_a=3, safe_state=safe_state, connected=lambda _: supply
    )
    rail.set_output("primary", True)
    rail.close()
    assert supply.is_on == {"primary": is_on, "secondary": False}


class Stuck(outputs.SupplyInMemory):
    """Refuses one verb for some outputs."""

    def __init__(self, verb: str, sides: tuple[str, ...]) -> None:
        super().__init__()
        self.verb, self.sides = verb, sides
        self.is_closed = False

    def _answer(self, verb: str, side: str = "", *values: str) -> str:
        refused = verb == self.verb and side in self.sides and values != ("1",)
        return "error stuck" if refused else super()._answer(verb, side, *values)

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("stuck", [("primary",), ("secondary",), ("primary", "secondary")])
def test_an_output_that_does_not_go_off_keeps_no_other_on_and_each_is_named(
    stuck: tuple[str, ...],
) -> None:
    supply = Stuck("set", stuck)
    rail = SkeletonSupply(
        "memory:1", volts=12, limit_a=3, safe_state="off", connected=lambda _: supply
    )
    for side in SIDES:
        rail.set_output(side, True)
    with pytest.raises(RigError, match="may still be on, switch it off by hand") as caught:
        rail.close()
    assert {side: supply.is_on[side] for side in SIDES} == {side: side in stuck for side in SIDES}
    assert all((f"{side}: " in str(caught.value)) == (side in stuck) for side in SIDES)
    assert supply.is_closed


@pytest.mark.parametrize("side", SIDES)
def test_a_supply_that_refuses_a_limit_is_not_kept_open(side: str) -> None:
    supply = Stuck("limit", (side,))
    with pytest.raises(RigError, match="error stuck"):
        SkeletonSupply(
            "memory:1", volts=12, limit_a=3, safe_state="off", connected=lambda _: supply
        )
    assert supply.is_closed


@pytest.mark.parametrize(
    ("answer", "words"),
    [("2", "is answered by '2'"), ("error busy", "error busy"), ("", "no whole answer")],
)
def test_an_answer_of_a_supply_that_makes_no_sense_is_named(answer: str, words: str) -> None:
    class Odd(outputs.SupplyInMemory):
        def _answer(self, verb: str, side: str = "", *values: str) -> str:
            return answer if verb == "get" else super()._answer(verb, side, *values)

        def recv(self, max_bytes: int, /) -> bytes:
            data = super().recv(max_bytes)
            return b"" if data == b"\n" else data

    rail = SkeletonSupply(
        "memory:1", volts=12, limit_a=3, safe_state="leave", connected=lambda _: Odd()
    )
    with pytest.raises(HarnessError, match=words):
        rail.output("primary")


# --- controllers ------------------------------------------------------------------------------------------
class Wrong(SkeletonDriver):
    """Breaks the role in one way: ``fault``."""

    fault = ""

    def identify(self, deadline_ns: int) -> Identity:
        found = super().identify(deadline_ns)
        match self.fault:
            case "a map for an identity":
                return vars(found)  # type: ignore[return-value]
            case "text for a number":
                return replace(found, boot_epoch="1")  # type: ignore[arg-type]
            case "a word of its own for the pair state":
                return replace(found, pair_state="UpToDate")
            case "another boot each time":
                return replace(found, boot_epoch=self._clock.now())
            case "an uptime that goes back":
                return replace(found, uptime_ns=-found.uptime_ns)
            case "its own exception":
                raise KeyError("serial")
            case "no end":
                self._clock.t_ns = deadline_ns + 60_000_000_000  # type: ignore[attr-defined]
        return found

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        if self.fault == "frames alike":
            disruptive = False
        if self.fault == "the boot left out":
            identity = replace(identity, boot_epoch=1)
        frame = super().freeze_frame(identity, reason, incident_id, disruptive=disruptive)
        if self.fault == "frames alike":
            return frame.split(maxsplit=1)[1]
        return frame.decode() if self.fault == "text for a frame" else frame  # type: ignore[return-value]

    def freeze_reply(self, frame: bytes, deadline_ns: int) -> Reply | None:
        found = super().freeze_reply(frame, deadline_ns)
        if self.fault == "an answer invented":
            return Reply(ok=True, status="ok")
        if found is not None and self.fault == "a reply without a time":
            return replace(found, t_received_ns=0)
        if found is not None and self.fault == "a reply as text":
            return "ok"  # type: ignore[return-value]
        return found

    def state(self, deadline_ns: int) -> dict[str, Any]:
        found = super().state(deadline_ns)
        return {} if self.fault == "an empty state" else found

    def sets(self, deadline_ns: int) -> list[SetEntry]:
        found = super().sets(deadline_ns)
        match self.fault:
            case "endless sets":
                return iter(lambda: _entry(found), None)  # type: ignore[return-value]
            case "no sets":
                return []
            case "sets of no incident":
                return [replace(one, incident_id=bytes(16)) for one in found]
            case "a digest in capitals":
                return [replace(one, sha256=one.sha256.upper()) for one in found]
            case "sets of one number":
                return [replace(one, set_id=1) for one in [*found, *found]] or [_entry([])] * 2
        return found

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: int, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        match self.fault:
            case "raw bytes kept to itself":
                return super().pull(entry, have, deadline_ns, lambda _: None)
            case "raw bytes as text":
                return super().pull(entry, have, deadline_ns, lambda one: progress(one.hex()))  # type: ignore[arg-type]
            case "from the start again":
                have = b""
            case "any set":
                entry = replace(entry, set_id=min(entry.set_id, 1))
        found = super().pull(entry, have, deadline_ns, progress)
        return vars(found) if self.fault == "a map for a set" else found  # type: ignore[return-value]

    def print_line(self, text: str, deadline_ns: int) -> Reply:
        found = super().print_line(text, deadline_ns)
        return replace(found, ok=False) if self.fault == "does not print" else found


def _entry(found: list[SetEntry]) -> SetEntry:
    return found[0] if found else SetEntry(
        set_id=1, kind="save", complete=True, reason=0, incident_id=bytes(16), raw_bytes=0, stored_bytes=0,
        boot_epoch=1, sha256="0" * 64,
    )  # fmt: skip


SETS: Mapping[str, Callable[[RootCauseSet], RootCauseSet]] = {
    "events of two boots without a BOOT": lambda one: replace(
        one, events=[EARLIER, *({**event, "name": "STARTED", "seq": 9} for event in one.events)]
    ),
    "events without a sector": lambda one: replace(one, events=[*one.events, STORED]),
    "a word of its own in tells": lambda one: replace(one, tells=frozenset({"EVERYTHING"})),
    "an incident of its own": lambda one: replace(one, header={**one.header, "incident_id": b""}),
    "a header cut short": lambda one: replace(one, header={"set_id": 1}),
    "clocks mixed": lambda one: replace(
        one, events=[*one.events, {**one.events[0], "seq": 99, "name": "X", "uptime_ns": 0}]
    ),
}
EARLIER = {"seq": 0, "uptime_ns": 10**15, "name": "BEFORE", "level": "INFO"}
STORED = {"seq": 98, "uptime_ns": 10**12, "name": "REPL_STORE", "level": "INFO", "bytes": 512}


class WrongSet(SkeletonDriver):
    """Decodes in a wrong way."""

    fault = ""

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: int, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        return SETS[self.fault](super().pull(entry, have, deadline_ns, progress))


class TwoProcessors(SkeletonDriver):
    """As in a real kernel's log: ``[0.303606] audit: ...``, then ``[0.303600] thermal_sys: ...``."""

    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        full = SkeletonDriver.decode_set(stored, serial_number)
        late = {**full.events[-1], "seq": 99, "name": "KERNEL"}
        late["uptime_ns"] -= 6_000
        return replace(full, events=[*full.events, late])


class WrongDecoder(SkeletonDriver):
    """Decodes damaged bytes, or raises what it likes."""

    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        content = json.loads(stored)  # ValueError for damaged bytes
        header = content["header"] | {"serial_number": serial_number}
        header["incident_id"] = bytes.fromhex(header["incident_id"])
        full = SkeletonDriver.decode_set(stored, serial_number)
        return replace(full, state=state_record(**content["state"]))


WORDS = {
    "a map for an identity": "identify() returned dict",
    "text for a number": "boot_epoch=str ('1'), which is not int",
    "a word of its own for the pair state": "pair_state 'UpToDate'; allowed: simplex",
    "another boot each time": "two calls of identify() in one boot",
    "an uptime that goes back": "does not go back",
    "its own exception": "identify() raised KeyError: 'serial'; expected: an Identity",
    "no end": "identify() ends by its deadline",
    "frames alike": "others for a warmstart",
    "the boot left out": "a frame for another boot_epoch is refused",
    "text for a frame": "freeze_frame() returned str",
    "an answer invented": "None at its deadline",
    "a reply without a time": "t_received_ns",
    "a reply as text": "freeze_reply() returned str ('ok'); expected: a Reply, or None",
    "an empty state": "missing: bitmap",
    "endless sets": "lists more than",
    "no sets": "lists one new set",
    "sets of no incident": "incident_id of the frame",
    "a digest in capitals": "sha256",
    "sets of one number": "set_id of its own",
    "raw bytes kept to itself": "it passed 0",
    "raw bytes as text": "pull() passes bytes to progress",
    "from the start again": "passes on the second, no more",
    "any set": "pull() of a set that there is not",
    "a map for a set": "pull() returned what cannot be judged: dict is not a RootCauseSet",
    "does not print": "print_line() is answered with ok",
    "events of two boots without a BOOT": "a BOOT record for each boot",
    "events without a sector": "(REPL_STORE) has no 'write_no'",
    "a word of its own in tells": "not known: EVERYTHING",
    "an incident of its own": "the right incident_id",
    "a header cut short": "the set's header lacks kind",
    "clocks mixed": "uptime_ns does not go back",
}
"""Violation -> what the kit says of it."""


def _driver(kind: type[SkeletonDriver], fault: str) -> SkeletonDriver:
    device = Device()
    made = kind("primary", DeviceLine(device), serial_number=SERIAL_NUMBER, clock=device.clock)
    made.fault = fault  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("fault", WORDS)
def test_each_violation_of_a_controllers_role_is_found(fault: str) -> None:
    driver = _driver(WrongSet if fault in SETS else Wrong, fault)
    with pytest.raises(testing.ConformanceError) as caught:
        testing.check_controller(driver, clock=driver._clock, timeout_s=1.0)
    assert WORDS[fault] in str(caught.value)
    assert str(caught.value).startswith(type(driver).__name__)


def test_records_that_two_processors_queued_out_of_order_are_no_second_boot() -> None:
    driver = _driver(TwoProcessors, "")
    testing.check_controller(driver, clock=driver._clock, timeout_s=1.0)


def test_a_decoder_that_raises_what_it_likes_is_found() -> None:
    driver = _driver(WrongDecoder, "")
    with pytest.raises(testing.ConformanceError, match="damaged bytes raises WireError; it raises"):
        testing.check_controller(driver, clock=driver._clock)


# --- protocols ------------------------------------------------------------------------------------------------
class Forgets(SkeletonLink):
    """Shows no answers, and claims them."""

    def make_direction(self, both: Any, opening: Any) -> PduDirection[Any]:
        made = super().make_direction(both, opening)
        take = made.take

        def without_answers(pdu: Any, out: list[Any]) -> None:
            found: list[Any] = []
            take(pdu, found)
            out.extend(one for one in found if type(one).__name__ != "Answer")

        made.take = without_answers  # type: ignore[method-assign]
        return made


class ClaimsAll(SkeletonLink):
    def make_direction(self, both: Any, opening: Any) -> PduDirection[Any]:
        made = super().make_direction(both, opening)
        take = made.take

        def undigested(pdu: Any, out: list[Any]) -> None:
            found: list[Any] = []
            take(pdu, found)
            for one in found:
                if type(one).__name__ == "ReplicatedWrite":
                    fields = {name: getattr(one, name) for name in one.__struct_fields__}
                    one = type(one)(**fields | {"digest_computed": b"", "digest_wire": b""})
                out.append(one)

        made.take = undigested  # type: ignore[method-assign]
        return made


class Unbounded(SkeletonLink):
    def make_direction(self, both: PduConnection[Any], opening: Any) -> PduDirection[Any]:
        made = super().make_direction(both, opening)
        made.stream._measure = lambda data, at: 1 << 60
        return made


@dataclass
class LinkFault:
    make: Any
    words: str


LINKS = {
    "an answer claimed and not shown": LinkFault(
        Forgets, "12 writes, expected|0 answers, expected"
    ),
    "a digest claimed and not shown": LinkFault(ClaimsAll, "tells claims DIGEST"),
    "a digest shown and not claimed": LinkFault(
        type("Modest", (SkeletonLink,), {"tells": frozenset({Tell.WRITE, Tell.ANSWER})}),
        "tells does not name DIGEST",
    ),
    "tells as a list of texts": LinkFault(
        type("Texts", (SkeletonLink,), {"tells": ["write"]}), "expected a frozenset of Tell"
    ),
    "no port": LinkFault(type("Portless", (SkeletonLink,), {"ports": (0,)}), "expected TCP ports"),
    "a refusal of its own": LinkFault(
        type("Shouts", (SkeletonLink,), {"refuses_by": "shouting"}), "'closing' or 'status'"
    ),
    "another version": LinkFault(
        type("Old", (SkeletonLink,), {"api_version": 99}), "api_version is 99"
    ),
    "a length without a bound": LinkFault(Unbounded, "0 writes, expected 12"),
}


@pytest.mark.parametrize("fault", LINKS)
def test_each_violation_of_a_protocol_is_found(fault: str) -> None:
    case = replace(link_case(), make=LINKS[fault].make, trials=2)
    with pytest.raises(AssertionError, match=LINKS[fault].words):
        testing.check_case(case)


def test_a_wrong_digest_that_the_case_does_not_expect_is_found() -> None:
    data = bytes(range(256)) * 2
    said = [(True, message(0)), (False, message(0))]
    from freezeframe.drivers.skeleton.link import write

    said += [(True, write(1, 0, data, crc=7)), (False, message(2, 1))]
    capture = testing.conversation(5555, said)
    case = testing.LinkCase(make=SkeletonLink, capture=capture, writes=1, trials=1)
    with pytest.raises(AssertionError, match="digest-mismatch"):
        testing.check_case(case)
