"""Findings in the answers: refused, lost, late, repeated or miscounted; and a side that left the
link alone. Pure."""

import itertools
from collections.abc import Iterator
from typing import Any, Final

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.link.linkevidence import LinkWrite, WrongAnswer
from freezeframe.harness.core.verdict.evidence import EventRecord, Evidence, SideEvidence
from freezeframe.harness.core.verdict.findings import (
    Finding,
    Stage,
    device_time,
    link_error_ns,
    of_write,
)
from freezeframe.harness.wire.drbd import Conn

DUE_NS: Final = NS_PER_S
"""An answer that takes longer is late; a healthy pair on a busy machine answers in a tenth of
it."""
PROMPT_NS: Final = DUE_NS // 2
"""A step within the secondary that takes longer is the one that made the answer late."""
MAX_SLOW: Final = 256
"""Slow answers that are looked at; a stall makes as many as were in flight."""
ANSWER_STAGES: Final = (Stage.RESPONSE, Stage.STALL)


def answer_findings(e: Evidence) -> list[Finding]:
    if e.link is None:
        return _from_the_logs(e)
    # With holes in the capture a write that it lacks makes a right count look wrong, and a right
    # answer stray.
    believed = [
        one for one in e.link.answers if e.capture_is_whole or one.kind in ("neg-ack", "repeated")
    ]
    found = [_wrong_answer(e, one) for one in believed if one.kind != "unknown"]
    if not found:
        # A repeated answer to a write that the capture has forgotten, or never had, looks like one
        # to no write at all.
        found = _barriers_by_the_logs(e) or [_unknown(e, one) for one in believed[:1]]
    for slow in itertools.islice(_slow(e), MAX_SLOW):
        late = _slow_answer(e, slow)
        if late is not None:
            return [*found, late]
    return found


def _wrong_answer(e: Evidence, answer: WrongAnswer) -> Finding:
    fields: dict[str, Any] = of_write(e, answer.write) if answer.write is not None else {}
    fields |= {"t_cause_ns": answer.t_ns, "t_cause_error_ns": link_error_ns(e)}
    told = {
        "neg-ack": "the capture shows that the write was refused with a NEG_ACK",
        "repeated": "the capture shows two answers to the same write",
        "wrong barrier": f"the capture shows it: {answer.found}",
    }[answer.kind]
    reasons = [told, *_confirmed(e, answer)]
    return Finding(
        stage=Stage.RESPONSE, kind=answer.kind, side=answer.side, expected=answer.expected, found=answer.found,
        reasons=tuple(reasons), **fields,
    )  # fmt: skip


def _confirmed(e: Evidence, answer: WrongAnswer) -> list[str]:
    """What the controllers' own logs say to it."""
    primary, secondary = e.primary, e.secondary
    if answer.kind == "neg-ack" and secondary.named("REPL_NEG_ACK"):
        return ["the secondary logged the refusal"]
    if answer.kind == "repeated" and primary.named("REPL_UNKNOWN_ACK"):
        return ["the primary logged an answer to a write that it no longer knew"]
    if answer.kind == "wrong barrier" and primary.named("REPL_PROTOCOL_ERROR"):
        return ["the primary refused the barrier's count"]
    return []


def _unknown(e: Evidence, answer: WrongAnswer) -> Finding:
    return Finding(
        stage=None, kind="unknown answer", side=answer.side, candidates=(Stage.RESPONSE,), t_cause_ns=answer.t_ns,
        t_cause_error_ns=link_error_ns(e), reasons=("the capture shows an answer to no write that it holds",),
        missing="the write that it answers",
    )  # fmt: skip


# --- answers that took too long -----------------------------------------------------------------------------
def _slow(e: Evidence) -> Iterator[LinkWrite]:
    """Writes whose answers came late or never, as far as the capture shows."""
    assert e.link is not None
    # A capture that is not whole proves silence only as far as it goes.
    limit_ns = e.t_detect_ns if e.t_detect_ns is not None else e.link.t_last_ns
    limit_ns = limit_ns if e.capture_is_whole else min(limit_ns, e.link.t_last_ns)
    for write in e.link.writes:
        row = write.row
        if row.unknown or not row.expects_answer or row.t_sent_ns > limit_ns:
            continue
        until_ns = min(limit_ns, row.t_closed_ns) if row.closed else limit_ns
        waited_ns = (row.t_answer_ns if row.is_answered else until_ns) - row.t_sent_ns
        if waited_ns > DUE_NS:
            yield write


