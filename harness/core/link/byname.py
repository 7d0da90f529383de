"""Replication protocols by their names: ``[link] protocol`` in the bench file.

A name is looked up among what is installed (entry points of the group ``freezeframe.links``), then
among our own, so that a checkout without an installation works too. This is the one place of the
core that asks what is installed.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, cast

from freezeframe.harness.core.console.places import ConsoleText
from freezeframe.harness.core.link.protocol import (
    API_VERSION,
    LinkOptions,
    Nothing,
    ProtocolMaker,
    ReplicationProtocol,
)
from freezeframe.harness.core.link.protocolguard import GuardedProtocol
from freezeframe.harness.core.text import did_you_mean, where_raised
from freezeframe.harness.errors import RigError, UsageError

GROUP: Final = "freezeframe.links"
USUAL: Final = "drbd"
NONE: Final = Nothing.name
BUILT_IN: Final = {
    "drbd": "freezeframe.harness.core.link.drbd.protocol:DrbdLink",
    "iscsi": "freezeframe.harness.core.link.iscsi:IscsiLink",
    "nbd": "freezeframe.harness.core.link.nbd:NbdLink",
    "none": "freezeframe.harness.core.link.protocol:Nothing",
    "nvme_tcp": "freezeframe.harness.core.link.nvme_tcp:NvmeLink",
}
"""The same as in pyproject.toml; a test compares them."""


def names() -> list[str]:
    """Names of all protocols that can be asked for."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def find(name: str) -> ProtocolMaker:
    """What makes protocol ``name``.

    UsageError: there is none, two packages give one, or it was made for another version of the
    seam. RigError: its module cannot be imported.
    """
    installed = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(installed) > 1:
        given = " and ".join(
            f"{one.value} ({one.dist.name if one.dist else '?'})" for one in installed.values()
        )
        raise UsageError(
            f"protocol {name!r} is registered twice: {given}; remove one of the packages"
        )
    if installed:
        point = next(iter(installed.values()))
    elif name in BUILT_IN:
        point = EntryPoint(name, BUILT_IN[name], GROUP)
    else:
        hint = did_you_mean(name, names())
        raise UsageError(f"protocol {name!r} not found{hint}; known: {', '.join(names())}")
    return _checked(name, point)


def console_texts(name: str) -> tuple[ConsoleText, ...]:
    """How consoles name places. A link that is not understood says nothing of its devices: then the
    usual ones' texts are looked for."""
    return find(USUAL if name == NONE else name)(LinkOptions()).console_texts


def _checked(name: str, point: EntryPoint) -> ProtocolMaker:
    try:
        loaded: Any = importlib.import_module(point.module)
    except Exception as error:  # whatever a third party's module raises, the link cannot be watched
        raise RigError(
            f"protocol {name!r}: importing {point.module} failed: {type(error).__name__}: {error}"
        ) from error
    for attribute in filter(None, point.attr.split(".")):
        if not hasattr(loaded, attribute):
            raise RigError(f"protocol {name!r}: {point.module} has no {point.attr}")
        loaded = getattr(loaded, attribute)
    if not callable(loaded):
        raise UsageError(f"protocol {name!r}: {point.value} is not a class")
    try:
        made: ReplicationProtocol = loaded(LinkOptions())
    except Exception as error:
        raise RigError(
            f"protocol {name!r}: its constructor raised {type(error).__name__}: {error}{where_raised(error)}; "
            "expected: a constructor (options: LinkOptions)"
        ) from error
    members = (one for one in vars(ReplicationProtocol) if not one.startswith("_"))
    missing = [one for one in members if not hasattr(made, one)]
    if missing:
        raise UsageError(f"protocol {name!r}: {point.value} has no {', '.join(missing)}")
    if made.api_version != API_VERSION:
        raise UsageError(
            f"protocol {name!r} was made for version {made.api_version} of the seam, this is "
            f"{API_VERSION}: install a version of its package that fits"
        )
    if name in BUILT_IN and point.value == BUILT_IN[name]:
        return loaded  # type: ignore[no-any-return]
    return lambda options: cast(ReplicationProtocol, GuardedProtocol(loaded(options), name))
