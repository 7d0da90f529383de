"""The incident folder: all that one trigger led to, written so that a killed run leaves a readable
one.

    OUT/20260102T030405Z-1a2b3c4d/     UTC start, first 8 hex digits of the incident's 16-byte id
        incident.json                  replaced whole at each milestone: always valid, never half
        timeline.jsonl                 appended row by row
        link.pcapng                    written by linkwatch
        bench.toml  rules/             copies of the files that the run was made by, without secrets
        host.journal                   the host's writes: each intent and acknowledgement, written by the writer
        host.results.json              instead of it, of a workload without a journal: its own counters
        primary/  secondary/           console.log and console.times, written by the reflex;
                                       set.zst, the root cause data set as pulled, appended as it arrives;
                                       state.json and events.log, made from it;
                                       healthy.cbor, the state record when the bench was armed;
                                       save.zst, the set saved before a redrive;
                                       block.bin, the failing block as that side holds it
        SHA256SUMS                     at the close; `sha256sum -c SHA256SUMS` passes
        .lock                          held (flock) while the run lives; gone after the close

No name of a file comes from a device. All errors of the file system become RigError, which names
the path.
"""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import cbor2

from freezeframe.harness.core import timeline
from freezeframe.harness.core.events import SIDES, Event, FrameFailed, FrameSent, Ns, Side, Trigger
from freezeframe.harness.core.rootcause import StateRecord, event_line, plain
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.core.verdict.assurance import slow_reaction
from freezeframe.harness.core.verdict.record import FORMAT
from freezeframe.harness.edge.clock import read_wall_clock
from freezeframe.harness.edge.wholefile import make_folder, replace_synced
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.store import (
    CONSOLE,
    EVENTS,
    HEALTHY,
    LINK,
    LOCK,
    OPEN,
    OUTCOMES,
    RECORD,
    SAVE,
    SET,
    STATE,
    SUMS,
    TIMELINE,
    TIMES,
    Outcome,
    StoredIncident,
    naming_errors,
    sha256_of,
)
from freezeframe.harness.roles import Reply, RootCauseSet

Json = dict[str, Any]
"""An object of incident.json while it is being written."""
M = TypeVar("M", bound=Callable[..., Any])
INCIDENT_ID_BYTES: Final = 16
MAX_LINE_BYTES: Final = 1024
"""Of a trigger's line before and behind the match."""
MAX_LISTED: Final = 1000
"""As many triggers, actions, steps and notes are kept in incident.json; the timeline has all that
were reported."""


def _serialised(method: M) -> M:
    """The supervisor and the collector write in threads of their own: one at a time."""

    @functools.wraps(method)
    def locked(self: "Incident", *args: Any, **kwargs: Any) -> Any:
        with self._mutex:
            if self._is_closed:
                raise RigError(f"{self.path}: the incident is closed")
            return method(self, *args, **kwargs)

    return cast(M, locked)


