"""FreezeFrame: a hardware-in-the-loop test harness for pairs of replicating storage controllers.

The public names, stable within ``API_VERSION``, are here and in three modules:
``freezeframe.driver`` (write a driver), ``freezeframe.link`` (look at the replication link) and
``freezeframe.testing`` (check what you wrote). Everything else is private: it may change in any
release.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from freezeframe.fixtures.pair import Faults as Faults
    from freezeframe.fixtures.pair import Incidents as Incidents
    from freezeframe.fixtures.pair import Link as Link
    from freezeframe.fixtures.pair import Pair as Pair
    from freezeframe.harness.bench.benchfile import Bench as Bench
    from freezeframe.harness.bench.benchfile import FaultTable as FaultTable
    from freezeframe.harness.bench.benchfile import Scenario as Scenario
    from freezeframe.harness.bench.benchfile import load_bench as load_bench
    from freezeframe.harness.bench.benchfile import load_scenario as load_scenario
    from freezeframe.harness.errors import HarnessError as HarnessError
    from freezeframe.harness.errors import RigError as RigError
    from freezeframe.harness.errors import UsageError as UsageError
    from freezeframe.harness.errors import WireError as WireError

API_VERSION: Final = 1
"""Raised when a public name changes its meaning or goes away; a new name does not raise it."""

_PAIR: Final = "freezeframe.fixtures.pair"
_BENCH: Final = "freezeframe.harness.bench.benchfile"
_ERRORS: Final = "freezeframe.harness.errors"
_HOMES: Final = {
    "Bench": _BENCH,
    "FaultTable": _BENCH,
    "Faults": _PAIR,
    "HarnessError": _ERRORS,
    "Incidents": _PAIR,
    "Link": _PAIR,
    "Pair": _PAIR,
    "RigError": _ERRORS,
    "Scenario": _BENCH,
    "UsageError": _ERRORS,
    "WireError": _ERRORS,
    "load_bench": _BENCH,
    "load_scenario": _BENCH,
}
"""Where each public name lives. They are imported when used, because the pytest plugin loads this
package in every run."""

__all__ = ["API_VERSION", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'freezeframe' has no attribute {name!r}")
