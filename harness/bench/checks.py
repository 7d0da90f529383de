"""What can be said about a bench file and its scenarios without opening the bench: the checks of
``freezeframe check``, and which scenarios a bench can run."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from freezeframe.harness.bench.benchfile import (
    Bench,
    Scenario,
    builtin_folder,
    load_bench,
    load_scenario,
)
from freezeframe.harness.bench.boundary import constructor_problem
from freezeframe.harness.bench.options import problems
from freezeframe.harness.bench.registry import load as load_driver
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.edge import exec_line
from freezeframe.harness.edge.system import CheckResult
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.rigs.framing import kinds
from freezeframe.harness.roles import (
    BreakingIn,
    Controller,
    FaultArming,
    FrameSocket,
    HostPort,
    HostWorkload,
    PowerRail,
)
from freezeframe.harness.wire.faults import FaultKind

WITHOUT_BREAK: Final = ("power-cycle", "give-up")
WITHOUT: Final = {
    "console": "nothing is heard of this side, and no canary proves a tap",
    "control": "this side is never instructed, its root cause data set is not collected, and no canary proves its tap",
}
"""What a side lacks without that line."""


def check(what: str | Path) -> list[CheckResult]:
    """Check everything about a bench file that is possible without opening the bench. Never raises
    for a wrong file."""
    try:
        bench = load_bench(what)
    except UsageError as error:
        return [
            CheckResult(name="bench", status="problem", detail=line)
            for line in str(error).splitlines()
        ]
    findings = [CheckResult(name="bench", status="ok", detail=f"{bench.name} ({bench.path})")]
    names: set[str] = set()
    try:
        found = bench.rules()
        names = {rule.name for rule in found.console} | {rule.name for rule in found.link}
        detail = f"{len(found.console)} on the consoles, {len(found.link)} on the link"
        findings.append(
            CheckResult(name="rules", status="ok" if names else "problem", detail=detail)
        )
        if mute := bench.unanswered_rules():
            said = f"{', '.join(mute)}: recorded only, who is to be instructed has no control line"
            findings.append(CheckResult(name="rules", status="warning", detail=said))
    except UsageError as error:
        findings += [
            CheckResult(name="rules", status="problem", detail=line)
            for line in str(error).splitlines()
        ]
    findings += _check_drivers(bench)
    findings += _check_lines(bench)
    findings += _check_notify(bench)
    why_not = unwritable(bench)
    if why_not:
        # A bench that is only watched needs no workload; one that names a workload means to run it.
        is_meant = "workload" in bench.model_fields_set
        status: Literal["problem", "warning"] = "problem" if is_meant else "warning"
        findings.append(CheckResult(name="workload", status=status, detail=why_not))
    for path in sorted((bench.path.parent / "scenarios").glob("*.toml")):
        findings += _check_scenario(bench, path, names)
    if not why_not and bench.path.parent != builtin_folder():
        findings += _check_built_in(bench)
    return findings


def _check_notify(bench: Bench) -> Iterator[CheckResult]:
    """Whether a watch could send its notices from here."""
    if bench.notify is None:
        return
    try:
        bench.notify.ready(bench.path.parent)
    except (UsageError, RigError) as error:
        yield CheckResult(name="notify", status="problem", detail=str(error))
    else:
        yield CheckResult(name="notify", status="ok", detail=f"on {', '.join(bench.notify.on)}")


def _check_built_in(bench: Bench) -> Iterator[CheckResult]:
    """Which of the scenarios that come with FreezeFrame this bench can play."""
    grouped: dict[str, list[str]] = {}
    for path in sorted((builtin_folder() / "scenarios").glob("*.toml")):
        scenario = load_scenario(path)
        grouped.setdefault(unplayable(bench, scenario), []).append(scenario.name)
    for why_not, scenarios in sorted(grouped.items()):
        said = ", ".join(scenarios) + (f" cannot run: {why_not}" if why_not else "")
        status: Literal["ok", "warning"] = "warning" if why_not else "ok"
        yield CheckResult(name="built-in scenarios", status=status, detail=said)


def _check_drivers(bench: Bench) -> Iterator[CheckResult]:
    wanted: list[tuple[str, str, type]] = [("workload", bench.workload.driver, HostWorkload)]
    for side in SIDES:
        table = bench.controller(side)
        wanted += [(side, table.driver, Controller), (f"{side} host", table.host_driver, HostPort)]
    if bench.power is not None:
        wanted.append(("power", bench.power.driver, PowerRail))
    if bench.link.scapy_socket is not None:
        wanted.append(("link", bench.link.scapy_socket, FrameSocket))
    for name, driver, role in wanted:
        try:
            loaded = load_driver(driver, role)
        except HarnessError as error:
            yield CheckResult(name=f"driver of {name}", status="problem", detail=str(error))
            continue
        programs: Sequence[str] = (
            getattr(loaded, "programs", tuple)() if role is HostWorkload else ()
        )
        wrong = _wrong_with_controller(bench, name, loaded) if role is Controller else []
        for problem in wrong:
            yield CheckResult(
                name=f"driver of {name}", status="problem", detail=f"driver {driver!r}: {problem}"
            )
        if wrong:
            continue
        missing = [one for one in programs if shutil.which(one) is None]
        said = (
            f"{driver}: {', '.join(missing)} is not installed on this machine"
            if missing
            else driver
        )
        yield CheckResult(
            name=f"driver of {name}", status="problem" if missing else "ok", detail=said
        )


def _check_lines(bench: Bench) -> Iterator[CheckResult]:
    """Programs that bring a line must be there."""
    for side in SIDES:
        table = bench.controller(side)
        for key, url in (("console", table.console), ("control", table.control)):
            if url is None:
                said = f"none is named: {WITHOUT[key]}"
                yield CheckResult(name=f"{key} of {side}", status="warning", detail=said)
            elif url.startswith(exec_line.PREFIX):
                try:
                    exec_line.command_of(url)
                except RigError as error:
                    yield CheckResult(name=f"{key} of {side}", status="problem", detail=str(error))


def _wrong_with_controller(bench: Bench, side: str, maker: Callable[..., object]) -> list[str]:
    """What keeps a controller's driver from being made, and from the policy's BREAK, as far as that shows
    without its line."""
    table = bench.controller("primary" if side == "primary" else "secondary")
    wrong = constructor_problem(maker)
    found = [*([wrong] if wrong else []), *problems(maker, table.options)]
    breaks = bool(bench.policy.recovery().breaks) and table.control is not None
    if breaks and isinstance(maker, type) and not issubclass(maker, BreakingIn):
        found.append(
            f"sends no BREAK; allowed for on_hung_warmstart: {', '.join(map(repr, WITHOUT_BREAK))}"
        )
    return found


def _check_scenario(bench: Bench, path: Path, rule_names: set[str]) -> Iterator[CheckResult]:
    try:
        scenario = load_scenario(path)
    except (UsageError, RigError) as error:
        for line in str(error).splitlines():
            yield CheckResult(name="scenario", status="problem", detail=line)
        return
    name = f"scenario {scenario.name}"
    wrong = []
    unknown = [rule for rule in scenario.expect.rules if rule not in rule_names]
    if rule_names and unknown and len(unknown) == len(scenario.expect.rules):
        wrong.append(
            f"none of its expected rules is in the bench's rule files: {', '.join(unknown)}"
        )
    writes = bench.with_workload(scenario.workload).workload.writes
    for fault in scenario.faults:
        last = fault.at_write + fault.spread_writes
        if fault.kind is not FaultKind.HUNG_WARMSTART and last > writes:
            wrong.append(f"{fault.kind} strikes at write {last}, the workload has {writes}")
    why_not = unplayable(bench, scenario)
    if why_not:
        yield CheckResult(
            name=name, status="warning", detail=f"cannot run on this bench: {why_not}"
        )
        return
    if scenario.name != path.stem:
        wrong.append(f"its file is called {path.name}")
    yield from (
        CheckResult(name=name, status="problem", detail=f"{path}: {problem}") for problem in wrong
    )
    if not wrong:
        yield CheckResult(name=name, status="ok", detail=scenario.title)


def unwritable(bench: Bench) -> str:
    """Return why no run can write to the primary's volume; "": as far as the file shows, it can."""
    table = bench.primary
    if table.host is None:
        return "a run writes through the primary's host, and [primary] names none: it can be watched only"
    try:
        is_read_only = bool(getattr(load_driver(table.host_driver, HostPort), "read_only", False))
    except HarnessError:
        return ""  # reported by itself
    if is_read_only:
        return (
            f"a run writes through the primary's host, and its driver {table.host_driver} only reads: "
            "it can be watched only"
        )
    return ""


