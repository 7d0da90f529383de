"""Implement the commands ``warmstart``, ``save`` and ``pull`` for one controller."""

import secrets
import sys
import time
from pathlib import Path
from typing import Any

import typer

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.cli.output import EXIT_DEVICE_FAILED, EXIT_PASS, print_json, say
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.versions import versions
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.basis import keep_basis
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.report import text
from freezeframe.harness.roles import Preparable, SetEntry
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.rundirectory import run_directory
from freezeframe.harness.wire import control


def _side(name: str) -> Side:
    for side in SIDES:
        if name == side:
            return side
    raise UsageError(f"{name}: not a side; allowed: {', '.join(SIDES)}")


def warmstart(name: str, bench_name: str, *, yes: bool, as_json: bool) -> None:
    """UsageError: nobody has confirmed it."""
    side, bench = _side(name), load_bench(bench_name)
    prepare(bench)
    confirmed = "with --yes" if yes else _confirmed(side, bench)
    _instruct(side, bench, confirmed, disruptive=True, as_json=as_json)


def save(name: str, bench_name: str, *, as_json: bool) -> None:
    side, bench = _side(name), load_bench(bench_name)
    prepare(bench)
    _instruct(side, bench, "", disruptive=False, as_json=as_json)


def _confirmed(side: Side, bench: Bench) -> str:
    """Ask whether the controller may restart; return how that was confirmed."""
    if not all(one is not None and one.isatty() for one in (sys.stdin, sys.stderr)):
        raise UsageError(
            f"warmstart restarts the {side} controller, and there is no terminal to confirm it on: add --yes"
        )
    table = bench.controller(side)
    who = f"the {side} controller of bench {bench.name} ({table.serial_number} on {table.control})"
    try:
        agreed = typer.confirm(f"warmstart {escape(who)}?", err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise UsageError(f"warmstart {side}: not confirmed; nothing was sent")
    return "at the terminal"


def _instruct(side: Side, bench: Bench, confirmed: str, *, disruptive: bool, as_json: bool) -> None:
    verb = "warmstart" if disruptive else "save"
    audit, came = AuditJournal(bench.name, verb, bench.path), "not known"
    with run_directory() as run_dir, OpenBench(bench, run_dir, only=side) as opened:
        controller, identity = opened.controllers[side], opened.identities[side]
        incident_id = secrets.token_bytes(control.INCIDENT_ID_BYTES)
        if isinstance(controller, Preparable):
            controller.prepare(identity, incident_id, deadline_in(bench.policy.reply_timeout_s))
        frame = controller.freeze_frame(
            identity, control.Reason.OPERATOR, incident_id, disruptive=disruptive
        )
        sent_ns = time.monotonic_ns()
        try:
            controller.link.write(frame)
            reply = controller.freeze_reply(frame, deadline_in(bench.policy.reply_timeout_s))
            came = "no answer" if reply is None else reply.status
        except BaseException as error:
            came = str(error) or type(error).__name__  # of a frame that may be out
            raise
        finally:
            how = f", confirmed {confirmed}" if confirmed else ""
            audit.add("frame", side, f"{verb} by hand{how}, boot epoch {identity.boot_epoch}", came)
        if reply is None:
            raise RigError(
                f"the {side} controller did not answer {verb} within {bench.policy.reply_timeout_s:g} s"
            )
        answer: dict[str, Any] = {
            "side": side,
            "ok": reply.ok,
            "status": reply.status,
            "serial_number": identity.serial_number,
            "set": reply.set_id if reply.ok else None,
            "boot_epoch": reply.boot_epoch,
            "answered_us": (reply.t_received_ns - sent_ns) / 1000,
        }
        if reply.ok and disruptive:
            seen = opened.await_boot(side, newer_than=identity.boot_epoch)
            answer["up_after_ms"] = (time.monotonic_ns() - sent_ns) / 1e6
            answer["boot_epoch"] = seen.boot_epoch
    if as_json:
        print_json(answer)
    elif not reply.ok:
        say(f"{side}: refused: {escape(reply.status)} {escape(reply.text)}")
    elif disruptive:
        say(f"{side}: set {reply.set_id} stored; the controller warmstarts")
        say(
            f"{side}: up again in boot epoch {answer['boot_epoch']} after {answer['up_after_ms']:.0f} ms"
        )
    else:
        say(f"{side}: set {reply.set_id} stored; the controller continues")
    raise typer.Exit(EXIT_PASS if reply.ok else EXIT_DEVICE_FAILED)


def _chosen(entries: list[SetEntry], set_id: int | None, side: Side) -> SetEntry:
    if not entries:
        raise UsageError(
            f"the {side} controller holds no root cause data set; store one with: freezeframe save {side}"
        )
    if set_id is None:
        return max(entries, key=lambda one: one.set_id)
    for one in entries:
        if one.set_id == set_id:
            return one
    raise UsageError(
        f"the {side} controller has no set {set_id}; it holds: {', '.join(str(one.set_id) for one in entries)}"
    )


def pull(name: str, bench_name: str, out_dir: Path, *, set_id: int | None, as_json: bool) -> None:
    side, bench = _side(name), load_bench(bench_name)
    prepare(bench)
    with run_directory() as run_dir, OpenBench(bench, run_dir, only=side) as opened:
        deadline_ns = deadline_in(bench.policy.pull_timeout_s)
        entry = _chosen(opened.controllers[side].sets(deadline_ns), set_id, side)
        incident = Incident.create(
            out_dir,
            bench=bench.name,
            bench_id=bench.id,
            pair_id=opened.bench.pair_id,
            seed=0,
            scenario=f"pull {side}",
            versions=versions(),
        )
        keep_basis(incident, bench)
        try:
            pulled = opened.controllers[side].pull(
                entry, b"", deadline_ns, lambda data: incident.append_set(side, data)
            )
            incident.store_set(side, pulled)
        except BaseException as error:
            incident.missing_set(side, str(error))
            incident.finish(
                "interrupted" if isinstance(error, KeyboardInterrupt) else "rig-trouble"
            )
            raise
        incident.finish("pass")
    result = {
        "side": side,
        "set": entry.set_id,
        "incident": str(incident.path.absolute()),
        **incident.record["sets"][side],
    }
    if as_json:
        print_json(result)
    else:
        say(
            f"{side}: set {entry.set_id}, {text.byte_count(result['bytes'])}, {result.get('events', 0)} events"
        )
        say(f"incident: {escape(str(incident.path.absolute()))}")
