"""Public: checks of what you wrote against the role that it plays. Free of pytest.

Each ``check_...`` function returns nothing when all is well and raises ``ConformanceError`` (an
AssertionError) at the first statement of the role that does not hold. They use the real device: each
says what it changes. ``freezeframe driver check NAME`` runs them on the cases that a package
registers in the entry-point group ``freezeframe.cases``: a function without arguments that returns a
list of ``ControllerCase``, ``HostCase``, ``LinkCase`` and ``PowerCase``.
"""

from freezeframe.harness.core.link.check import ExpectedOnLink, check_protocol
from freezeframe.harness.core.link.conversation import conversation
from freezeframe.harness.promises.cases import (
    Case,
    ControllerCase,
    HostCase,
    LinkCase,
    PowerCase,
    check_case,
)
from freezeframe.harness.promises.controllers import check_break_in, check_controller
from freezeframe.harness.promises.kit import (
    ConformanceError,
    check_host_port,
    check_power_rail,
)

__all__ = [
    "Case", "ConformanceError", "ControllerCase", "ExpectedOnLink", "HostCase", "LinkCase", "PowerCase",
    "check_break_in", "check_case", "check_controller", "check_host_port", "check_power_rail", "check_protocol",
    "conversation",
]  # fmt: skip
