"""The skeleton that `driver new` copies keeps every promise of its roles, and the conformance kit finds
each deliberate violation of one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from freezeframe import testing
from freezeframe.driver import Identity, Reply, RootCauseSet, SetEntry, state_record
from freezeframe.drivers.skeleton.device import (
    SERIAL_NUMBER,
    Device,
    DeviceLine,
    controller_case,
    link_case,
)
from freezeframe.drivers.skeleton.driver import SkeletonDriver
from freezeframe.drivers.skeleton.link import SkeletonLink, message
from freezeframe.harness.core.link.pdus import PduConnection, PduDirection
from freezeframe.harness.core.link.protocol import Tell


def test_the_skeletons_driver_keeps_its_promises() -> None:
    statements: list[str] = []
    testing.check_case(controller_case(), passed=statements.append)
    assert len(statements) > 30


def test_the_skeletons_protocol_keeps_the_guarantees() -> None:
    testing.check_case(replace(link_case(), trials=5))


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
