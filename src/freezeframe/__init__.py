"""FreezeFrame: a hardware-in-the-loop test harness for pairs of replicating storage controllers.

The public names, stable within ``API_VERSION``, are here and in three modules:
``freezeframe.driver`` (write a driver), ``freezeframe.link`` (look at the replication link) and
``freezeframe.testing`` (check what you wrote). Everything else is private: it may change in any
release.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from freezeframe.harness.bench.benchfile import Bench as Bench
    from freezeframe.harness.bench.benchfile import FaultTable as FaultTable
    from freezeframe.harness.bench.benchfile import Scenario as Scenario
    from freezeframe.harness.bench.benchfile import load_bench as load_bench

API_VERSION: Final = 1
"""Raised when a public name changes its meaning or goes away; a new name does not raise it."""

_HOMES: Final = {
    "Bench": "freezeframe.harness.bench.benchfile",
    "FaultTable": "freezeframe.harness.bench.benchfile",
    "Scenario": "freezeframe.harness.bench.benchfile",
    "load_bench": "freezeframe.harness.bench.benchfile",
}
"""Where each public name lives. They are imported when used, because the pytest plugin loads this
package in every run."""

__all__ = ["API_VERSION", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'freezeframe' has no attribute {name!r}")
