"""One incident's part of what the watchers report: which hits are kept and which are counted, what was
lost, and what is made of the folder once nobody writes into it any more."""

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import (
    SIDES,
    FrameFailed,
    FrameSent,
    LinkStats,
    Ns,
    Side,
    Trigger,
)
from freezeframe.harness.edge.capture_ring import join
from freezeframe.harness.edge.versions import versions
from freezeframe.harness.errors import HarnessError, RigError
from freezeframe.harness.incidents.basis import keep_basis
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import Outcome, naming_errors
from freezeframe.harness.runs.afterwards import recheck_consoles, time_warmstarts
from freezeframe.harness.runs.view import View
from freezeframe.harness.wire import control

MAX_HITS: Final = 1000
"""Of each rule on each side in one incident, this many are reported, kept and written; later ones are
counted."""


MAX_CONSOLE_BYTES: Final = 64 << 20
"""Of one console that waits for its trigger; twice that is kept. 1.5 hours at 115,200 baud without a
pause."""


class Recording:
    """An incident's folder while the watchers record into it."""

    def __init__(
        self, incident: Incident, view: View, on_loss: Callable[[str], None] | None = None
    ) -> None:
        """``on_loss`` takes, from any thread, why something cannot be recorded, once a reason; what
        is reported is kept in memory then. Without it a report raises RigError."""
        self.incident = incident
        self.triggers: list[Trigger] = []
        """Of each rule the first ones, and the one that is acted on."""
        self.moment: list[Trigger] = []
        """The newest hits, all of one time: the frames reported next went out for the one that says
        so."""
        self.causes: list[Trigger] = []
        """What was seen before anything was done: the trigger that was acted on, then those of the
        same moment."""
        self.troubles: list[str] = []
        """What was wrong with the bench when the frames went out."""
        self.lost_evidence: list[str] = []
        """What could no longer be recorded, and why: a full disk, a console whose line ended."""
        self.capture_of_trigger: tuple[Path, LinkStats | None] | None = None
        """The capture that holds what was acted on, and its counters, when its process has died since then."""
        self.is_rotated = False
        """Part of the console records was set aside, so they are not searched a second time."""
        self._hits: Counter[tuple[str, Side]] = Counter()
        """All of them, a rule and side."""
        self._view = view
        self._on_loss = on_loss
        incident.on_loss = self._lost_record if on_loss is not None else None
        incident.record.setdefault("canaries", {})

    def _lost_record(self, text: str) -> None:
        if text not in self.lost_evidence and self._on_loss is not None:
            self.lose(text)
            self._on_loss(text)

    def is_counted_only(self, trigger: Trigger, *, is_needed: bool) -> bool:
        """A rule that hits each line must fill neither memory nor disk nor the terminal.
        ``is_needed``: however many there were."""
        if self.moment and self.moment[0].t_match_ns != trigger.t_match_ns:
            self.moment.clear()
        self.moment.append(trigger)
        key = (trigger.rule, trigger.side)
        self._hits[key] += 1
        if self._hits[key] <= MAX_HITS:
            return False
        if self._hits[key] == MAX_HITS + 1:
            text = f"{trigger.rule}: {MAX_HITS} hits on the {trigger.side}; those that follow are only counted"
            self._view.phase(text)
            self.incident.note(text)
            self.incident.milestone()
        return not is_needed

    def keep(self, trigger: Trigger) -> None:
        self.triggers.append(trigger)
        self.incident.triggered(trigger)

    def struck_for(self) -> Trigger | None:
        """Frames are being reported: return the hit that they went out for, which the reflex has
        just reported, and note what was seen with it. None: the reflex named none."""
        self.causes = sorted(self.moment, key=lambda one: not one.is_cause)
        return next((one for one in self.causes if one.is_cause), None)

    def leave_out(self, trigger: Trigger) -> None:
        """That hit is wanted: whatever its moment led to, it was no cause of it."""
        self.moment = [one for one in self.moment if one is not trigger]

    def acts_on(self, trigger: Trigger, troubles: Sequence[str] = ()) -> None:
        """The frames went out for this one. ``troubles``: what was wrong with the bench then."""
        self.troubles = [f"at the trigger {one}" for one in troubles]
        if not any(one is trigger for one in self.triggers):
            self.keep(trigger)
            self._view.happened("reflex", trigger)
        self.incident.acts_on(trigger)

    def acted(self, sent: FrameSent | FrameFailed) -> str:
        """A frame went out, or could not. Returns what is said of it: that it was slow."""
        if slow := self.incident.acted(sent):
            self._view.phase(slow)
        return slow

    def canary(self, side: Side, outcome: Mapping[str, Any]) -> None:
        """A canary came in, or did not in time; ``outcome`` as in incident.json. After the frames one that
        does not come proves nothing: a controller that restarts prints none."""
        known, record = self.incident.record["canaries"], self.incident.record
        if outcome["seen"] or not record["actions"]:
            record["canaries"] = {**known, side: dict(outcome)}

    def end_canaries(self, asked: Mapping[str, Mapping[str, Any]]) -> None:
        """Of a side without any: say why. ``asked``: what became of the newest that were asked for."""
        for side in SIDES:
            if side not in self.incident.record["canaries"]:
                reason = asked.get(side, {}).get("reason") or "none came in before its end"
                outcome = {"seen": False, "reason": reason}
                self.incident.record["canaries"] |= {side: outcome}

    def count_lines(self, opened: OpenBench) -> None:
        """Keep what the serial drivers counted since the recording before was asked this."""
        counted = opened.count_line_errors()
        self.incident.record["line_errors"] = msgspec.to_builtins(counted)
        for name, one in counted.items():
            if one.losses:
                self.incident.note(f"{name}: its serial driver counted {one.losses}")

    def lose(self, text: str) -> None:
        self.lost_evidence.append(text)
        self.incident.note(text)

    def rotate(self, limit_bytes: int) -> list[Side]:
        """Set console records aside that have grown to the limit; the older ones of these sides are
        removed. Their writer goes on in the renamed files until it is asked for new ones. Returns
        whose were."""
        rotated: list[Side] = []
        for side in SIDES:
            log, times = self.incident.console_path(side), self.incident.console_times_path(side)
            with contextlib.suppress(OSError):
                if log.stat().st_size >= limit_bytes:
                    log.replace(log.with_name(f"{log.stem}.old{log.suffix}"))
                    times.replace(times.with_name(f"{times.stem}.old{times.suffix}"))
                    rotated.append(side)
        if rotated:
            self.is_rotated = True
            self.incident.note(
                f"{' and '.join(rotated)}: what the console said before is in console.old.log, at most "
                f"{limit_bytes >> 20} MiB; hits until then count from its begin"
            )
        return rotated

    def close(
        self,
        opened: OpenBench,
        throughout: Sequence[ConsoleRule],
        ever: Sequence[ConsoleRule],
        link: LinkStats | None,
    ) -> None:
        """Nobody writes into the folder any more: join the capture and search the consoles once
        more. ``throughout``, ``ever``: see recheck_consoles; ``link``: the capture's counters. From
        here on what cannot be recorded is a RigError: without it the incident cannot be closed."""
        self.incident.on_loss = None
        self._count_hits()
        try:
            join(self.incident.link_path)
        except RigError as error:
            self.lose(str(error))
        if self.capture_of_trigger is not None:
            self._judge_by_capture(self.capture_of_trigger[0])
        if self.is_rotated:
            throughout = ()
        for text in recheck_consoles(self.incident, throughout, ever, self.triggers):
            self.lose(text)
        time_warmstarts(self.incident, opened)
        if link is not None:
            names = (name for name in link.__struct_fields__ if name not in ("t_ns", "down"))
            self.incident.record["capture"] = {name: getattr(link, name) for name in names}

    def _judge_by_capture(self, path: Path) -> None:
        """The incident is judged by ``link.pcapng``: it is the capture that holds what was acted on; what
        was captured after its process had died is beside it."""
        whole = self.incident.link_path
        with naming_errors(whole):
            with contextlib.suppress(FileNotFoundError):
                whole.replace(whole.with_name("link.after-gap.pcapng"))
            path.replace(whole)

    def _count_hits(self) -> None:
        more = self._hits - Counter((one.rule, one.side) for one in self.triggers)
        counted: Counter[str] = Counter()
        for (rule, side), count in more.items():
            self.incident.note(
                f"{rule}: {count} more hits on the {side} than are listed here; they were only counted"
            )
            counted[rule] += count
        self.incident.record["counted_hits"] = dict(counted)


