"""Findings in the answers: refused, lost, late, repeated or miscounted; and a side that left the
link alone. Pure."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, NS_PER_S, Ns
from freezeframe.harness.core.link.linkevidence import LinkWrite, WrongAnswer
from freezeframe.harness.core.rootcause import EventRecord
from freezeframe.harness.core.verdict.evidence import Evidence, SideEvidence
from freezeframe.harness.core.verdict.findings import Finding, Stage
from freezeframe.harness.wire.drbd import Conn

DUE_NS: Final = NS_PER_S
"""An answer that takes longer is late; a healthy pair on a busy machine answers in a tenth of
it."""
PROMPT_NS: Final = DUE_NS // 2
"""A step within the secondary that takes longer is the one that made the answer late."""
LOST_NS: Final = 3 * NS_PER_S
"""An answer that another write's trigger cut off is called lost only after so long."""
MAX_SLOW: Final = 256
"""Slow answers that are looked at; a stall makes as many as were in flight."""
ANSWER_STAGES: Final = (Stage.RESPONSE, Stage.STALL)


def answer_findings(e: Evidence) -> list[Finding]:
    if e.link is None:
        return _from_the_logs(e)
    # With holes in the capture a write that it lacks makes a right count look wrong, and a right
    # answer stray.
    believed = [
        one
        for one in e.link.answers
        if e.is_own(one.t_ns) and (e.capture_is_whole or one.kind in ("neg-ack", "repeated"))
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
    shown = {
        "neg-ack": "the capture shows that the write was refused with a NEG_ACK",
        "repeated": "the capture shows two answers to the same write",
        "wrong barrier": f"the capture shows it: {answer.found}",
    }[answer.kind]
    found = Finding(stage=Stage.RESPONSE, kind=answer.kind, side=answer.side)
    if answer.write is not None:
        found = found.of_write(e, answer.write)
    return replace(
        found, expected=answer.expected, found=answer.found, reasons=(shown, *_confirmed(e, answer)),
        t_cause_ns=answer.t_ns, t_cause_error_ns=e.link_error_ns, packet_no=answer.packet_no,
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
        t_cause_error_ns=e.link_error_ns, reasons=("the capture shows an answer to no write that it holds",),
        missing="the write that it answers",
    )  # fmt: skip


# --- answers that took too long -----------------------------------------------------------------------------
def _slow(e: Evidence) -> Iterator[LinkWrite]:
    """Writes whose answers came late or never, as far as the capture shows."""
    assert e.link is not None
    # A capture that is not whole proves silence only as far as it goes.
    limit_ns = e.t_detect_ns if e.t_detect_ns is not None else e.link.t_last_ns
    limit_ns = limit_ns if e.capture_is_whole else min(limit_ns, e.link.t_last_ns)
    for write in e.own_writes:
        row = write.row
        if row.unknown or not row.expects_answer or write.t_sent_ns > limit_ns:
            continue
        until_ns = min(limit_ns, row.t_closed_ns) if row.t_closed_ns else limit_ns
        waited_ns = (write.t_ack_ns if write.is_acked else until_ns) - write.t_sent_ns
        if waited_ns > DUE_NS:
            yield write


def _slow_answer(e: Evidence, write: LinkWrite) -> Finding | None:
    """None: what the capture lacks, or a wall clock that was set, may be all that is wrong with
    it."""
    came = write.is_acked
    waited_ms = write.latency_ns / NS_PER_MS
    reasons = [
        "the capture shows the answer to the write "
        + (f"after {waited_ms:.0f} ms" if came else "not before the trigger")
    ]
    if not came and e.capture_drops:
        reasons.append(
            f"the capture dropped {e.capture_drops} frames: the answer may be among them"
        )
    kind = _by_the_log(e, write, reasons)
    if kind is None and e.link_times_hold and (came or e.capture_is_whole):
        kind = _by_the_traffic(e, write, reasons)
    if kind in (None, "healthy") and not (e.link_times_hold and (came or e.capture_is_whole)):
        return None
    found = replace(
        Finding(stage=None, kind="late or lost", side="secondary").of_write(e, write),
        expected=f"an answer within {DUE_NS // NS_PER_MS} ms",
        found=f"an answer after {waited_ms:.0f} ms" if came else "no answer",
        reasons=tuple(reasons),
    )
    if kind is None:
        missing = (
            "the secondary's event log, which tells when it read, stored and answered the write"
        )
        return replace(found, candidates=ANSWER_STAGES, missing=missing)
    if kind == "healthy":
        return replace(
            found, side="", candidates=(Stage.RESPONSE, Stage.ON_THE_LINK),
            missing="where the answer was held up after the secondary had sent it",
        )  # fmt: skip
    is_cut_off = not _is_asked_for(e, write) and _waited_ns(e, write) < LOST_NS
    if kind == "lost" and not came and is_cut_off:
        missing = "whether the answer would still have come: the trigger was about another write"
        return replace(found, candidates=(Stage.RESPONSE,), missing=missing)
    stage = Stage.STALL if kind == "not reading" else Stage.RESPONSE
    return replace(found, stage=stage, kind=kind)


def _is_asked_for(e: Evidence, write: LinkWrite) -> bool:
    """Whether the trigger itself is about this write."""
    own = e.own_write
    return own is None or own.block_id == write.block_id or write.packet_no == own.packet_no


def _waited_ns(e: Evidence, write: LinkWrite) -> Ns:
    """How long it had waited for an answer when the trigger came."""
    return 0 if e.t_detect_ns is None else e.t_detect_ns - write.t_sent_ns


def _by_the_log(e: Evidence, write: LinkWrite, reasons: list[str]) -> str | None:
    """What the secondary's event log tells: not reading | late | lost | healthy; None: nothing."""
    log, number = e.secondary, e.secondary_number(write)
    if not log.tells("REPL_RECEIVE", "REPL_ACK_SENT") or not log.events:
        return None
    received, answered = log.of_write("REPL_RECEIVE", number), log.of_write("REPL_ACK_SENT", number)
    if received is None:
        if not log.log_is_whole and not _reaches_back(e, write.t_sent_ns):
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


def _read_late(
    e: Evidence, write: LinkWrite, received: EventRecord, reasons: list[str]
) -> str | None:
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
    late_ns = read_ns - write.t_sent_ns
    if late_ns - error_ns > PROMPT_NS:
        reasons.append(
            f"the secondary's event log says that it read the write {late_ns / NS_PER_MS:.0f} ms after it was there"
        )
        return "not reading"
    if late_ns + error_ns < PROMPT_NS:
        reasons.append("the secondary's event log says that it read and answered the write at once")
        return "healthy"
    return None


def _silence_before(e: Evidence, received: EventRecord) -> Ns:
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
    until_ns = write.t_ack_ns if write.is_acked else (e.t_detect_ns or e.link.t_last_ns)
    later = [one for one in e.own_writes if write.t_sent_ns < one.t_sent_ns < until_ns]
    answered = [one for one in later if one.is_acked and one.t_ack_ns < until_ns - PROMPT_NS // 2]
    if answered:
        reasons.append(
            f"meanwhile the secondary answered {len(answered)} writes that were sent after it"
        )
        return "late" if write.is_acked else "lost"
    return None


# --- without a capture --------------------------------------------------------------------------------------
def _from_the_logs(e: Evidence) -> list[Finding]:
    primary, secondary = e.primary, e.secondary
    found: list[Finding] = []
    side = secondary if secondary.named("REPL_NEG_ACK") else primary
    for record in side.named("REPL_NEG_ACK")[:1]:
        refused = _answered("neg-ack", "the event log tells of a NEG_ACK")
        refused = refused.of_place(record["sector"], record["bytes"])
        found.append(refused.logged(side, record).timed(side, record))
    for record in primary.named("REPL_UNKNOWN_ACK")[:1]:
        known = [
            one for one in primary.named("REPL_ACK_RECEIVED") if one["sector"] == record["sector"]
        ]
        if known:
            why = "the primary logged a second answer to a write that had been answered"
            again = replace(_answered("repeated", why), lba=record["sector"])
            found.append(again.timed(primary, record))
    found += _barriers_by_the_logs(e)
    return found or _open_writes(e)


def _barriers_by_the_logs(e: Evidence) -> list[Finding]:
    """The two event logs on the count of one barrier, newest first."""
    sent = {key: one["writes"] for key, one in _barriers(e.primary, "REPL_BARRIER_SENT")}
    for key, record in _barriers(e.secondary, "REPL_BARRIER_ACK"):
        expected = sent.get(key, record["writes"])
        if expected != record["writes"]:
            why = (
                f"the logs differ on barrier {record['barrier']}: {expected} writes sent, "
                f"{record['writes']} acknowledged"
            )
            return [_answered("wrong barrier", why).timed(e.secondary, record)]
    return []


def _barriers(side: SideEvidence, name: str) -> Iterator[tuple[tuple[int, int], EventRecord]]:
    """((connection, barrier), record), newest first. Barriers are numbered anew with each
    connection, and the logs of the two sides begin at different times: connections are counted from
    the newest back."""
    connection = 0
    for one in reversed(side.own_events):
        if (
            one["name"] == "CONN_STATE"
            and one["from"] == Conn.WF_REPORT_PARAMS
            and one["to"] > Conn.WF_REPORT_PARAMS
        ):
            connection += 1
        elif one["name"] == name:
            yield (connection, one["barrier"]), one


def _answered(kind: str, reason: str) -> Finding:
    return Finding(stage=Stage.RESPONSE, kind=kind, side="secondary", reasons=(reason,))


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
        missing = (
            "the capture of the link, and with it when the write was there and what was answered"
        )
        if secondary.set is None:
            missing += "; the secondary's root cause data set"
        why = f"the primary waited {waited_ns / NS_PER_MS:.0f} ms for the answer to write {record['write_no']}"
        found = Finding(
            stage=None, kind="late or lost", side="", candidates=(*ANSWER_STAGES, Stage.ON_THE_LINK), missing=missing,
            reasons=(why,),
        ).of_place(record["sector"], record["bytes"])  # fmt: skip
        return [found.logged(primary, record).timed(primary, record)]
    return []
