"""Many consoles in one process: 64 and 256 PTYs at 11.5 kB/s each, a trigger on one of them at a
time.

Ours is one reflex process that scans and records all of them. The C reactor does the same with
epoll and memmem. conserver, which records many consoles in the field, is compared by its CPU time
for the same text, to the end of its record: it has no triggers, so that nobody waits for its
answers.
"""

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.common import (
    LEAST,
    NAN,
    Options,
    Result,
    Target,
    compiled,
    cpu_seconds,
    main,
    median,
    percentile,
    running,
    scratch,
)
from benchmarks.consoles_common import (
    RULES,
    Outcome,
    finish,
    generate,
    lines,
    run_native,
    run_ours,
    total_bytes,
)

RATE = 11_500
GAP_US = 40_000
COUNTS = (64, 256)


def conserver(generator: Path, directory: Path, *, count: int, **shape: int) -> Outcome | None:
    """CPU seconds and bytes recorded; its processes are children of the one started here."""
    program = shutil.which("conserver") or "/usr/sbin/conserver"
    if not Path(program).exists():
        return None
    with lines(count) as (consoles, control):
        blocks = [
            f"console c{n} {{ type device; device {one.path}; }}" for n, one in enumerate(consoles)
        ]
        config, passwd = directory / "conserver.cf", directory / "conserver.passwd"
        default = f"default * {{ master localhost; baud 115200; parity none; logfile {directory}/&.conserver; rw *; }}"
        config.write_text("\n".join([default, *blocks, "access * { trusted 127.0.0.1; }", ""]))
        passwd.write_text("*any*:\n")
        argv = [
            program,
            "-C",
            str(config),
            "-P",
            str(passwd),
            "-p",
            "47821",
            "-M",
            "127.0.0.1",
            "-m",
            "256",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        logs = [directory / f"c{n}.conserver" for n in range(count)]
        with running(argv, **quiet) as child:
            deadline = time.monotonic() + 15
            while not all(one.exists() for one in logs) and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(1)  # for the banners
            banner_bytes = total_bytes(logs)
            before = cpu_seconds(child.pid, children=True)
            made = generate(generator, consoles, control, answer_ms=0, **shape)
            outcome = finish(
                made,
                child.pid,
                before,
                recorded=lambda: total_bytes(logs) - banner_bytes,
                children=True,
            )
            child.terminate()
            child.wait(10)
        for one in logs:
            one.unlink()
        return outcome


def measure(options: Options) -> Result:
    rows: list[list[object]] = []
    targets: list[Target] = []
    triggers = max(20, int(options.seconds * 1e6 / (GAP_US + 1000)))
    with scratch(memory=True) as directory:
        reactor, generator = compiled("reactor", directory), compiled("generator", directory)
        for count in COUNTS:
            shape = {
                "count": count,
                "rate": RATE,
                "triggers": triggers,
                "gap_us": GAP_US,
                "warm_up_ms": 500,
            }
            run = {
                "C, epoll": partial(run_native, reactor, generator, directory, **shape),
                "FreezeFrame reflex": partial(run_ours, generator, directory, **shape),
                "conserver": partial(conserver, generator, directory, **shape),
            }
            outcomes: dict[str, list[Outcome]] = {}
            for _ in range(options.rounds):
                for name, contestant in run.items():
                    print(f"{count} consoles: {name}", file=sys.stderr)
                    if (outcome := contestant()) is not None:
                        outcomes.setdefault(name, []).append(outcome)
            figures = {}
            for name, rounds in outcomes.items():
                every = [one for outcome in rounds for one in outcome.latencies_us]
                cpu = sum(one.cpu_s for one in rounds) / (
                    sum(one.sent_bytes for one in rounds) / 1e6
                )
                figures[name] = (median(every, least=LEAST), percentile(every, 99), cpu)
                lost = sum(one.lost_bytes for one in rounds)
                rows.append(
                    [count, name, sum(one.missed for one in rounds) if every else NAN, figures[name][0],
                     figures[name][1], cpu * 1000, lost, max(one.peak_mib for one in rounds)]
                )  # fmt: skip
                if name == "FreezeFrame reflex":
                    targets.append(
                        Target(f"{count} consoles: bytes lost", lost, 0, at_least=False, unit="")
                    )
            c, we = figures["C, epoll"], figures["FreezeFrame reflex"]
            targets.append(
                Target(f"{count} consoles: median against C", we[0] / c[0], 2, at_least=False)
            )
            targets.append(
                Target(f"{count} consoles: 99th against C's", we[1] / c[1], 2, at_least=False)
            )
            if "conserver" in figures:
                targets.append(
                    Target(
                        f"{count} consoles: CPU against conserver",
                        we[2] / figures["conserver"][2],
                        1,
                        at_least=False,
                    )
                )
    return Result(
        "consoles", "Many consoles at 11.5 kB/s each",
        ["consoles", "who", "missed", "median us", "99th us", "CPU ms a MB", "bytes lost", "peak MiB"], rows, targets,
        ["Lost: what a console's line did not take, because its reader had not made room within 5 ms, and what was taken "
         f"and is not in the record. All had the same triggers in the same time. FreezeFrame had {RULES} rules."],
    )  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    main(measure, rounds=2, seconds=4.0)
