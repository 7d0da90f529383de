"""Let something break on a simulated pair that runs (``freezeframe sim``): arm the faults of a scenario,
and write as a host does. Who watches the pair sees what comes of it.

The control lines belong to whoever watches: the faults go in over a service port of each simulated
controller, a socket beside the bench file that ``freezeframe sim`` writes.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from freezeframe.harness.bench import boundary, registry
from freezeframe.harness.bench.attached import service_port
from freezeframe.harness.bench.benchfile import KIB, MIB, Bench, Scenario
from freezeframe.harness.bench.checks import refuse_unplayable
from freezeframe.harness.bench.opened import deadline_in
from freezeframe.harness.core.events import SIDES, Side, WorkloadDone, WorkloadProgress
from freezeframe.harness.edge.ownsocket import wait_readable
from freezeframe.harness.edge.processes import Child
from freezeframe.harness.edge.serial_link import open_serial
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.roles import Controller, FaultArming, HostWorkload
from freezeframe.harness.runs.view import View
from freezeframe.harness.runs.workload import STOP_LIMIT_S

ANSWER_S: Final = 5.0
SILENT_S: Final = 60.0
"""Host writes that come no further for so long have failed; a recovery holds them for less."""
TICK_S: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Injected:
    """What was armed, and what the host wrote."""

    faults: list[dict[str, Any]]
    done: WorkloadDone | None
    """None: it was stopped before."""


def inject(
    bench: Bench, scenario: Scenario, *, seed: int, view: View, is_stopped: Callable[[], bool]
) -> Injected:
    """``bench``: of the file that ``freezeframe sim`` writes. UsageError: it is another one."""
    for side in SIDES:
        if not service_port(bench, side).is_socket():
            raise UsageError(
                f"{bench.path} is not the bench of a simulated pair that runs: start `freezeframe sim`, and give "
                "the bench file that it prints"
            )
    bench = bench.with_workload(scenario.workload)
    refuse_unplayable(bench, scenario)
    faults: list[dict[str, Any]] = []
    for side in SIDES:
        # Of a side without a fault too: what was armed before, and has not come, goes.
        plan = scenario.fault_plan(side, seed)
        _arm(bench, side, plan)
        faults += plan["faults"]
    for one in faults:
        view.phase(f"armed: {one['kind']} on the {one['side']}, at write {one['at_write']}")
    return Injected(faults=faults, done=_write(bench, seed, view, is_stopped))


def _arm(bench: Bench, side: Side, plan: dict[str, Any]) -> None:
    table = bench.controller(side)
    line = open_serial(f"unix:{service_port(bench, side)}", baud=table.control_baud)
    try:
        controller = boundary.make_controller(
            registry.load(table.driver, Controller),
            table.driver,
            side,
            line,
            serial_number=table.serial_number,
            options=table.options,
            folder=bench.path.parent,
        )
        if not isinstance(controller, FaultArming):
            raise UsageError(f"the {side}'s driver {table.driver} cannot arm faults")
        who = controller.identify(deadline_in(ANSWER_S))
        reply = controller.set_faults(who, plan, deadline_in(ANSWER_S))
        if not reply.ok:
            raise RigError(f"the {side} refused the fault: {reply.status} {reply.text}")
    finally:
        line.close()


def _write(
    bench: Bench, seed: int, view: View, is_stopped: Callable[[], bool]
) -> WorkloadDone | None:
    table = bench.workload
    module = registry.load(table.driver, HostWorkload).workload_module()  # type: ignore[attr-defined]
    view.phase(f"writing {table.bytes_mib} MiB to the primary, as a host does")
    with tempfile.TemporaryDirectory(dir=bench.path.parent) as folder:
        config = {
            "uri": bench.primary.host,
            "bytes_total": table.bytes_mib * MIB,
            "write_bytes": table.write_kib * KIB,
            "queue_depth": table.queue_depth,
            "seed": seed,
            "journal_path": str(Path(folder) / "host.journal"),
            "stop_limit_s": STOP_LIMIT_S,
            "reconnect_limit_s": SILENT_S / 2,
        }
        child = Child("workload", module, config, stderr_path=Path(folder) / "stderr")
        try:
            return _await_done(child, view, is_stopped)
        finally:
            child.stop(deadline_in(STOP_LIMIT_S + 1))


def _await_done(child: Child, view: View, is_stopped: Callable[[], bool]) -> WorkloadDone | None:
    written, moved_s = 0, time.monotonic()
    while not is_stopped():
        wait_readable([child.fileno()], TICK_S)
        for event in child.receive():
            if isinstance(event, WorkloadDone):
                return event
            if isinstance(event, WorkloadProgress):
                view.progress(event.bytes_written, event.bytes_total)
                if event.bytes_written > written:
                    written, moved_s = event.bytes_written, time.monotonic()
        if child.ended:
            raise child.death()
        if time.monotonic() - moved_s > SILENT_S:
            raise RigError(f"the host's writes made no progress for {SILENT_S:.0f} s")
    return None
