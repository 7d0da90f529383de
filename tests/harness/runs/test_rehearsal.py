"""A frame is tried out before it is armed, and what cannot be is said."""

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.errors import RigError
from freezeframe.harness.roles import REHEARSED, UNREHEARSED, Controller, Reply
from freezeframe.harness.runs.rehearsal import rehearse


@dataclass
class Line:
    name: str = "/dev/ttyX"


@dataclass
class Mute:
    """Its driver knows no rehearsal."""

    link: Line = field(default_factory=Line)


@dataclass
class Trying(Mute):
    reply: Reply = field(default_factory=lambda: Reply(ok=True, status=REHEARSED))
    tried: list[bytes] = field(default_factory=list)

    def rehearse(self, frame: bytes, deadline_ns: Ns) -> Reply:
        self.tried.append(frame)
        return self.reply


FRAMES: dict[Side, bytes] = {"primary": b"freeze 1", "secondary": b"freeze 22"}


def both(primary: Mute, secondary: Mute) -> dict[Side, Controller]:
    return cast(dict[Side, Controller], {"primary": primary, "secondary": secondary})


def test_both_frames_are_tried_out() -> None:
    primary, secondary = Trying(), Trying()
    record: dict[str, Any] = {}
    assert rehearse(both(primary, secondary), FRAMES, 0, record) == []
    assert (primary.tried, secondary.tried) == ([b"freeze 1"], [b"freeze 22"])
    assert record["armed"] == {
        "primary": {"state": "armed", "rehearsed_bytes": 8},
        "secondary": {"state": "armed", "rehearsed_bytes": 9},
    }


def test_what_cannot_be_rehearsed_is_said() -> None:
    by_break = Trying(reply=Reply(ok=True, status=UNREHEARSED, text="BREAK and c"))
    record: dict[str, Any] = {}
    assert rehearse(both(Mute(), by_break), FRAMES, 0, record) == [
        "primary: armed (unrehearsed): its driver cannot try a frame out",
        "secondary: armed (unrehearsed): BREAK and c",
    ]
    assert {one["state"] for one in record["armed"].values()} == {"armed (unrehearsed)"}


def test_a_frame_that_does_not_get_through_is_not_armed() -> None:
    cut = Trying(reply=Reply(ok=False, status="no answer"))
    with pytest.raises(
        RigError, match=r"secondary controller does not take .*: no answer: is /dev/ttyX clean"
    ):
        rehearse(both(Trying(), cut), FRAMES, 0, {})