def _slow_answer(e: Evidence, write: LinkWrite) -> Finding | None:
    """None: what the capture lacks, or a wall clock that was set, may be all that is wrong with
    it."""
    row = write.row
    came = row.is_answered
    waited = f"after {row.latency_ns / NS_PER_MS:.0f} ms" if came else "not before the trigger"
    reasons = [f"the capture shows the answer to the write {waited}"]
    fields: dict[str, Any] = of_write(e, write) | {
        "expected": f"an answer within {DUE_NS // NS_PER_MS} ms"
    }
    fields["found"] = (
        f"an answer after {row.latency_ns / NS_PER_MS:.0f} ms" if came else "no answer"
    )
    if not came and e.capture_drops:
        reasons.append(
            f"the capture dropped {e.capture_drops} frames: the answer may be among them"
        )
    kind = _by_the_log(e, write, reasons)
    if kind is None and e.link_times_hold and (came or e.capture_is_whole):
        kind = _by_the_traffic(e, write, reasons)
    if kind in (None, "healthy") and not (e.link_times_hold and (came or e.capture_is_whole)):
        return None
    if kind is None:
        missing = (
            "the secondary's event log, which tells when it read, stored and answered the write"
        )
        return Finding(
            stage=None, kind="late or lost", side="secondary", candidates=ANSWER_STAGES, reasons=tuple(reasons),
            missing=missing, **fields,
        )  # fmt: skip
    if kind == "healthy":
        return Finding(
            stage=None, kind="late or lost", side="", candidates=(Stage.RESPONSE, Stage.ON_THE_LINK),
            reasons=tuple(reasons), missing="where the answer was held up after the secondary had sent it", **fields,
        )  # fmt: skip
    stage = Stage.STALL if kind == "not reading" else Stage.RESPONSE
    return Finding(stage=stage, kind=kind, side="secondary", reasons=tuple(reasons), **fields)


def _by_the_log(e: Evidence, write: LinkWrite, reasons: list[str]) -> str | None:
    """What the secondary's event log tells: not reading | late | lost | healthy; None: nothing."""
    log, number = e.secondary, e.secondary_number(write)
    if not log.tells("REPL_RECEIVE", "REPL_ACK_SENT") or not log.events:
        return None
    received, answered = log.of_write("REPL_RECEIVE", number), log.of_write("REPL_ACK_SENT", number)
    if received is None:
        if not log.log_is_whole and not _reaches_back(e, write.row.t_sent_ns):
            return None
        reasons.append("the secondary's event log holds nothing of the write: it had not read it")
        return "not reading"
    end_ns = log.events[-1]["uptime_ns"]
    waited_ns = (answered["uptime_ns"] if answered is not None else end_ns) - received["uptime_ns"]
    if answered is None and waited_ns > PROMPT_NS:
        reasons.append(
            f"the secondary's event log says that it read the write and, {waited_ns / NS_PER_MS:.0f} ms later, "
            "had not answered it"
        )
        return "lost"
    if waited_ns > PROMPT_NS:
        reasons.append(
            f"the secondary's event log says that it answered {waited_ns / NS_PER_MS:.0f} ms after reading it"
        )
        return "late"
    return _read_late(e, write, received, reasons)


def _reaches_back(e: Evidence, t_ns: Ns) -> bool:
    """Whether the secondary's event log, which has wrapped, still tells of that time."""
    at = e.secondary.at(e.secondary.events[0])
    return at is not None and e.link_times_hold and at[0] + at[1] < t_ns


def _read_late(e: Evidence, write: LinkWrite, received: Any, reasons: list[str]) -> str | None:
    """Answered at once: was it read late, or was the answer held up behind the secondary?"""
    if not e.link_times_hold:
        return None
    at = e.secondary.at(received)
    if at is None:
        silence_ns = _silence_before(e, received)
        if silence_ns <= PROMPT_NS:
            return None
        reasons.append(
            f"the secondary's event log shows it idle for {silence_ns / NS_PER_MS:.0f} ms before it read the write"
        )
        return "not reading"
    read_ns, error_ns = at
    late_ns = read_ns - write.row.t_sent_ns
    if late_ns - error_ns > PROMPT_NS:
        reasons.append(
            f"the secondary's event log says that it read the write {late_ns / NS_PER_MS:.0f} ms after it was there"
        )
        return "not reading"
    if late_ns + error_ns < PROMPT_NS:
        reasons.append("the secondary's event log says that it read and answered the write at once")
        return "healthy"
    return None


def _silence_before(e: Evidence, received: Any) -> Ns:
    """How long the secondary had logged no replicated write before this one, on its own clock."""
    last_ns = 0
    for one in e.secondary.named("REPL_RECEIVE", "REPL_ACK_SENT", "REPL_BARRIER_ACK"):
        if one["seq"] >= received["seq"]:
            break
        last_ns = one["uptime_ns"]
    return int(received["uptime_ns"] - last_ns) if last_ns else 0


