"""A redrive that cannot be carried out says why, and the warmstart follows all the same."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.blocks.blockstamp import (
    ACK,
    INTENT,
    Write,
    journal_header,
    journal_record,
)
from freezeframe.harness.core.events import SIDES, FrameFailed, FrameSent, Ns, Side, Trigger
from freezeframe.harness.core.frames import encode
from freezeframe.harness.errors import RigError, WrongDeviceError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import JOURNAL
from freezeframe.harness.roles import Identity, Reply
from freezeframe.harness.runs.redrive import Redrive
from freezeframe.harness.wire.control import Op

IDENTITY = Identity(
    model="SimArray 2", serial_number="P", firmware_version="1", boot_epoch=4, role=1, pair_state="full duplex",
    uptime_ns=1, events_logged=1,
)  # fmt: skip
CAUSE = Trigger(
    t_ns=900, rule="link-neg-ack", source="link", side="secondary", offset_bytes=1, t_arrival_ns=900, t_match_ns=900,
    sector=8,
)  # fmt: skip
WRITE = Write(0, 8, 8, 100)


@dataclass
class Device:
    """A controller without the means of Serviceable."""

    is_gone: bool = False
    is_another: bool = False
    boot_epoch: int = IDENTITY.boot_epoch
    prepared: list[int] = field(default_factory=list)
    """The boots that it was prepared in."""
    written: list[bytes] = field(default_factory=list)

    @property
    def link(self) -> Any:
        return SimpleNamespace(write=self._write)

    def _write(self, data: bytes) -> None:
        if self.is_gone:
            raise RigError("the line is gone")
        self.written.append(data)

    def identify(self, deadline_ns: Ns) -> Identity:
        if self.is_gone:
            raise RigError("no answer")
        if self.is_another:
            raise WrongDeviceError("the line leads to Q, the bench file says P")
        return replace(IDENTITY, boot_epoch=self.boot_epoch)

    def prepare(self, identity: Identity, incident_id: bytes, deadline_ns: Ns) -> None:
        self.prepared.append(identity.boot_epoch)

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        return None if self.is_gone else Reply(ok=True, status="ok")

    def freeze_frame(self, identity: Identity, reason: int, incident_id: bytes) -> bytes:
        return encode(Op.WARMSTART, reason, b"")


class Port:
    """The primary's volume: zeroes everywhere."""

    size_bytes = 1 << 20

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        return bytes(length_bytes)

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        raise AssertionError("nothing is to be written")

    def close(self) -> None:
        pass


def redrive(
    tmp_path: Path, devices: dict[Side, Device], journal: bytes | None
) -> tuple[dict[str, Any], list[FrameSent | FrameFailed]]:
    policy = SimpleNamespace(
        reply_timeout_s=0.1,
        rejoin_timeout_s=0.1,
        redrive_timeout_s=0.1,
    )
    opened = SimpleNamespace(
        controllers=devices,
        identities=dict.fromkeys(SIDES, IDENTITY),
        identify=lambda side, deadline_ns: devices[side].identify(deadline_ns),
        await_full_duplex=lambda deadline_ns: {},
        host=lambda side: Port(),
        bench=SimpleNamespace(
            policy=policy,
            instruct=SIDES,
            workload=SimpleNamespace(writes=1),
            link=SimpleNamespace(console_texts=()),
        ),
    )
    incident = Incident.create(tmp_path, bench="none", seed=0)
    if journal is not None:
        (incident.path / JOURNAL).write_bytes(journal)
    told: list[str] = []
    one = Redrive(
        cast(OpenBench, opened),
        incident,
        CAUSE,
        [CAUSE],
        threading.Event().wait,
        lambda step, detail, side: told.append(step),
    )
    one.carry_out({"primary": b"frame", "secondary": b"frame"}, lambda: None)
    assert told[-1] == "redrive"
    return incident.record["redrive"], one.warmstart(list(SIDES))


def written(*kinds: int) -> bytes:
    return journal_header(0, 1, 0, 64) + b"".join(
        journal_record(kind, WRITE, WRITE.time_ns) for kind in kinds
    )


@pytest.mark.parametrize(
    ("journal", "reason"),
    [
        (None, "no journal of the host's writes"),
        (b"noise", "not a write journal"),
        (written(), "names a failing write"),
        (written(INTENT), "write 0 is not sent again: it is still in flight"),
        (written(INTENT, ACK), "write 0 is not sent again: the primary holds other data there"),
    ],
)
def test_what_cannot_be_sent_again_is_not_and_the_pair_is_warmstarted(
    journal: bytes | None, reason: str, tmp_path: Path
) -> None:
    record, sent = redrive(tmp_path, {"primary": Device(), "secondary": Device()}, journal)
    assert (record["outcome"], record["again"]) == ("not possible", None)
    assert reason in record["reason"]
    assert record["saves"] == {"primary": "ok", "secondary": "ok"}
    assert [type(one) for one in sent] == [FrameSent, FrameSent]


def test_a_side_that_is_gone_keeps_the_other_from_nothing(tmp_path: Path) -> None:
    devices: dict[Side, Device] = {"primary": Device(), "secondary": Device(is_gone=True)}
    record, sent = redrive(tmp_path, devices, written(INTENT, ACK))
    assert record["outcome"] == "not possible"
    assert record["saves"] == {"primary": "ok", "secondary": "no answer"}
    assert [type(one) for one in sent] == [FrameSent, FrameFailed]
    assert len(devices["primary"].written) == 1


def test_another_device_on_the_line_is_sent_no_warmstart(tmp_path: Path) -> None:
    """A BREAK would crash whoever is there: no frame goes to one that says that it is somebody
    else."""
    devices: dict[Side, Device] = {"primary": Device(), "secondary": Device(is_another=True)}
    _, sent = redrive(tmp_path, devices, written(INTENT, ACK))
    assert [type(one) for one in sent] == [FrameSent, FrameFailed]
    assert isinstance(sent[1], FrameFailed)
    assert "not sent: the line leads to Q" in sent[1].error
    assert devices["secondary"].written == []


def test_a_side_that_has_booted_since_is_prepared_again(tmp_path: Path) -> None:
    devices: dict[Side, Device] = {"primary": Device(), "secondary": Device(boot_epoch=5)}
    redrive(tmp_path, devices, written(INTENT, ACK))
    assert [devices[side].prepared for side in SIDES] == [[], [5]]