class Incident:
    """An incident being written, by one process; its methods may be called from any thread."""

    def __init__(self, path: Path, incident_id: bytes, record: Json, lock_fd: int) -> None:
        self.path = path
        self.incident_id = incident_id
        self.record = record
        """What incident.json will hold at the next milestone."""
        self.on_loss: Callable[[str], None] | None = None
        """What to do, from any thread, with the reason why the timeline or incident.json cannot be
        written; whoever reports goes on. None: that is the reporter's RigError."""
        self._lock_fd = lock_fd
        self._mutex = threading.RLock()
        self._is_closed = False
        with naming_errors(path / TIMELINE):
            self._timeline_fd = os.open(
                path / TIMELINE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
        self._timeline_bytes = os.fstat(self._timeline_fd).st_size

    @classmethod
    def create(
        cls,
        out_dir: Path,
        *,
        bench: str,
        seed: int,
        scenario: str = "",
        versions: Mapping[str, object] | None = None,
        rules: Sequence[str] = (),
        incident_id: bytes | None = None,
        **fields: Any,
    ) -> "Incident":
        """Make the folder; from here on a killed run leaves an incident. ``fields`` go to
        incident.json."""
        incident_id = incident_id or secrets.token_bytes(INCIDENT_ID_BYTES)
        clock = read_wall_clock()
        started = datetime.fromtimestamp(clock.wall_ns / 1e9, UTC)
        path = Path(out_dir) / f"{started:%Y%m%dT%H%M%SZ}-{incident_id.hex()[:8]}"
        make_folder(Path(out_dir))
        with naming_errors(path):
            path.mkdir()
        record: Json = {
            "id": path.name,
            "incident_id_hex": incident_id.hex(),
            "format": FORMAT,
            "outcome": OPEN,
            "created": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "clock": asdict(clock),
            "bench": bench,
            "scenario": scenario,
            "seed": seed,
            "rules": list(rules),
            "versions": dict(versions or {}),
            "trigger": None,
            "more_triggers": [],
            "actions": [],
            "sets": {},
            "recovery": [],
            "data_equal": None,
            "lost_acked_writes": None,
            "capture": {},
            "workload": {},
            "notes": [],
            **fields,
        }
        with contextlib.ExitStack() as undo:  # whoever tries again leaves nothing of each time
            undo.callback(shutil.rmtree, path, ignore_errors=True)
            with naming_errors(path):
                lock_fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                undo.callback(os.close, lock_fd)
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for side in SIDES:
                    (path / side).mkdir()
            incident = cls(path, incident_id, record, lock_fd)
            undo.callback(os.close, incident._timeline_fd)
            incident.milestone()
            undo.pop_all()
        return incident

    @staticmethod
    def open(path: Path) -> "StoredIncident":
        """Read an incident, whole or not. UsageError when there is none at ``path``."""
        return StoredIncident.open(path)

    # --- paths for the processes that write their part themselves -----------------------------------------
    @property
    def link_path(self) -> Path:
        return self.path / LINK

    def console_path(self, side: Side) -> Path:
        return self.path / side / CONSOLE

    def console_times_path(self, side: Side) -> Path:
        return self.path / side / TIMES

    def set_path(self, side: Side) -> Path:
        return self.path / side / SET

    # --- what happens -------------------------------------------------------------------------------------
    @_serialised
    def append(self, row: Row) -> None:
        """One more row of the timeline; it is in the file when this returns, unless ``on_loss`` has
        been called."""
        line = json.dumps(row, separators=(",", ":"), default=plain).encode() + b"\n"
        with self._losing(), naming_errors(self.path / TIMELINE):
            try:
                _write_all(self._timeline_fd, line)
            except OSError:
                os.ftruncate(
                    self._timeline_fd, self._timeline_bytes
                )  # a full disk leaves no half row
                raise
            self._timeline_bytes += len(line)

    def append_event(self, event: Event, source: str) -> None:
        self.append(timeline.row_of(event, source))

    @_serialised
    def update(self, **fields: Any) -> None:
        """Set keys of incident.json and write it."""
        self.record |= fields
        self.milestone()

    @_serialised
    def note(self, text: str) -> None:
        """A sentence for whoever reads the incident: what could not be had, what is missing and
        why."""
        self._keep("notes", escape(text))

    @_serialised
    def step(self, t_ns: Ns, side: Side | str, step: str, detail: str = "") -> None:
        """A step of the recovery, into the timeline and (with the next milestone) into
        incident.json."""
        self._keep("recovery", {"t_ns": t_ns, "side": side, "step": step, "detail": escape(detail)})
        self.append(timeline.row(t_ns, "recovery", step, side, text=detail))

    @_serialised
    def triggered(self, trigger: Trigger) -> None:
        """The first trigger is the incident's, unless another is acted on; those after it are in
        the timeline at once, and listed in incident.json from the next milestone on: there may be
        many, and each milestone waits for the disk."""
        entry, is_first = _trigger_record(trigger), self.record["trigger"] is None
        if is_first:
            self.record["trigger"] = entry
        else:
            self._keep("more_triggers", entry)
        self.append_event(trigger, "reflex")
        if is_first:
            self.milestone()

    @_serialised
    def acts_on(self, trigger: Trigger) -> None:
        """``trigger``, reported before, is the one whose frames go out: the incident is its."""
        entry, first = _trigger_record(trigger), self.record["trigger"]
        if entry != first:
            self.record["trigger"] = entry
            others = [first, *(one for one in self.record["more_triggers"] if one != entry)]
            self.record["more_triggers"] = others[:MAX_LISTED]
            self.milestone()

    @_serialised
    def acted(self, sent: FrameSent | FrameFailed, source: str = "reflex") -> str:
        """A control frame went out, or could not. The first that did completes the trigger's
        timing. Returns what is to be reported of it: that it was slow."""
        slow = ""
        action: Json = {"side": sent.side, "t_frame_ns": sent.t_ns, "reply": None}
        if isinstance(sent, FrameSent):
            action |= {
                "seq": sent.seq,
                "t_frame_done_ns": sent.t_done_ns,
                "frame_hex": sent.frame.hex(),
            }
            trigger = self.record["trigger"]
            if trigger is not None and "t_frame_ns" not in trigger:
                trigger["t_frame_ns"] = sent.t_ns
                trigger["t_frame_done_ns"] = sent.t_done_ns
                trigger["reaction_us"] = (sent.t_done_ns - trigger["t_arrival_ns"]) / 1000
                budget_us = self.record.get("judged_by", {}).get("reaction_budget_us")
                slow = slow_reaction(trigger["source"], trigger["reaction_us"], budget_us)
        else:
            action["error"] = escape(sent.error)
        self._keep("actions", action)
        if slow:
            self._keep("notes", slow)
        self.append_event(sent, source)
        self.milestone()
        return slow

    @_serialised
    def replied(self, side: Side, reply: Reply | None, now: Ns) -> None:
        """The answer of ``side`` to the newest frame to it; None when none came in time."""
        entry: Json = {"ok": False, "status": "no answer", "t_ack_ns": None}
        if reply is not None:
            entry = {
                "ok": reply.ok,
                "status": escape(reply.status),
                "text": escape(reply.text),
                "set_id": reply.set_id,
                "boot_epoch": reply.boot_epoch,
                "events_logged": reply.events_logged,
                "uptime_ns": reply.uptime_ns,
                "t_ack_ns": reply.t_received_ns,
            }
            trigger = self.record["trigger"]
            if trigger is not None:
                trigger.setdefault("t_ack_ns", reply.t_received_ns)
        for action in reversed(self.record["actions"]):
            if action["side"] == side:
                action["reply"] = entry
                break
        self.append(
            timeline.row(now, "recovery", "reply", side, status=entry["status"], ok=entry["ok"])
        )
        self.milestone()

    # --- root cause data sets -----------------------------------------------------------------------------
    def received_set(self, side: Side) -> bytes:
        """What has arrived of the set so far: a pull goes on behind it."""
        path = self.set_path(side)
        with naming_errors(path):
            return path.read_bytes() if path.exists() else b""

    @_serialised
    def append_set(self, side: Side, data: bytes) -> None:
        """More of the set as it comes; in the file when this returns."""
        path = self.set_path(side)
        with naming_errors(path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _write_all(fd, data)
            finally:
                os.close(fd)
        self.record["sets"].setdefault(side, {"complete": False, "path": f"{side}/{SET}"})[
            "bytes"
        ] = path.stat().st_size

    @_serialised
    def set_aside(self, side: Side) -> None:
        """What arrived is damaged: keep it beside, and start the set anew."""
        path = self.set_path(side)
        with naming_errors(path):
            number = len(list(path.parent.glob("set.damaged-*.zst"))) + 1
            path.rename(path.with_name(f"set.damaged-{number}.zst"))
        self.record["sets"].pop(side, None)
        self.note(
            f"{side}: a damaged set was kept as {side}/set.damaged-{number}.zst and pulled again"
        )

    @_serialised
    def store_set(self, side: Side, pulled: RootCauseSet) -> None:
        """The set arrived whole: write what a person reads of it."""
        document = {"header": dict(pulled.header), "state": dict(pulled.state)}
        _replace(
            self.path / side / STATE,
            json.dumps(document, indent=1, default=plain).encode() + b"\n",
        )
        _replace(self.path / side / EVENTS, b"".join(event_line(event) for event in pulled.events))
        self._close_set(side, complete=True, events=len(pulled.events))

    @_serialised
    def store_save(self, side: Side, data: bytes) -> None:
        """The set that was saved before a redrive, beside the one of the warmstart."""
        _replace(self.path / side / SAVE, data)

    @_serialised
    def store_healthy(self, side: Side, state: StateRecord) -> None:
        """The side's state record while all was well, to hold the one of its failure against."""
        _replace(self.path / side / HEALTHY, cbor2.dumps(dict(state)))

    @_serialised
    def store_copy(self, name: str, data: bytes) -> None:
        """A copy of a file that the run was made by; ``name``: below the folder."""
        path = self.path / name
        with naming_errors(path):
            path.parent.mkdir(exist_ok=True)
        _replace(path, data)

    @_serialised
    def missing_set(self, side: Side, reason: str) -> None:
        """The set did not arrive, or not whole: say why."""
        self._close_set(side, complete=False, reason=escape(reason))

    def _close_set(self, side: Side, *, complete: bool, **fields: Any) -> None:
        path = self.set_path(side)
        with naming_errors(path):
            there = path.exists()
            self.record["sets"][side] = {
                "bytes": path.stat().st_size if there else 0,
                "sha256": sha256_of(path) if there else "",
                "complete": complete,
                "path": f"{side}/{SET}" if there else "",
                **fields,
            }
        self.milestone()

    # --- milestones and the end ---------------------------------------------------------------------------
    @_serialised
    def milestone(self) -> None:
        """Replace incident.json: a reader, and a crash, see the old one or the new one, or still the
        old one when ``on_loss`` has been called."""
        with self._losing():
            self._write_record()

    def _write_record(self) -> None:
        data = json.dumps(self.record, indent=1, default=plain).encode() + b"\n"
        _replace(self.path / RECORD, data)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """What is recorded here may get lost, if somebody wants to know."""
        try:
            yield
        except RigError as error:
            if self.on_loss is None:
                raise
            self.on_loss(str(error))

    @_serialised
    def finish(self, outcome: Outcome, **fields: Any) -> None:
        """Close the incident: nothing in the folder may change any more, so all writers have ended
        by now."""
        assert outcome in OUTCOMES
        self.record |= fields
        self.record["outcome"] = outcome
        self._complete_line()
        with naming_errors(self.path / TIMELINE):
            os.fsync(self._timeline_fd)
        self._write_record()
        with naming_errors(self.path / SUMS):
            files = sorted(
                one
                for one in self.path.rglob("*")
                if one.is_file() and one.name not in (SUMS, LOCK)
            )
            lines = [f"{sha256_of(one)}  {one.relative_to(self.path)}\n" for one in files]
        _replace(self.path / SUMS, "".join(lines).encode())
        with naming_errors(self.path):
            (self.path / LOCK).unlink(missing_ok=True)
        self._release()

    @_serialised
    def discard(self) -> None:
        """Remove the folder: the run was clean, there is no incident."""
        with naming_errors(self.path):
            shutil.rmtree(self.path)
        self._release()

    @_serialised
    def leave(self) -> None:
        """Write no more, and leave it open."""
        self._release()

    def _complete_line(self) -> None:
        """A trigger on a console is reported at its last byte; the rest of its line is known
        only now."""
        trigger = self.record["trigger"]
        if trigger is None or trigger["source"] != "console":
            return
        end = trigger["offset_bytes"]
        with contextlib.suppress(OSError), self.console_path(trigger["side"]).open("rb") as log:
            log.seek(max(0, end - MAX_LINE_BYTES))
            before, behind = log.read(min(end, MAX_LINE_BYTES)), log.read(MAX_LINE_BYTES)
            line = before.rpartition(b"\n")[2] + behind.partition(b"\n")[0]
            trigger["line"] = escape(line.rstrip(b"\r"))

    def _release(self) -> None:
        self._is_closed = True
        os.close(self._timeline_fd)
        os.close(self._lock_fd)

    def _keep(self, name: str, value: Any) -> None:
        if len(self.record[name]) < MAX_LISTED:
            self.record[name].append(value)


def _trigger_record(trigger: Trigger) -> Json:
    return {
        "rule": trigger.rule,
        "source": trigger.source,
        "side": trigger.side,
        "offset_bytes": trigger.offset_bytes,
        "excerpt_hex": trigger.excerpt.hex(),
        "excerpt": escape(trigger.excerpt),
        "detail": escape(trigger.detail),
        "sector": trigger.sector,
        "block_id": escape(trigger.block_id),
        "instruct": list(trigger.instruct),
        "t_arrival_ns": trigger.t_arrival_ns,
        "t_match_ns": trigger.t_match_ns,
    }


def _replace(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all, also over a power cut."""
    with naming_errors(path):
        replace_synced(path, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