def _by_the_traffic(e: Evidence, write: LinkWrite, reasons: list[str]) -> str | None:
    """Without a log: did the secondary answer others that came after it, in the meantime?"""
    assert e.link is not None
    row = write.row
    until_ns = row.t_answer_ns if row.is_answered else (e.t_detect_ns or e.link.t_last_ns)
    later = [one.row for one in e.link.writes if row.t_sent_ns < one.row.t_sent_ns < until_ns]
    answered = [
        one for one in later if one.is_answered and one.t_answer_ns < until_ns - PROMPT_NS // 2
    ]
    if answered:
        reasons.append(
            f"meanwhile the secondary answered {len(answered)} writes that were sent after it"
        )
        return "late" if row.is_answered else "lost"
    return None


# --- without a capture --------------------------------------------------------------------------------------
def _from_the_logs(e: Evidence) -> list[Finding]:
    primary, secondary = e.primary, e.secondary
    found: list[Finding] = []
    for record in [*secondary.named("REPL_NEG_ACK")][:1] or [*primary.named("REPL_NEG_ACK")][:1]:
        side = secondary if secondary.named("REPL_NEG_ACK") else primary
        found.append(
            _told(
                record["sector"], "neg-ack", "the event log tells of a NEG_ACK", **device_time(side, record),
                write_lba=record["sector"], write_sectors=record["bytes"] // 512,
            )
        )  # fmt: skip
    for record in primary.named("REPL_UNKNOWN_ACK")[:1]:
        known = [
            one for one in primary.named("REPL_ACK_RECEIVED") if one["sector"] == record["sector"]
        ]
        if known:
            told = "the primary logged a second answer to a write that had been answered"
            found.append(_told(record["sector"], "repeated", told, **device_time(primary, record)))
    found += _barriers_by_the_logs(e)
    return found or _open_writes(e)


def _barriers_by_the_logs(e: Evidence) -> list[Finding]:
    """The two event logs on the count of one barrier, newest first."""
    sent = {key: one["writes"] for key, one in _barriers(e.primary, "REPL_BARRIER_SENT")}
    for key, record in _barriers(e.secondary, "REPL_BARRIER_ACK"):
        expected = sent.get(key, record["writes"])
        if expected != record["writes"]:
            told = f"the logs differ on barrier {record['barrier']}: {expected} writes sent, {record['writes']} told"
            return [_told(None, "wrong barrier", told, **device_time(e.secondary, record))]
    return []


def _barriers(side: SideEvidence, name: str) -> Iterator[tuple[tuple[int, int], EventRecord]]:
    """((connection, barrier), record), newest first. Barriers are numbered anew with each
    connection, and the logs of the two sides begin at different times: connections are counted from
    the newest back."""
    connection = 0
    for one in reversed(side.events):
        if (
            one["name"] == "CONN_STATE"
            and one["from"] == Conn.WF_REPORT_PARAMS
            and one["to"] > Conn.WF_REPORT_PARAMS
        ):
            connection += 1
        elif one["name"] == name:
            yield (connection, one["barrier"]), one


def _told(sector: int | None, kind: str, reason: str, **fields: Any) -> Finding:
    return Finding(
        stage=Stage.RESPONSE, kind=kind, side="secondary", lba=sector, reasons=(reason,), **fields
    )


def _open_writes(e: Evidence) -> list[Finding]:
    """The primary's log has a write without an answer, for too long."""
    primary, secondary = e.primary, e.secondary
    if not primary.events:
        return []
    answered = {one["write_no"]: one for one in primary.named("REPL_ACK_RECEIVED")}
    end_ns = primary.events[-1]["uptime_ns"]
    for record in primary.named("REPL_SEND"):
        answer = answered.get(record["write_no"])
        waited_ns = (answer["uptime_ns"] if answer else end_ns) - record["uptime_ns"]
        if waited_ns <= DUE_NS:
            continue
        fields: dict[str, Any] = {
            "lba": record["sector"], "write_lba": record["sector"], "write_sectors": record["bytes"] // 512,
            "reasons": (f"the primary waited {waited_ns / NS_PER_MS:.0f} ms for the answer to write {record['write_no']}",),
        } | device_time(primary, record)  # fmt: skip
        missing = (
            "the capture of the link, and with it when the write was there and what was answered"
        )
        if secondary.set is None:
            missing += "; the secondary's root cause data set"
        return [
            Finding(
                stage=None, kind="late or lost", side="", candidates=(*ANSWER_STAGES, Stage.ON_THE_LINK),
                missing=missing, **fields,
            )
        ]  # fmt: skip
    return []