def unread(bench: Bench) -> str:
    """Return why the volumes cannot be compared; "": as far as the file shows, they can."""
    sides = [side for side in SIDES if bench.controller(side).host is None]
    return f"the bench names no host of the {' and the '.join(sides)}" if sides else ""


def refuse_unplayable(bench: Bench, scenario: Scenario) -> None:
    """Raise UsageError when the scenario cannot run on the bench, before it is opened."""
    why_not = unwritable(bench) or unplayable(bench, scenario)
    if why_not:
        raise UsageError(f"{scenario.name} cannot run on the bench {bench.name}: {why_not}")


def unplayable(bench: Bench, scenario: Scenario) -> str:
    """Return why a bench cannot run a scenario; "": it can."""
    if scenario.expect.power_cycle and bench.policy.on_hung_warmstart == "give-up":
        return "needs on_hung_warmstart = 'power-cycle'"
    if bench.rig is not None:
        inside = sorted({fault.kind for fault in scenario.faults} - set(kinds(bench.link.protocol)))
        said = ", ".join(inside)
        return f"{said} is not possible in a link of {bench.link.protocol}" if inside else ""
    for side in SIDES:
        if not any(fault.on_side == side for fault in scenario.faults):
            continue
        if side not in bench.controlled:
            return f"its fault is armed over the {side}'s control line, and the bench names none"
        driver = bench.controller(side).driver
        try:
            maker = load_driver(driver, Controller)
        except HarnessError:
            continue  # reported by itself
        if isinstance(maker, type) and not issubclass(maker, FaultArming):
            return f"the {side}'s driver {driver} cannot arm faults"
    return ""
