"""What `driver check` is given: one object of a role, or a protocol with a capture of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from freezeframe.harness.core.events import SIDES, Ns
from freezeframe.harness.core.link.check import ExpectedOnLink, check_protocol
from freezeframe.harness.core.link.protocol import LinkOptions, ProtocolMaker
from freezeframe.harness.promises.controllers import check_break_in, check_controller
from freezeframe.harness.promises.kit import check_host_port, check_power_rail, ignore
from freezeframe.harness.roles import Clock, Controller, HostPort, PowerRail


@dataclass(frozen=True, kw_only=True)
class ControllerCase:
    """A controller to check, on its device or a fake one. A data set is SAVED on it."""

    controller: Controller
    clock: Clock | None = None
    """The one that the driver's deadlines are measured by; None: CLOCK_MONOTONIC."""
    timeout_s: float = 30.0
    breaks: bool = False
    """Whether its BREAK is checked, too: the device is RESTARTED."""


@dataclass(frozen=True, kw_only=True)
class HostCase:
    """A volume to check. Its first MiB and its last sector are OVERWRITTEN."""

    port: HostPort


@dataclass(frozen=True, kw_only=True)
class PowerCase:
    """A supply to check. Both outputs are SWITCHED off and on."""

    rail: PowerRail


@dataclass(frozen=True, kw_only=True)
class LinkCase:
    """A protocol to check, by a capture of it, and what is in that capture."""

    make: ProtocolMaker
    capture: Iterable[tuple[Ns, bytes]]
    """(time, Ethernet frame) each."""
    writes: int | None = None
    answers: int | None = None
    digests_checked: int | None = None
    digests_wrong: int | None = None
    hits: frozenset[str] = frozenset()
    """Link events that the capture must show; a healthy one shows none."""
    ports: frozenset[int] = field(default_factory=frozenset)
    options: LinkOptions | None = None
    trials: int = 8


Case = ControllerCase | HostCase | PowerCase | LinkCase


def check_case(case: Case, passed: Callable[[str], None] = ignore) -> None:
    """Check it. ``passed`` takes each statement that holds."""
    match case:
        case ControllerCase():
            check_controller(
                case.controller, timeout_s=case.timeout_s, clock=case.clock, passed=passed
            )
            if case.breaks:
                check_break_in(
                    case.controller, timeout_s=case.timeout_s, clock=case.clock, passed=passed
                )
        case HostCase():
            check_host_port(case.port, passed=passed)
        case PowerCase():
            for side in SIDES:
                check_power_rail(case.rail, side, passed=passed)
        case LinkCase():
            expected = ExpectedOnLink(
                writes=case.writes, answers=case.answers, digests_checked=case.digests_checked,
                digests_wrong=case.digests_wrong, hits=case.hits,
            )  # fmt: skip
            check_protocol(
                case.make, case.capture, expected, options=case.options, ports=case.ports,
                trials=case.trials, passed=passed,
            )  # fmt: skip
