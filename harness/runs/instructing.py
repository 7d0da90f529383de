"""A frame that a person sends by hand: a warmstart, or a save, and what came of it."""

import secrets
import time

from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.core.byhand import Instructed
from freezeframe.harness.core.events import Side
from freezeframe.harness.errors import RigError
from freezeframe.harness.roles import Preparable
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.wire import control


def instruct(
    opened: OpenBench, side: Side, audit: AuditJournal, *, disruptive: bool, how: str, who: str = ""
) -> Instructed:
    """``how`` it was confirmed; ``who`` has asked for it, where that is not this command. RigError: the
    controller did not answer, or did not come back."""
    verb, came = "warmstart" if disruptive else "save", "not known"
    controller, identity = opened.controllers[side], opened.identities[side]
    incident_id = secrets.token_bytes(control.INCIDENT_ID_BYTES)
    timeout_s = opened.bench.policy.reply_timeout_s
    if isinstance(controller, Preparable):
        controller.prepare(identity, incident_id, deadline_in(timeout_s))
    frame = controller.freeze_frame(
        identity, control.Reason.OPERATOR, incident_id, disruptive=disruptive
    )
    sent_ns = time.monotonic_ns()
    try:
        controller.link.write(frame)
        reply = controller.freeze_reply(frame, deadline_in(timeout_s))
        came = "no answer" if reply is None else reply.status
    except BaseException as error:
        came = str(error) or type(error).__name__  # of a frame that may be out
        raise
    finally:
        why = (
            f"{verb} by hand{f', confirmed {how}' if how else ''}, boot epoch {identity.boot_epoch}"
        )
        audit.add("frame", side, why, came, who=who)
    if reply is None:
        raise RigError(f"the {side} controller did not answer {verb} within {timeout_s:g} s")
    epoch, up_after_ms = reply.boot_epoch, None
    answered_us = (reply.t_received_ns - sent_ns) / 1000
    if reply.ok and disruptive:
        epoch = opened.await_boot(side, newer_than=identity.boot_epoch).boot_epoch
        up_after_ms = (time.monotonic_ns() - sent_ns) / 1e6
    return Instructed(
        side=side, ok=reply.ok, status=reply.status, text=reply.text, serial_number=identity.serial_number,
        set=reply.set_id if reply.ok else None, boot_epoch=epoch, answered_us=answered_us, up_after_ms=up_after_ms,
    )  # fmt: skip
