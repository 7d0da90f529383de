"""The policy of a bench under watch: when it is armed, with what, and what is said about it."""

from freezeframe.harness.core.policy.guard import Guard, Limits, Rung
from freezeframe.harness.core.policy.health import Health, HealthStatus
from freezeframe.harness.core.policy.machine import Machine
from freezeframe.harness.core.policy.settings import Settings

__all__ = ["Guard", "Health", "Limits", "Machine", "Rung", "Settings", "HealthStatus"]
