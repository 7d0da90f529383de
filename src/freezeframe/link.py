"""Public: the replication link, to look at and to make packets by hand.

The layers are scapy's. They are imported when a name is used, so that importing this module costs
nothing. ``dissect(data)`` takes a byte stream of the link apart; ``RingSocket`` is a scapy socket
on the kernel's capture ring.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from freezeframe.harness.edge.ring_socket import RingSocket
    from freezeframe.harness.edge.scapy_layers import ControlFrame, Drbd, DrbdH80, DrbdH95, DrbdH100
    from freezeframe.harness.edge.scapy_layers import packets as dissect

_LAYERS: Final = "freezeframe.harness.edge.scapy_layers"
_HOMES: Final = {
    "ControlFrame": (_LAYERS, "ControlFrame"),
    "Drbd": (_LAYERS, "Drbd"),
    "DrbdH80": (_LAYERS, "DrbdH80"),
    "DrbdH95": (_LAYERS, "DrbdH95"),
    "DrbdH100": (_LAYERS, "DrbdH100"),
    "RingSocket": ("freezeframe.harness.edge.ring_socket", "RingSocket"),
    "dissect": (_LAYERS, "packets"),
}
"""Public name -> its module, and its name there."""

__all__ = ["ControlFrame", "Drbd", "DrbdH80", "DrbdH95", "DrbdH100", "RingSocket", "dissect"]
assert set(__all__) == set(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'freezeframe.link' has no attribute {name!r}")
