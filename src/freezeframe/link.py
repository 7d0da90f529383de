"""Public: the replication link, to look at and to make packets by hand.

``read_packets(capture)`` gives the replication packets of a capture file, ``sniff(interface)``
those on a live link, ``dissect(data)`` those of a byte stream; the layers (``Drbd`` and one for each
of its three headers, ``ControlFrame``) are scapy's, and so are ``sniff``'s arguments. Everything is
imported when a name is used: importing this module costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from freezeframe.harness.core.link.pdus import (
        NoPdu,
        Pdu,
        PduConnection,
        PduDirection,
        PduLink,
        PduStream,
        Strays,
    )
    from freezeframe.harness.core.link.protocol import (
        API_VERSION,
        Answer,
        AnswerKind,
        Barrier,
        BarrierAnswer,
        Closed,
        Direction,
        Hole,
        Leaving,
        LinkMessage,
        LinkOptions,
        LinkSession,
        Malformed,
        Message,
        Opened,
        Opening,
        Other,
        ReplicatedWrite,
        ReplicationProtocol,
        Resync,
        Tell,
        WriteKind,
        WritePart,
    )
    from freezeframe.harness.edge.ring_socket import RingSocket
    from freezeframe.harness.edge.scapy_layers import ControlFrame, Drbd, DrbdH80, DrbdH95, DrbdH100
    from freezeframe.harness.edge.scapy_layers import packets as dissect
    from freezeframe.harness.edge.scapy_link import (
        DrbdSession,
        bind_port,
        read_packets,
        sniff,
        started_sniffer,
    )

_LAYERS: Final = "freezeframe.harness.edge.scapy_layers"
_LINK: Final = "freezeframe.harness.edge.scapy_link"
_HOMES: Final[dict[str, tuple[str, str]]] = {
    "ControlFrame": (_LAYERS, "ControlFrame"),
    "Drbd": (_LAYERS, "Drbd"),
    "DrbdH80": (_LAYERS, "DrbdH80"),
    "DrbdH95": (_LAYERS, "DrbdH95"),
    "DrbdH100": (_LAYERS, "DrbdH100"),
    "DrbdSession": (_LINK, "DrbdSession"),
    "RingSocket": ("freezeframe.harness.edge.ring_socket", "RingSocket"),
    "bind_port": (_LINK, "bind_port"),
    "dissect": (_LAYERS, "packets"),
    "read_packets": (_LINK, "read_packets"),
    "sniff": (_LINK, "sniff"),
    "started_sniffer": (_LINK, "started_sniffer"),
}
"""Public name -> its module, and its name there."""
_SEAM: Final = (
    "API_VERSION",
    "Answer",
    "AnswerKind",
    "Barrier",
    "BarrierAnswer",
    "Closed",
    "Direction",
    "Hole",
    "Leaving",
    "LinkMessage",
    "LinkOptions",
    "LinkSession",
    "Malformed",
    "Message",
    "Opened",
    "Opening",
    "Other",
    "ReplicatedWrite",
    "ReplicationProtocol",
    "Resync",
    "Tell",
    "WriteKind",
    "WritePart",
)
"""What a replication protocol of your own is made of; entry points of the group freezeframe.links."""
_HOMES.update((name, ("freezeframe.harness.core.link.protocol", name)) for name in _SEAM)

_PARTS: Final = ("NoPdu", "Pdu", "PduConnection", "PduDirection", "PduLink", "PduStream", "Strays")
"""A protocol of whole messages, except for its format."""
_HOMES.update((name, ("freezeframe.harness.core.link.pdus", name)) for name in _PARTS)

__all__ = [
    "NoPdu", "Pdu", "PduConnection", "PduDirection", "PduLink", "PduStream", "Strays",
    "ControlFrame", "Drbd", "DrbdH80", "DrbdH95", "DrbdH100", "DrbdSession", "RingSocket",
    "bind_port", "dissect", "read_packets", "sniff", "started_sniffer", "API_VERSION", "Answer",
    "AnswerKind", "Barrier", "BarrierAnswer", "Closed", "Direction", "Hole", "Leaving",
    "LinkMessage", "LinkOptions", "LinkSession", "Malformed", "Message", "Opened", "Opening",
    "Other", "ReplicatedWrite", "ReplicationProtocol", "Resync", "Tell", "WriteKind", "WritePart",
]  # fmt: skip
assert set(__all__) == set(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'freezeframe.link' has no attribute {name!r}")