def new_recording(
    opened: OpenBench, out_dir: Path, view: View, incident_id: bytes = b"", *, scenario: str = "",
    on_loss: Callable[[str], None] | None = None,
) -> Recording:  # fmt: skip
    """Make the folder of the next incident of a watch. ``incident_id``: of one whose folder is
    gone; ``on_loss``: see Recording. UsageError, RigError: it cannot be made, and nothing of it is
    left."""
    bench = opened.bench
    incident = Incident.create(
        out_dir, bench=bench.name, bench_id=bench.id, pair_id=bench.pair_id, seed=0, scenario=scenario, versions=versions(),
        rules=[str(path) for path in bench.rule_paths()],
        incident_id=incident_id or secrets.token_bytes(control.INCIDENT_ID_BYTES),
    )  # fmt: skip
    try:
        keep_basis(incident, bench)
    except RigError:
        incident.discard()
        raise
    for note in opened.notes:
        incident.note(note)
    return Recording(incident, view, on_loss)


def not_made(out_dir: Path, error: HarnessError) -> str:
    """Return why ``new_recording`` failed without the new folder's name, which is another one each time:
    so the same trouble has the same words, and is reported once."""
    cause = error.__cause__
    why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    return f"{out_dir}: no folder of an incident can be made: {why}"


@dataclass
class ClosedRecording:
    """An incident that nobody records into any more, to be judged."""

    recording: Recording
    outcome: Outcome
    throughout: Sequence[ConsoleRule]
    ever: Sequence[ConsoleRule]
    link: LinkStats | None = None
    cut_ns: Ns = field(default_factory=time.monotonic_ns)
    awaited: set[str] = field(default_factory=set)
    """Watchers that have not answered ``Record`` yet."""

    @property
    def counted(self) -> LinkStats | None:
        """The counters of the capture that the incident is judged by."""
        kept = self.recording.capture_of_trigger
        return self.link if kept is None else kept[1]

    @property
    def is_worth_keeping(self) -> bool:
        """Something was seen, or lost."""
        return bool(self.recording.triggers or self.recording.lost_evidence)
