"""What management and the state record read of a controller: the part of it that they may know."""

from enum import Enum
from typing import Any, Protocol

from freezeframe.firmware_sim.config import ControllerConfig
from freezeframe.firmware_sim.console import Console
from freezeframe.firmware_sim.drbd_peer import Peer
from freezeframe.firmware_sim.faults import Faults
from freezeframe.firmware_sim.host import HostSide
from freezeframe.firmware_sim.rootcause import SetStore
from freezeframe.firmware_sim.scrub import Scrub
from freezeframe.firmware_sim.store import Store
from freezeframe.firmware_sim.tracebuffer import TraceBuffer


class Phase(Enum):
    BOOTING = "booting"
    RUNNING = "running"
    HUNG = "hung"
    """A warmstart from which the controller does not return; only a BREAK or a power cycle helps."""
    OFF = "off"


class Managed(Protocol):
    """A running controller, as ``controller.Controller`` is one."""

    config: ControllerConfig
    console: Console
    peer: Peer
    store: Store[Any]
    faults: Faults
    sets: SetStore
    trace: TraceBuffer
    host: HostSide
    scrub: Scrub
    phase: Phase
    now_ns: int
    boot_epoch: int
    host_writes: int
    """Since its power was switched on."""

    @property
    def host_requests(self) -> int:
        """Host requests under way."""
        ...

    def verify(self) -> None:
        """Read back what was written and not yet verified."""
        ...

    def restart_soon(self) -> None:
        """Warmstart once the answer to the present request has left."""
        ...
