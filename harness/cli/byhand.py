"""Act on a bench by hand: through the watch of it, where there is one; and the commands ``arm`` and ``disarm``."""

import os
from typing import Final

import typer

from freezeframe.harness.bench.benchfile import Bench, load_bench
from freezeframe.harness.bench.benchid import another_of_that_name, name_of
from freezeframe.harness.cli.interrupt import begin_work
from freezeframe.harness.cli.output import EXIT_PASS, err, print_json, say
from freezeframe.harness.core import byhand
from freezeframe.harness.core.byhand import HandAnswer
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.ownsocket import names
from freezeframe.harness.edge.requests import Asking, answering
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.runs.audit import state_directory

ANSWER_S: Final = 15.0
"""For the watch to do what takes a moment."""


def claimed_user() -> str:
    """Who called sudo; "": nobody."""
    return os.environ.get("SUDO_USER", "")


def watch_of(bench: Bench) -> Asking | None:
    """Return a connection to the watch of this bench; None: nobody watches it. RigError: two do, or another
    user does."""
    found = answering(state_directory(), bench.id)
    if len(found) > 1:
        for one in found:
            one.close()
        pids = " and ".join(f"pid {one.pid}" for one in found)
        raise RigError(
            f"the bench {bench.name} is watched by {pids}: which one is meant is not known"
        )
    return found[0] if found else None


def needed_watch_of(bench: Bench, given: str, what: str) -> Asking:
    if (found := watch_of(bench)) is not None:
        return found
    others = [one for one in names(state_directory()) if name_of(one) == bench.name]
    same_name = [asking for one in others for asking in answering(state_directory(), one)]
    pids = [f"pid {one.pid}" for one in same_name]
    for one in same_name:
        one.close()
    raise RigError(
        f"nobody watches the bench {bench.name} of {bench.path} now, so there is nothing to {what}: start "
        f"`freezeframe watch --bench {given}` in another terminal; if a service watches it, set STATE_DIRECTORY to "
        f"the service's and be its user{another_of_that_name('watched', pids)}"
    )


def asked(watch: Asking, request: byhand.Request, limit_s: float = ANSWER_S) -> HandAnswer:
    """Return the answer. UsageError, RigError: the watch has refused it, or it could not be done."""
    line = watch.ask(byhand.encode(request), limit_s)
    try:
        answer = byhand.decode_answer(line)
    except ValueError as error:
        raise RigError(f"pid {watch.pid} gave no answer that can be read: {error}") from error
    if answer.whose == "usage":
        raise UsageError(answer.text)
    if answer.whose == "rig":
        raise RigError(answer.text)
    return answer


def say_through(watch: Asking, text: str) -> None:
    err.print(
        f"freezeframe: through the watch (pid {watch.pid}): {escape(text)}",
        style="dim",
        markup=False,
    )


def arm(bench_name: str, *, reason: str, as_json: bool) -> None:
    request = byhand.ArmRequest(who=claimed_user(), command="arm", reason=reason)
    _ask_and_say(bench_name, request, as_json=as_json)


def disarm(bench_name: str, *, reason: str, as_json: bool) -> None:
    if not reason.strip():
        raise UsageError(
            "disarm: --reason is empty; whoever finds the bench disarmed wants to know why"
        )
    request = byhand.DisarmRequest(who=claimed_user(), command="disarm", reason=reason)
    _ask_and_say(bench_name, request, as_json=as_json)


def _ask_and_say(
    bench_name: str, request: byhand.ArmRequest | byhand.DisarmRequest, *, as_json: bool
) -> None:
    begin_work()
    with needed_watch_of(load_bench(bench_name), bench_name, request.command) as watch:
        answer = asked(watch, request)
        if as_json:
            print_json({"watch": watch.pid, "health": answer.health, "text": answer.text})
        else:
            say(f"{escape(answer.text)} (pid {watch.pid})")
    raise typer.Exit(EXIT_PASS)
