"""Find drivers by name. A driver is loaded when a bench file names it; each failing step has
an error of its own.

A name is looked up in the entry-point group ``freezeframe.drivers`` of all installed packages,
then among the built-in drivers (so that a checkout without an installation works too). A driver is
a class, or a callable that returns an object, that implements one role of
``freezeframe.harness.roles``.
"""

import contextlib
import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from freezeframe.harness.core.link import byname
from freezeframe.harness.core.text import did_you_mean
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.promises.cases import Case

GROUP: Final = "freezeframe.drivers"
BUILT_IN: Final = {
    "blockdev": "freezeframe.drivers.hosts.blockdev:BlockDeviceHost",
    "fio": "freezeframe.drivers.hosts.fio:Fio",
    "image": "freezeframe.drivers.hosts.image:ImageHost",
    "linux_drbd": "freezeframe.drivers.controllers.linux_drbd:LinuxDrbd",
    "linux_drbd_break": "freezeframe.drivers.controllers.linux_drbd:LinuxDrbdBreak",
    "linux_nvme": "freezeframe.drivers.controllers.linux_nvme:LinuxNvme",
    "linux_nvme_break": "freezeframe.drivers.controllers.linux_nvme:LinuxNvmeBreak",
    "linux_nbd": "freezeframe.drivers.controllers.linux_nbd:LinuxNbd",
    "linux_nbd_break": "freezeframe.drivers.controllers.linux_nbd:LinuxNbdBreak",
    "sim_array": "freezeframe.drivers.controllers.sim_array:SimArray",
    "nbd": "freezeframe.drivers.hosts.nbd:NbdHost",
    "scpi_supply": "freezeframe.drivers.power.scpi_supply:ScpiSupply",
}
"""The same as in pyproject.toml; a test compares them."""


def names() -> list[str]:
    """Return the names of all available drivers."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def names_of(role: type) -> list[str]:
    """Return the names of those that can be loaded and implement ``role``."""
    found = []
    for name in names():
        with contextlib.suppress(HarnessError):
            load(name, role)
            found.append(name)
    return found


def find(name: str) -> EntryPoint:
    """Return the location of driver ``name`` without loading it. Raises UsageError: not found, or
    provided by two packages."""
    installed = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(installed) > 1:
        given = " and ".join(
            f"{one.value} ({one.dist.name if one.dist else '?'})" for one in installed.values()
        )
        raise UsageError(
            f"driver {name!r} is registered twice: {given}; remove one of the packages"
        )
    if installed:
        return next(iter(installed.values()))
    if name in BUILT_IN:
        return EntryPoint(name, BUILT_IN[name], GROUP)
    hint = did_you_mean(name, names())
    raise UsageError(f"driver {name!r} not found{hint}; known drivers: {', '.join(names())}")


def load(name: str, role: type) -> Callable[..., Any]:
    """Load the class of driver ``name``, which must implement ``role`` (a Protocol of
    ``freezeframe.harness.roles``).

    Raises UsageError: not found, or another role. RigError: its module cannot be imported.
    """
    point = find(name)
    try:
        module = importlib.import_module(point.module)
    except Exception as error:  # a third-party module may raise anything; the bench cannot be used
        raise RigError(
            f"driver {name!r}: importing {point.module} failed: {type(error).__name__}: {error}"
        ) from error
    loaded: Any = module
    for attribute in filter(None, point.attr.split(".")):
        if not hasattr(loaded, attribute):
            raise RigError(f"driver {name!r}: {point.module} has no {point.attr}")
        loaded = getattr(loaded, attribute)
    if isinstance(loaded, type):
        missing = [
            method for method in methods(role) if not callable(getattr(loaded, method, None))
        ]
        if missing:
            raise UsageError(
                f"driver {name!r} does not implement the role {role.__name__}: {point.value} has no "
                f"{', '.join(f'{method}()' for method in missing)}"
            )
    elif not callable(loaded):
        raise UsageError(f"driver {name!r}: {point.value} is not a class")
    return loaded  # type: ignore[no-any-return]


CASES: Final = "freezeframe.cases"
"""Entry points: name of a driver or protocol -> a function that returns what ``driver check`` is given."""


def cases(name: str) -> list[Case]:
    """What the package of ``name`` gives to be checked. UsageError: it gives nothing; RigError: it
    fails to."""
    found = list(entry_points(group=CASES, name=name))
    if not found:
        if name not in names() and name not in byname.names():
            find(name)  # says what is known
        raise UsageError(
            f"{name!r}: its package registers nothing in the entry-point group {CASES}: give --bench FILE to "
            "check it on real devices, or register a function that returns cases (docs/drivers.md)"
        )
    try:
        made = found[0].load()()
    except Exception as error:  # a third-party module may raise anything
        raise RigError(
            f"{name!r}: {found[0].value} raised {type(error).__name__}: {error}; expected: a list of cases"
        ) from error
    if not isinstance(made, list) or not all(isinstance(one, Case) for one in made):
        raise RigError(
            f"{name!r}: {found[0].value} returned {made!r:.200}; expected: a list of cases"
        )
    return made


def methods(role: type) -> list[str]:
    """Return the names of the methods that a role requires."""
    return [
        name for name, value in vars(role).items() if callable(value) and not name.startswith("_")
    ]
