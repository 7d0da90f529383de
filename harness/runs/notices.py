"""What is reported to people who do not look at the screen: the notice, and which health is worth one. Pure."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from freezeframe.harness.bench.notifytable import Occasion
from freezeframe.harness.core.events import NS_PER_S, Ns
from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.clock import utc_now

FORMAT: Final = 1
MAX_CHARS: Final = 1000
"""Of one text in a notice."""
MAX_REASONS: Final = 16
REPEAT_NS: Final = 600 * NS_PER_S
"""Another reason for the same health is reported at most so often."""


class NoticedIncident(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    folder: str
    """Absolute path on the machine."""
    outcome: str
    rule: str
    """Of the trigger; "" when nothing triggered."""
    side: str
    reasons: list[str]


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One notice; docs/watch.md describes its JSON."""

    format: int = FORMAT
    event: Occasion
    utc: str
    machine: str
    bench: str
    text: str
    """What happened, in one sentence."""
    health: str
    """Of the bench, when the notice was made: armed, degraded ..."""
    why: str
    """Its reason; "" while the bench is armed."""
    incident: NoticedIncident | None = None

    def as_json(self) -> bytes:
        return msgspec.json.encode(self)


def occasion_of(status: HealthStatus) -> Occasion:
    """Return what a health is reported as."""
    if status.is_breaker_open:
        return "breaker-open"
    match status.health:
        case Health.ARMED | Health.UNREHEARSED:
            return "armed"
        case Health.DEGRADED:
            return "degraded"
        case Health.BLIND:
            return "blind"
        case Health.DISARMED:
            return "disarmed"


class HealthNews:
    """Which of the changes of a health are reported: those that last. A bench is disarmed for
    seconds while an incident is collected, and a line may go and come; nobody is woken for that.
    ``armed`` is reported after something else was."""

    def __init__(self, settle_ns: Ns, repeat_ns: Ns = REPEAT_NS) -> None:
        self._settle_ns, self._repeat_ns = settle_ns, repeat_ns
        self.status: HealthStatus | None = None
        """The present one."""
        self._since_ns: Ns = 0
        """Since when it is the same occasion."""
        self._reported: HealthStatus | None = None
        self._reported_ns: Ns = 0

    def change(self, status: HealthStatus, now: Ns) -> None:
        if self.status is None or occasion_of(self.status) != occasion_of(status):
            self._since_ns = now
        self.status = status

    def due_ns(self) -> Ns | None:
        """When the present health is to be reported; None: it is not, unless it changes."""
        if self.status is None:
            return None
        settled_ns = self._since_ns + self._settle_ns
        occasion = occasion_of(self.status)
        if self._reported is None:
            return None if occasion == "armed" else settled_ns
        if occasion != occasion_of(self._reported):
            return settled_ns
        if occasion == "armed" or self.status.why == self._reported.why:
            return None
        return max(settled_ns, self._reported_ns + self._repeat_ns)

    def take(self, now: Ns) -> HealthStatus | None:
        """Return what is to be reported now."""
        due_ns = self.due_ns()
        if due_ns is None or now < due_ns:
            return None
        self._reported, self._reported_ns = self.status, now
        return self.status


def health_notice(bench: str, status: HealthStatus) -> Notice:
    return _notice(bench, occasion_of(status), f"the bench {bench} is {status}", status)


def incident_notice(
    bench: str,
    status: HealthStatus | None,
    *,
    folder: Path,
    outcome: str,
    trigger: Mapping[str, Any] | None,
    reasons: Sequence[str],
) -> Notice:
    """``trigger``: as in incident.json."""
    found = trigger or {}
    rule, side = str(found.get("rule", "")), str(found.get("side", ""))
    what = f"{rule} on the {side}" if rule else "; ".join(reasons[:1]) or "no trigger"
    incident = NoticedIncident(
        id=folder.name, folder=str(folder), outcome=outcome, rule=_plain(rule), side=side,
        reasons=[_plain(one) for one in reasons[:MAX_REASONS]],
    )  # fmt: skip
    text = f"incident {folder.name} of the bench {bench}: {outcome}: {what}"
    return _notice(bench, "incident", text, status, incident)


def _notice(
    bench: str,
    event: Occasion,
    text: str,
    status: HealthStatus | None,
    incident: NoticedIncident | None = None,
) -> Notice:
    return Notice(
        event=event, utc=utc_now(), machine=socket.gethostname(), bench=bench, text=_plain(text),
        health=status.health.value if status is not None else "",
        why=_plain(status.why) if status is not None else "", incident=incident,
    )  # fmt: skip


def _plain(text: str) -> str:
    shown = escape(text)
    return shown if len(shown) <= MAX_CHARS else shown[: MAX_CHARS - 3] + "..."
