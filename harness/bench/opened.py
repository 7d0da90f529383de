"""Open the bench of a bench file: its power supply, its serial lines, its controllers.

Everything opened is closed on every exit, in reverse order; the power supply goes to its safe state
last.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from freezeframe.harness.bench import boundary, registry
from freezeframe.harness.bench.benchfile import Bench, RigTable
from freezeframe.harness.bench.simulation import Simulation
from freezeframe.harness.core.events import NS_PER_S, SIDES, Ns, Side
from freezeframe.harness.core.lineerrors import LineErrors
from freezeframe.harness.core.nodepair import NodePair
from freezeframe.harness.edge.serial_link import SerialLink, open_serial, silent_line
from freezeframe.harness.edge.shared_line import SharedLine
from freezeframe.harness.errors import (
    DriverError,
    NotWholeError,
    RigError,
    UsageError,
    WireError,
    WrongDeviceError,
)
from freezeframe.harness.rigs.daemon import RigConfig
from freezeframe.harness.rigs.rig import VirtualRig, default_directory
from freezeframe.harness.roles import (
    ByteLink,
    Controller,
    FaultArming,
    HostPort,
    Identity,
    PowerRail,
    Printing,
)

NO_CONTROL: Final = "the bench file names no control line for it"
NOT_COLLECTED: Final = f"not collected: {NO_CONTROL}"
IDENTIFY_TIMEOUT_S: Final = 15.0
ANSWERED_LATELY_NS: Final = 5 * NS_PER_S
"""A controller that answered so short a time ago is there, though its next answer came too late."""
"""Time for a controller that was just powered to answer. A simulated one boots in less than a
second, a board in some seconds."""
POLL_S: Final = 0.05
"""Interval between two polls of a device that cannot notify the harness."""
T = TypeVar("T")


def deadline_in(seconds: float) -> Ns:
    return time.monotonic_ns() + int(seconds * NS_PER_S)


class OpenBench:
    """A bench whose lines are open and whose controllers have answered.

    Any bench: simulated, virtual or hardware. ``bench`` is its bench file, with the places that a
    simulated or virtual bench chose filled in.
    """

    def __init__(
        self, bench: Bench, run_dir: Path, *, seed: int = 0, only: Side | None = None
    ) -> None:
        """Open all lines and identify each controller.

        With ``only``, open that side's control line alone and do not switch the power of a bench
        that is not simulated. Raises RigError that names what is missing and what to do.
        """
        self.notes: list[str] = []
        """Facts about the bench that belong in the incident, such as a line without low latency."""
        self.run_dir = run_dir
        self.simulation: Simulation | None = None
        self.virtual: VirtualRig | None = None
        self.power: PowerRail | None = None
        self.dialogue = threading.RLock()
        """Whoever asks a controller something, while others may, holds it: one question at a
        time."""
        self._power_lock = threading.Lock()
        """The power supply handles one command at a time."""
        self._reopening = threading.RLock()
        """A recovery and the watch may find the same line gone."""
        self.consoles: dict[Side, SerialLink] = {}
        self.controllers: dict[Side, Controller] = {}
        """Of each side that has a control line."""
        self.identities: dict[Side, Identity] = {}
        self.identified_ns: Ns = 0
        """When both were last asked before they answered that they are in full duplex."""
        self._lines: list[SerialLink] = []
        self._line_errors: dict[str, LineErrors] = {}
        """Of lines that were closed, since ``count_line_errors``."""
        self._stand_ins: dict[tuple[Side, bool], SerialLink] = {}
        """(side, whether it is a console) -> what is in the place of a line that has gone."""
        self._closing = contextlib.ExitStack()
        try:
            self._open(bench, seed, only)
        except BaseException:
            self.close()
            raise

    def _open(self, bench: Bench, seed: int, only: Side | None) -> None:
        if only is not None and only not in bench.controlled:
            raise UsageError(f"the {only} cannot be asked: {NO_CONTROL}")
        if bench.simulation is not None:
            self.simulation = Simulation(
                self.run_dir,
                serial_numbers={side: bench.controller(side).serial_number for side in SIDES},
                size_mib=bench.simulation.size_mib,
                mtu_bytes=bench.simulation.mtu_bytes,
                boot_ms=bench.simulation.boot_ms,
                shared_lines={
                    side
                    for side in SIDES
                    if bench.controller(side).control == bench.controller(side).console
                },
                seed=seed,
                autonomic=bench.simulation.autonomic,
            )
            self._closing.callback(self.simulation.close)
            bench = bench.resolve(self.run_dir, self.simulation.supply_port)
        if bench.rig is not None:
            self.virtual = self._open_virtual(bench, bench.rig)
            bench = bench.resolve(self.virtual.directory, 0)
        self.bench = bench
        if bench.power is not None and (only is None or self.simulation is not None):
            power = self.power = boundary.make_power(
                registry.load(bench.power.driver, PowerRail),
                bench.power.driver,
                bench.power.resource,
                volts=bench.power.volts,
                limit_a=bench.power.limit_a,
                safe_state="off" if bench.power.safe_state == "off" else "leave",
            )
            self._closing.callback(power.close)
            # The secondary first: the primary then finds its peer listening.
            for side in reversed(SIDES):
                if not power.output(side):
                    power.set_output(side, True)
        sides = SIDES if only is None else (only,)
        for side in sides:
            self._open_lines(side, with_console=only is None)
        for side in self.controllers:
            self.identities[side] = self.identify(side, deadline_in(IDENTIFY_TIMEOUT_S))

    def _open_virtual(self, bench: Bench, table: RigTable) -> VirtualRig:
        """Use the rig that ``freezeframe rig up`` started; else start one that ends with this
        bench."""
        found = VirtualRig(default_directory())
        if found.is_up():
            found.check()
            found.check_pair(node_pair(bench).name)
            self.notes.append(f"the rig in {found.directory} was up already")
        else:
            found = VirtualRig.start(virtual_config(bench, table, self.run_dir))
        self._closing.callback(found.close)
        return found

    def arm_faults(self, plans: Mapping[Side, Mapping[str, Any]]) -> None:
        """Arm the fault plan of each side (format: wire.faults). An empty plan disarms.

        A virtual rig injects the faults into the replication link; elsewhere the controllers
        produce them. Raises RigError if a controller cannot arm faults or refuses the plan.
        """
        if self.virtual is not None:
            self.virtual.arm([fault for plan in plans.values() for fault in plan["faults"]])
            return
        for side, plan in plans.items():
            controller = self.controller(side)
            if not isinstance(controller, FaultArming):
                raise RigError(f"the {side} controller's driver cannot arm faults")
            reply = controller.set_faults(
                self.identify(side, deadline_in(5.0)), dict(plan), deadline_in(5.0)
            )
            if not reply.ok:
                raise RigError(
                    f"the {side} controller refused the fault plan: {reply.status} {reply.text}"
                )

    def _open_lines(self, side: Side, *, with_console: bool) -> None:
        table = self.bench.controller(side)
        maker = registry.load(table.driver, Controller)
        breaks = bool(getattr(maker, "sends_break", False))
        if table.control is not None and table.control == table.console:
            line = self._open_line(side, table.control, table.console_baud, breaks=breaks)
            self.consoles[side] = line
            self.controllers[side] = self._make_controller(side, SharedLine(line))
            return
        if table.control is not None:
            line = self._open_line(side, table.control, table.control_baud, breaks=breaks)
            self.controllers[side] = self._make_controller(side, line)
        else:
            self.notes.append(
                f"{side}: {NO_CONTROL}: it is never instructed, and its set is not collected"
            )
        if with_console and table.console is not None:
            self.consoles[side] = self._open_line(side, table.console, table.console_baud)
        elif with_console:
            self.consoles[side] = silent_line(f"{side}: no console")
            self._closing.callback(self.consoles[side].close)
            self._lines.append(self.consoles[side])
            self.notes.append(f"{side}: the bench names no console, nothing is heard of it")

    def _make_controller(self, side: Side, control: ByteLink) -> Controller:
        table = self.bench.controller(side)
        return boundary.make_controller(
            registry.load(table.driver, Controller),
            table.driver,
            side,
            control,
            serial_number=table.serial_number,
            options=table.options,
            folder=self.bench.path.parent,
        )

    def _open_line(self, side: Side, url: str, baud: int, *, breaks: bool = False) -> SerialLink:
        line = open_serial(url, baud=baud, breaks=breaks)
        self._closing.callback(line.close)
        self._lines.append(line)
        self.notes += [f"{side}: {note}" for note in line.notes]
        return line

    def controller(self, side: Side) -> Controller:
        """Return the side's controller. UsageError: nobody can ask it."""
        if side not in self.controllers:
            raise UsageError(f"the {side} cannot be asked: {NO_CONTROL}")
        return self.controllers[side]

    def is_shared(self, side: Side) -> bool:
        """Whether its console and its control line are one."""
        return side in self.controllers and isinstance(self.controllers[side].link, SharedLine)

    def unheard(self, side: Side) -> str:
        """Why no line that its controller prints can be waited for; "": it can."""
        if self.bench.controller(side).console is None:
            return "the bench names no console of it"
        if side not in self.controllers:
            return NO_CONTROL
        if not isinstance(self.controllers[side], Printing):
            return "its controller cannot be asked to print"
        return ""

    def release_lines(self) -> None:
        """Close all lines so that another process can open them. The power stays on."""
        while self._lines:
            self._lines.pop().close()

    def count_line_errors(self) -> dict[str, LineErrors]:
        """Return what the serial drivers counted since this was last asked, by line: "primary
        console", "primary control line". A driver that does not count is not listed."""
        for side, line in self.consoles.items():
            self._count(f"{side} console", line)
        for side, controller in self.controllers.items():
            self._count(f"{side} control line", controller.link)
        found, self._line_errors = self._line_errors, {}
        return found

    def _count(self, name: str, line: ByteLink) -> None:
        if isinstance(line, SerialLink) and (grown := line.errors_since()) is not None:
            before = self._line_errors.get(name, LineErrors())
            self._line_errors[name] = before.plus(grown)

    def reopen_control(self, side: Side, gone: ByteLink) -> None:
        """Open the side's control line again after ``gone`` has vanished, unless that has been done.
        RigError: it is not there, or it is the console's own line, which its reader opens."""
        with self._reopening:
            if self.controllers[side].link is not gone:
                return
            if isinstance(gone, SharedLine):
                raise RigError(f"{gone.name} is the console's line")
            self.reopen_line(side, console=False)

    def reopen_line(self, side: Side, *, console: bool) -> bool:
        """Open the side's console or control line again after it has vanished. Returns whether the
        two are one line. RigError while it is not there."""
        with self._reopening:
            return self._reopen_line(side, console=console)

    def _reopen_line(self, side: Side, *, console: bool) -> bool:
        table = self.bench.controller(side)
        is_shared = self.is_shared(side)
        maker = registry.load(table.driver, Controller)
        breaks = bool(getattr(maker, "sends_break", False)) and (is_shared or not console)
        url, baud = table.control, table.control_baud
        if (console or is_shared) and table.console is not None:
            url, baud = table.console, table.console_baud
        if url is None:
            raise RigError(f"{side}: {NO_CONTROL}")
        self._put_aside(side, console=console, is_shared=is_shared)
        line = self._open_line(side, url, baud, breaks=breaks)
        self._use_line(side, line, console=console, is_shared=is_shared)
        return is_shared

    def _put_aside(self, side: Side, *, console: bool, is_shared: bool) -> None:
        """Close a line that has gone. Until it is there again another descriptor stands in its place:
        the number of a closed one may be any other file's by the time at which a watcher gets it.
        Nothing comes on a console's, and it does not end; a control line's refuses what is written
        and asked, as the lost one did; that of a line that is both does both."""
        is_console = console or is_shared
        old: ByteLink = self.consoles[side] if is_console else self.controllers[side].link
        if old in self._stand_ins.values():
            return
        if (key := (side, is_console)) not in self._stand_ins:
            # Kept to the end: a reflex that has it must not see it end when the line is back.
            self._stand_ins[key] = silent_line(old.name, is_gone=not is_console)
            self._closing.callback(self._stand_ins[key].close)
        self._count(f"{side} console" if is_console else f"{side} control line", old)
        lost = self.controllers[side].link if is_shared else old
        stand_in = self._stand_ins[key]
        self._use_line(side, stand_in, console=console, is_shared=is_shared, is_gone=True)
        lost.close()
        self._lines = [line for line in self._lines if line is not old]

    def _use_line(
        self,
        side: Side,
        line: SerialLink,
        *,
        console: bool,
        is_shared: bool,
        is_gone: bool = False,
    ) -> None:
        if console or is_shared:
            self.consoles[side] = line
        if is_shared or not console:
            control: ByteLink = SharedLine(line, is_gone=is_gone) if is_shared else line
            self.controllers[side] = self._make_controller(side, control)

    def identify(self, side: Side, deadline_ns: Ns) -> Identity:
        """Ask the controller for its identity until it answers: while it boots it is silent."""
        return self.retry_until(
            f"the {side} controller does not answer on {self.bench.controller(side).control}; "
            "is it powered, and is the control line right?",
            lambda step_ns: self.controller(side).identify(step_ns),
            deadline_ns,
        )

    def retry_until(
        self, complaint: str, ask: Callable[[Ns], T], deadline_ns: Ns, *, step_s: float = 1.0
    ) -> T:
        """Call ``ask`` until it returns or the deadline passes.

        Each call gets at most ``step_s``. After the deadline, raises RigError with ``complaint``
        and the reason of the last failure.
        """
        while True:
            try:
                return ask(min(deadline_in(step_s), deadline_ns))
            except WrongDeviceError:
                raise
            except (RigError, WireError) as error:
                if isinstance(error, DriverError) and error.is_broken:
                    raise
                if time.monotonic_ns() >= deadline_ns:
                    raise RigError(f"{complaint} ({error})") from error

    def await_boot(self, side: Side, *, newer_than: int) -> Identity:
        """Wait until the controller answers in a boot epoch later than ``newer_than``.

        Raises RigError after the policy's boot timeout.
        """
        deadline_ns = deadline_in(self.bench.policy.boot_timeout_s)
        while True:
            seen = self.identify(side, deadline_ns)
            if seen.boot_epoch > newer_than:
                self.identities[side] = seen
                return seen
            if time.monotonic_ns() >= deadline_ns:
                raise RigError(
                    f"the {side} controller did not restart: it is still in boot epoch {seen.boot_epoch}"
                )
            time.sleep(POLL_S)

    def await_full_duplex(self, deadline_ns: Ns) -> dict[Side, Identity]:
        """Wait until all controllers that can be asked report full duplex. NotWholeError names their
        last states; RigError: one of them does not answer."""
        seen: dict[Side, Identity] = {}
        seen_ns = 0
        while True:
            asked_ns = time.monotonic_ns()
            try:
                seen = {side: self.identify(side, deadline_ns) for side in self.controllers}
            except WrongDeviceError:
                raise
            except RigError as error:
                # The time is up in the middle of a question to two that have just answered.
                if not seen or time.monotonic_ns() - seen_ns > ANSWERED_LATELY_NS:
                    raise
                raise self._not_whole(seen) from error
            seen_ns = time.monotonic_ns()
            if all(one.pair_state == "full duplex" for one in seen.values()):
                self.identities, self.identified_ns = seen, asked_ns
                return seen
            if seen_ns >= deadline_ns:
                raise self._not_whole(seen)
            time.sleep(POLL_S)

    @staticmethod
    def _not_whole(seen: Mapping[Side, Identity]) -> NotWholeError:
        states = ", ".join(f"{side}: {_state_of(one)}" for side, one in seen.items())
        return NotWholeError(f"the pair did not reach full duplex in time; {states}")

    def power_cycle(self, side: Side) -> None:
        if self.power is None:
            raise RigError(
                f"{side} needs a power cycle and the bench has no [power]; switch it off and on by hand"
            )
        with self._power_lock:
            self.power.set_output(side, False)
        time.sleep(self.bench.policy.power_off_s)
        with self._power_lock:
            self.power.set_output(side, True)

    def measure(self, side: Side) -> tuple[float, float]:
        """Return the present volts and amperes of the side's output."""
        assert self.power is not None
        with self._power_lock:
            return self.power.measure(side)

    def host(self, side: Side) -> HostPort:
        """Return the side's volume as its host sees it. A secondary's may be read-only. RigError:
        the bench names none."""
        table = self.bench.controller(side)
        if table.host is None:
            raise RigError(f"[{side}] of the bench file names no host: its volume cannot be read")
        maker = registry.load(table.host_driver, HostPort)
        return boundary.make_host(maker, table.host_driver, side, table.host)

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bench. If a virtual rig ended by itself, that is the cause of the RigError:
        raise one that names the cause first."""
        trouble = (
            self.virtual.trouble()
            if self.virtual is not None and isinstance(error, RigError)
            else ""
        )
        self.close()
        if trouble and trouble not in str(error):
            raise RigError(f"{trouble} (seen as: {error})") from error


def _state_of(identity: Identity) -> str:
    return identity.pair_state + (f" ({identity.pair_detail})" if identity.pair_detail else "")


def node_pair(bench: Bench) -> NodePair:
    """Return the virtual nodes that the driver of the primary describes. UsageError: it describes
    none."""
    driver = bench.primary.driver
    pair = getattr(registry.load(driver, Controller), "node_pair", None)
    if not isinstance(pair, NodePair):
        raise UsageError(
            f"{bench.path}: [rig] starts the nodes that the primary's driver describes, and {driver!r} describes "
            "none (node_pair)"
        )
    return pair


def virtual_config(
    bench: Bench, table: RigTable, directory: Path, *, stays: bool = False
) -> RigConfig:
    """Return the configuration of the bench file's virtual rig, run in ``directory``."""
    return RigConfig(
        directory=str(directory.absolute()),
        pair=node_pair(bench),
        serial_numbers={side: bench.controller(side).serial_number for side in SIDES},
        size_mib=table.size_mib,
        memory_mib=table.memory_mib,
        mtu_bytes=table.mtu_bytes,
        stays=stays,
    )


@contextlib.contextmanager
def standing_rig(bench: Bench) -> Iterator[None]:
    """Start the virtual rig once for several runs, unless one is up already.

    Do nothing on a bench without ``[rig]``.
    """
    if bench.rig is None or VirtualRig(default_directory()).is_up():
        yield
        return
    with VirtualRig.start(virtual_config(bench, bench.rig, default_directory())):
        yield
