"""The failing write's way for a person: the steps of the verdict's route in words, then log line, trigger, control frames,
answers and sets; and the arrows between them. Pure.

Which write it is, and what happened to it, is the verdict's alone: nothing is looked for here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from freezeframe.harness.core.events import SIDES, Ns, Side
from freezeframe.harness.core.text import escape, sector_range
from freezeframe.harness.core.verdict.record import (
    ActionRecord,
    IncidentRecord,
    TriggerRecord,
    Verdict,
    WayStep,
)
from freezeframe.harness.core.verdict.route import HOST_INTENT, LINK_ANSWER, LINK_DATA

Lane = Literal["host", "primary", "link", "secondary", "harness"]
LANES: Final[tuple[Lane, ...]] = ("host", "primary", "link", "secondary", "harness")
MAX_STEPS: Final = 64
MAX_TEXT_CHARS: Final = 400
MAX_ACTIONS: Final = 8
SUSPICIOUS_EVENTS: Final = frozenset({"REPL_DIGEST_FAILED", "REPL_NEG_ACK", "SCRUB_MISMATCH"})
_WAY: Final = {
    "HOST_WRITE": "takes the write from the host",
    "REPL_SEND": "sends the copy",
    "REPL_RECEIVE": "receives the copy",
    "REPL_STORE": "stores the copy",
    "REPL_ACK_SENT": "acknowledges the copy",
    "REPL_ACK_RECEIVED": "sees the acknowledgement",
    "REPL_DIGEST_FAILED": "finds the digest wrong",
    "REPL_NEG_ACK": "refuses, or sees the refusal of, the copy",
    "SCRUB_MISMATCH": "finds stored data wrong",
}
"""Event records of the write's way, in words; those that are not here are left to ``replay``."""


@dataclass(frozen=True, kw_only=True)
class PathStep:
    """One thing that happened to the write, or because of it."""

    lane: Lane
    t_ns: Ns
    name: str
    detail: str = ""
    error_ns: Ns = 0
    """How wrong the time may be; 0 for the host's own clock."""
    packet_no: int = 0
    kind: Literal["ok", "bad", "act"] = "ok"


@dataclass(frozen=True, kw_only=True)
class WritePath:
    steps: tuple[PathStep, ...]
    arrows: tuple[tuple[int, int], ...]
    """Pairs of indices into ``steps``: from, to."""


def write_path(verdict: Verdict, record: IncidentRecord, trigger_line: str) -> WritePath:
    """The steps in the order of cause, and the arrows between them. A step without a time is left out."""
    steps = [made for step in verdict.route if (made := _shown(step, verdict)) is not None]
    arrows = [(at, at + 1) for at in range(len(steps) - 1)]
    tail = _tail(record, trigger_line)
    first = len(steps)
    arrows += [(at + first, to + first) for at, to in tail.arrows]
    if steps and tail.steps:
        arrows.append((first - 1, first))
    return WritePath(
        steps=tuple(
            replace(
                step,
                name=escape(step.name)[:MAX_TEXT_CHARS],
                detail=escape(step.detail)[:MAX_TEXT_CHARS],
            )
            for step in [*steps, *tail.steps][:MAX_STEPS]
        ),
        arrows=_kept(arrows),
    )


def _kept(arrows: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(pair for pair in arrows if max(pair) < MAX_STEPS))


def _sectors(verdict: Verdict) -> str:
    return sector_range(verdict.write_lba or 0, verdict.write_sectors)


