"""What management and the state record read of a controller: the part of it that they may know."""

from typing import Any, Protocol

from freezeframe.firmware_sim.config import ControllerConfig
from freezeframe.firmware_sim.console import Console
from freezeframe.firmware_sim.drbd_peer import Peer
from freezeframe.firmware_sim.faults import Faults
from freezeframe.firmware_sim.rootcause import SetStore
from freezeframe.firmware_sim.store import Store
from freezeframe.firmware_sim.tracebuffer import TraceBuffer


class Managed(Protocol):
    """A running controller, as ``controller.Controller`` is one."""

    config: ControllerConfig
    console: Console
    peer: Peer
    store: Store[Any]
    faults: Faults
    sets: SetStore
    trace: TraceBuffer
    now_ns: int
    boot_epoch: int

    @property
    def host_requests(self) -> int:
        """Host requests under way."""
        ...

    def diagnostics(self) -> dict[str, object]:
        """What the firmware counts about itself, for the state record."""
        ...

    def verify(self) -> None:
        """Read back what was written and not yet verified."""
        ...

    def restart_soon(self) -> None:
        """Warmstart once the answer to the present request has left."""
        ...
