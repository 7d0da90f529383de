"""Reaction: from a trigger line on a busy console to the control frame on its line.

Ours has hundreds of rules, as a bench has; the peers look for the one text.

The generator (C) plays a console of 300 kB/s over a PTY, puts a trigger line into it every few
dozen milliseconds, and measures the time until the answer stands on the control line. ``--loaded``
(the default): for all contestants, ours and theirs, a replication link of 20 MB/s is captured,
watched and recorded beside it, and a run's live view is drawn.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import link_load
from benchmarks.common import (
    LEAST,
    Options,
    Result,
    Target,
    compiled,
    main,
    median,
    peers_python,
    percentile,
    scratch,
)
from benchmarks.consoles_common import RULES, Outcome, run_native, run_ours, run_peer

RATE = 300_000
GAP_US = 20_000
SLOW = {"pyserial readline(timeout=0.1)", "pytest-embedded expect"}
"""Take a tenth of a second a trigger and more: few of them, in every SLOW_EVERY-th round."""
SLOW_EVERY = 4
SLOW_TRIGGERS = 5
LOAD_MB_S = 20.0


def measure(options: Options) -> Result:
    peers_python()
    count = max(20, int(options.seconds * 1e6 / (GAP_US + 1000)))
    outcomes: dict[str, list[Outcome]] = {}
    with scratch() as directory, contextlib.ExitStack() as stack:
        reactor, generator = compiled("reactor", directory), compiled("generator", directory)
        if not options.arguments.unloaded:
            stack.enter_context(link_load.running_link(LOAD_MB_S, directory))
        shape = {"rate": RATE, "gap_us": GAP_US, "warm_up_ms": 500}
        run: dict[str, Callable[..., Outcome]] = {
            "C, epoll/read/memmem/write": partial(
                run_native, reactor, generator, directory, count=1
            ),
            "C, the same at SCHED_FIFO": partial(
                run_native, reactor, generator, directory, count=1, is_fifo=True
            ),
            "FreezeFrame reflex": partial(run_ours, generator, directory, count=1),
            "pexpect, defaults": partial(run_peer, "pexpect_reactor.py", generator),
            "labgrid ConsoleExpect": partial(run_peer, "labgrid_reactor.py", generator),
            "pyserial readline(timeout=0.1)": partial(run_peer, "pyserial_reactor.py", generator),
            "pytest-embedded expect": partial(run_peer, "embedded_reactor.py", generator),
        }
        for number in range(options.rounds):
            for name, contestant in run.items():
                if name in SLOW and number % SLOW_EVERY:
                    continue
                triggers = count if name not in SLOW else SLOW_TRIGGERS
                print(f"round {number + 1}: {name}", file=sys.stderr)
                outcomes.setdefault(name, []).append(contestant(triggers=triggers, **shape))
    return _result(outcomes, loaded=not options.arguments.unloaded)


def _result(outcomes: dict[str, list[Outcome]], *, loaded: bool) -> Result:
    medians, worst, rows = {}, {}, []
    for name, rounds in outcomes.items():
        every = [one for outcome in rounds for one in outcome.latencies_us]
        medians[name], worst[name] = median(every, least=LEAST), percentile(every, 99)
    c_median, c_worst = (next(iter(table.values())) for table in (medians, worst))
    for name, rounds in outcomes.items():
        missed = sum(outcome.missed for outcome in rounds)
        count = sum(len(outcome.latencies_us) for outcome in rounds)
        refused = sum(outcome.refused_bytes for outcome in rounds)
        rows.append(
            [
                name,
                count,
                missed,
                medians[name],
                worst[name],
                medians[name] / c_median,
                worst[name] / c_worst,
                refused,
            ]
        )
    us = medians["FreezeFrame reflex"]
    return Result(
        "reaction",
        "Reaction on a busy console (300 kB/s)"
        + (", with capture, link watch and live view running" if loaded else ""),
        [
            "reactor",
            "triggers",
            "missed",
            "median us",
            "99th us",
            "median / C",
            "99th / C's",
            "bytes refused",
        ],
        rows,
        [
            Target("median against C", us / c_median, 1.3, at_least=False),
            Target(
                "99th against C's 99th", worst["FreezeFrame reflex"] / c_worst, 2.0, at_least=False
            ),
            Target("faster than labgrid", medians["labgrid ConsoleExpect"] / us, 5.0),
            Target("faster than pexpect", medians["pexpect, defaults"] / us, 3.0),
        ],
        [
            f"FreezeFrame had {RULES} rules. Refused: what the console's line did not take, as its reader was too slow."
        ],
    )


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unloaded", action="store_true", help="without a link beside it")


if __name__ == "__main__":
    # Where a process comes to lie decides much: many short rounds, each with new ones.
    main(measure, rounds=16, seconds=2.5, add=_add)