def _shown(step: WayStep, verdict: Verdict) -> PathStep | None:
    """A step of the route in words; None: nothing says when it was, or it is none for a person."""
    if step.t_ns is None:
        return None
    error_ns, packet_no = step.error_ns or 0, step.packet_no or 0
    if step.at == HOST_INTENT:
        detail = f"write {verdict.write_id}, {_sectors(verdict)}"
        return PathStep(lane="host", t_ns=step.t_ns, name="host writes", detail=detail)
    if step.at == LINK_DATA:
        wrong = step.digest_right is False
        return PathStep(
            lane="link", t_ns=step.t_ns, error_ns=error_ns, packet_no=packet_no, kind="bad" if wrong else "ok",
            name="the copy on the link" + (", digest wrong" if wrong else ""),
            detail=f"{_sectors(verdict)}, block_id {verdict.block_id}, "
            f"frames {step.first_packet_no} to {step.packet_no}",
        )  # fmt: skip
    if step.at.startswith(LINK_ANSWER):
        answer = step.at.removeprefix(LINK_ANSWER)
        sent_ns = next((one.t_ns for one in verdict.route if one.at == LINK_DATA), None)
        after = (
            f"{(step.t_ns - sent_ns) / 1e6:.3f} ms after the copy, " if sent_ns is not None else ""
        )
        return PathStep(
            lane="link", t_ns=step.t_ns, error_ns=error_ns, packet_no=packet_no, name=f"{answer} on the link",
            detail=f"{after}frame {step.packet_no}", kind="bad" if "NEG" in answer else "ok",
        )  # fmt: skip
    side, _, event = step.at.partition(" ")
    if event not in _WAY:
        return None
    lane: Lane = "primary" if side == "primary" else "secondary"
    return PathStep(
        lane=lane, t_ns=step.t_ns, error_ns=error_ns, name=f"{side} {_WAY[event]}",
        detail=f"{event}, event {step.seq}", kind="bad" if event in SUSPICIOUS_EVENTS else "ok",
    )  # fmt: skip


# --- what followed from it ------------------------------------------------------------------------------------
def _tail(record: IncidentRecord, trigger_line: str) -> WritePath:
    """Log line, trigger, then for each instructed side its frame, its reply and its set."""
    trigger = record.trigger
    if trigger is None or trigger.t_arrival_ns is None or trigger.t_match_ns is None:
        return WritePath(steps=(), arrows=())
    seen = "log line arrives" if trigger.source == "console" else f"seen on the {trigger.source}"
    steps = [
        PathStep(
            lane=_lane_of(trigger), t_ns=trigger.t_arrival_ns, name=seen, detail=trigger_line, kind="bad"
        ),
        PathStep(
            lane="harness", t_ns=trigger.t_match_ns, name=f"trigger {trigger.rule}", kind="act"
        ),
    ]  # fmt: skip
    arrows = [(0, 1)]
    for action in record.actions[:MAX_ACTIONS]:
        made = [*_action(action), *_pulled(record, action.side)]
        start = len(steps)
        arrows.append((1, start))
        arrows += [(at, at + 1) for at in range(start, start + len(made) - 1)]
        steps += made
    return WritePath(steps=tuple(steps), arrows=tuple(arrows))


def _lane_of(trigger: TriggerRecord) -> Lane:
    if trigger.source == "link":
        return "link"
    if trigger.source == "console" and trigger.side in SIDES:
        return "primary" if trigger.side == "primary" else "secondary"
    return "harness"


def _action(action: ActionRecord) -> Iterable[PathStep]:
    side, reply = action.side, action.reply
    yield PathStep(
        lane="harness", t_ns=action.t_frame_ns, name=f"control frame to the {side}", kind="act",
        detail=action.error or f"sequence number {action.seq}",
    )  # fmt: skip
    if reply is not None and reply.t_ack_ns is not None:
        detail = f"{reply.status}, set {reply.set_id}, boot epoch {reply.boot_epoch}"
        yield PathStep(lane=side, t_ns=reply.t_ack_ns, name=f"{side} answers", detail=detail)


def _pulled(record: IncidentRecord, side: Side) -> Iterable[PathStep]:
    for done in record.recovery:
        if (done.side, done.step) == (side, "set pulled"):
            pulled = record.sets.get(side)
            detail = f"{pulled.bytes} bytes" if pulled is not None else ""
            yield PathStep(
                lane="harness", t_ns=done.t_ns, name=f"{side}'s set pulled", detail=detail
            )
            return
