"""Whom the secondary's own monitor is armed for, and with what."""

from typing import Any

from freezeframe.harness.core.events import Side
from freezeframe.harness.roles import Identity
from freezeframe.harness.runs.selfmonitor import arm_secondary
from freezeframe.harness.wire.control import Reason

INCIDENT = bytes(range(16))


class Device:
    """A controller of the role, which notes what it is asked in ``said``."""

    def __init__(self, side: Side, said: list[tuple[object, ...]]) -> None:
        self.side, self.said = side, said

    def prepare(self, identity: Identity, incident_id: bytes, deadline_ns: int) -> None:
        self.said.append((self.side, "prepare", identity.boot_epoch, incident_id))

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        assert disruptive
        return f"{self.side} {identity.boot_epoch} {reason}".encode()


class Monitoring(Device):
    def monitor(
        self, incident_id: bytes, primary_frame: bytes, own_frame: bytes, deadline_ns: int
    ) -> None:
        self.said.append((self.side, "monitor", incident_id, primary_frame, own_frame))


def identity(epoch: int) -> Identity:
    return Identity(
        model="", serial_number="", firmware_version="", boot_epoch=epoch, role=0,
        pair_state="full duplex", uptime_ns=0, events_logged=0,
    )  # fmt: skip


def armed(secondary: type[Device], identities: dict[Side, Identity]) -> list[tuple[object, ...]]:
    said: list[tuple[object, ...]] = []
    pair: Any = {"primary": Device("primary", said), "secondary": secondary("secondary", said)}
    arm_secondary(pair, identities, INCIDENT, 1)
    return said


def test_it_gets_the_frames_of_both_boots_once_both_are_prepared() -> None:
    said = armed(Monitoring, {"primary": identity(3), "secondary": identity(4)})
    frames = (f"primary 3 {Reason.PEER_TRIGGER}".encode(), f"secondary 4 {Reason.SELF}".encode())
    assert said == [
        ("primary", "prepare", 3, INCIDENT),
        ("secondary", "prepare", 4, INCIDENT),
        ("secondary", "monitor", INCIDENT, *frames),
    ]


def test_nothing_is_done_before_both_are_identified_or_without_the_role() -> None:
    assert armed(Monitoring, {"secondary": identity(4)}) == []
    assert armed(Device, {"primary": identity(3), "secondary": identity(4)}) == []
