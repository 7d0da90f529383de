"""What a pair of virtual Linux nodes consists of: the one description from which the rig is built.

A controller driver of Linux nodes brings it as its class attribute ``node_pair``
(``freezeframe.drivers.controllers``); ``harness.rigs`` makes image, disks and nodes of it and knows
no kind of replication by name. Pure data, because the rig's own process gets it as JSON.
"""

from typing import Final

import msgspec

CONFIGURED: Final = "replication configured"
"""Said by each node (``node: ...``) once its ``configure`` has returned."""


class NodePair(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """For messages, and in the name of the image."""
    packages: tuple[str, ...]
    """Debian 12 packages beside those of every node (kernel, busybox, NBD server)."""
    shown_version_of: str
    """The package whose version describes the image, beside the kernel's."""
    modules: tuple[str, ...]
    """Kernel modules beside those of every node; what they depend on is found."""
    module_options: dict[str, str] = {}
    binaries: dict[str, str] = {}
    """Path in a package -> path in the node."""
    setup: str
    """Shell functions for busybox ash. ``configure`` runs on both nodes at each boot, before they
    are up; ``serve`` on the primary then, and returns once ``host_device`` may be written. Given are
    ``say TEXT``, and in ``$ff_...``: role, address, peer (addresses on the replication link)."""
    host_device: str
    """The replicated volume on the primary, which its host writes to."""
    has_metadata_disk: bool = False
    """Each node has a second, small disk (/dev/vdb) for the metadata of the replication."""
    host_offset_bytes: int = 0
    """Where the host's first byte lies on the disks (/dev/vda), and so on the replication link."""
    protocol: str
    """What is spoken on the replication link, as ``[link] protocol`` names it."""
