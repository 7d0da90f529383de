"""Implement the commands ``warmstart``, ``save`` and ``pull`` for one controller."""

import sys
from pathlib import Path

import msgspec
import typer

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.cli.byhand import ANSWER_S, asked, claimed_user, say_through, watch_of
from freezeframe.harness.cli.interrupt import begin_work
from freezeframe.harness.cli.output import EXIT_DEVICE_FAILED, EXIT_PASS, print_json, say
from freezeframe.harness.cli.privileges import prepare
from freezeframe.harness.core import byhand
from freezeframe.harness.core.byhand import Instructed
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.requests import Asking
from freezeframe.harness.edge.versions import versions
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.basis import keep_basis
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.report import text
from freezeframe.harness.roles import SetEntry
from freezeframe.harness.runs.audit import AuditJournal
from freezeframe.harness.runs.instructing import instruct
from freezeframe.harness.runs.rundirectory import run_directory


def _side(name: str) -> Side:
    for side in SIDES:
        if name == side:
            return side
    raise UsageError(f"{name}: not a side; allowed: {', '.join(SIDES)}")


def warmstart(name: str, bench_name: str, *, yes: bool, as_json: bool) -> None:
    """UsageError: nobody has confirmed it."""
    side, bench = _side(name), load_bench(bench_name)
    begin_work()
    if (watch := watch_of(bench)) is None:
        prepare(bench)
    confirmed = "with --yes" if yes else _confirmed(side, bench)
    _instruct(side, bench, watch, confirmed, disruptive=True, as_json=as_json)


def save(name: str, bench_name: str, *, as_json: bool) -> None:
    side, bench = _side(name), load_bench(bench_name)
    begin_work()
    if (watch := watch_of(bench)) is None:
        prepare(bench)
    _instruct(side, bench, watch, "", disruptive=False, as_json=as_json)


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


def _instruct(
    side: Side,
    bench: Bench,
    watch: Asking | None,
    confirmed: str,
    *,
    disruptive: bool,
    as_json: bool,
) -> None:
    if watch is not None:
        with watch:
            done = _through(watch, side, bench, confirmed, disruptive=disruptive)
    else:
        audit = AuditJournal(bench.name, "warmstart" if disruptive else "save", bench.path)
        with run_directory() as run_dir, OpenBench(bench, run_dir, only=side) as opened:
            done = instruct(opened, side, audit, disruptive=disruptive, how=confirmed)
    if as_json:
        found = msgspec.to_builtins(done)
        if done.up_after_ms is None:
            del found["up_after_ms"]
        del found["text"]
        print_json(found)
    elif not done.ok:
        say(f"{side}: refused: {escape(done.status)} {escape(done.text)}")
    elif disruptive:
        say(f"{side}: set {done.set} stored; the controller warmstarts")
        say(
            f"{side}: up again in boot epoch {done.boot_epoch} after {done.up_after_ms or 0:.0f} ms"
        )
    else:
        say(f"{side}: set {done.set} stored; the controller continues")
    raise typer.Exit(EXIT_PASS if done.ok else EXIT_DEVICE_FAILED)


def _through(
    watch: Asking, side: Side, bench: Bench, confirmed: str, *, disruptive: bool
) -> Instructed:
    say_through(watch, "nobody is armed while this goes on")
    request: byhand.Request = byhand.SaveRequest(who=claimed_user(), command="save", side=side)
    if disruptive:
        request = byhand.WarmstartRequest(
            who=claimed_user(), command="warmstart", side=side, confirmed=confirmed
        )
    policy = bench.policy
    done = asked(
        watch, request, ANSWER_S + policy.reply_timeout_s + policy.boot_timeout_s
    ).instructed
    if done is None:
        raise RigError(f"pid {watch.pid} did not say what came of it; its audit journal does")
    return done


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
