"""Captures and logs that somebody has, without a bench -> an incident, judged like any other.

The capture is written in the incident's own form (Ethernet, nanoseconds, plain); frame numbers stay
those of the file when there is one. Several captures are taps of one link (``core.link.taps``).
All times of an imported incident are CLOCK_REALTIME. What is wrong with a file is a UsageError,
which leaves no folder behind.
"""

from __future__ import annotations

import ipaddress
import platform
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.core.console.logtimes import LogTimes, read_times
from freezeframe.harness.core.console.rules import RuleSet
from freezeframe.harness.core.events import READ_TIME, SIDES, Ns, Side, Trigger
from freezeframe.harness.core.link import byname, taps
from freezeframe.harness.core.link.addresses import canonical
from freezeframe.harness.core.link.linkview import LinkEnds, LinkView
from freezeframe.harness.core.link.protocol import LinkOptions, Tell
from freezeframe.harness.core.link.sighting import Sighting
from freezeframe.harness.core.link.skim import Run, blocks, encode
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.assurance import left_out
from freezeframe.harness.core.verdict.record import IMPORT_BENCH
from freezeframe.harness.edge.evidencefile import CaptureInput, read_log
from freezeframe.harness.edge.pcapng import PcapngWriter, run_frames
from freezeframe.harness.edge.versions import versions
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents import importjudge
from freezeframe.harness.incidents.basis import keep_rules
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.inquest import plain, verdict_of
from freezeframe.harness.incidents.record import read_record
from freezeframe.harness.incidents.store import Outcome, StoredIncident

USUAL_RULES: Final = ("drbd.toml", "drbd_link.toml", "node-died.toml")
"""Of those that come with FreezeFrame: what they look for is wrong on any pair."""
RULES_OF: Final = {
    "nvme_tcp": ("nvme.toml", "md.toml", "nvme_link.toml", "node-died.toml"),
    "nbd": ("nbd.toml", "md.toml", "nbd_link.toml", "node-died.toml"),
}
"""Protocol -> those in their place: some events are of one protocol only, such as a ghost write."""
MAX_LINKS: Final = 16
MAX_PORTS: Final = 16
MAX_NAME_CHARS: Final = 200
_RUN_FRAMES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Given:
    """What somebody has."""

    links: tuple[Path, ...] = ()
    """Taps of one link."""
    primary_console: Path | None = None
    secondary_console: Path | None = None
    ports: tuple[int, ...] = ()
    """TCP service ports of the replication; empty: the protocol's own."""
    primary_address: str = ""
    secondary_address: str = ""
    protocol: str = byname.USUAL

    @property
    def consoles(self) -> dict[Side, Path]:
        """Those that there are."""
        both: dict[Side, Path | None] = {
            "primary": self.primary_console,
            "secondary": self.secondary_console,
        }
        return {side: path for side, path in both.items() if path is not None}

    def checked(self) -> Given:
        """With the ports in it. UsageError: what no import can be made of."""
        if not self.links and not self.consoles:
            raise UsageError("import: nothing to import: give --link, or a console")
        if len(self.links) > MAX_LINKS:
            raise UsageError(f"import: {len(self.links)} captures, at most {MAX_LINKS}")
        for side in SIDES:
            address = getattr(self, f"{side}_address")
            if address and not _is_address(address):
                raise UsageError(f"import: --{side}-address {address!r} is no IP address")
        both = canonical(self.primary_address), canonical(self.secondary_address)
        if both[0] and both[0] == both[1]:
            raise UsageError(f"import: both addresses are {both[0]}")
        usual = byname.find(self.protocol)(LinkOptions()).ports
        ports = tuple(dict.fromkeys(self.ports or usual))
        wrong = [port for port in ports if not 1 <= port <= 65535]
        if wrong or len(ports) > MAX_PORTS:
            raise UsageError(f"import: --port: at most {MAX_PORTS} numbers from 1 to 65535")
        return replace(self, ports=ports)

    @property
    def ends(self) -> LinkEnds:
        return LinkEnds(
            protocol=self.protocol,
            primary_address=canonical(self.primary_address),
            secondary_address=canonical(self.secondary_address),
            ports=frozenset(self.ports),
        )


def usual_rules(protocol: str = byname.USUAL) -> list[Path]:
    """The rule files that evidence of that protocol is judged by when nobody names others."""
    folder = builtin_folder() / "rules"
    return [
        path for name in RULES_OF.get(protocol, USUAL_RULES) if (path := folder / name).is_file()
    ]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class TapReport:
    """One capture as it was read."""

    path: Path
    frames: int
    problem: str = ""
    skew: taps.Skew | None = None
    """Against the first."""
    differing: int = 0
    """In all: segments that other taps saw with other data."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What came of it."""

    path: Path
    """The incident's folder."""
    outcome: Outcome
    hits: tuple[importjudge.ImportHit, ...]
    taps: tuple[TapReport, ...]
    writes: int
    answers: int
    digests_checked: int
    blind: tuple[str, ...]
    notes: tuple[str, ...]
    verdict: Mapping[str, object]
    """As incident.json has it."""


def import_evidence(
    given: Given, rules: RuleSet, out_dir: Path, *, rule_files: Sequence[Path] = ()
) -> Imported:
    """``rule_files``: where ``rules`` were read from, to be kept with the incident.

    UsageError: a file cannot be read, or an argument is wrong. RigError: the incident cannot be
    written.
    """
    given = given.checked()
    captures = [CaptureInput(path) for path in given.links]
    logs = {side: read_log(path) for side, path in given.consoles.items()}
    first_ns = _first_time(captures)
    timed = {side: read_times(data, first_ns) for side, (data, _) in logs.items()}
    walls = [one.starts[0][0] for one in timed.values() if one.scale == "wall" and one.starts]
    begin_ns = min([*walls, *([first_ns] if captures else [])], default=0)
    clock = {"wall_ns": begin_ns, "monotonic_ns": begin_ns, "error_ns": 0}
    incident = Incident.create(
        out_dir, bench=IMPORT_BENCH, seed=0, scenario="import", versions=versions(),
        rules=[*(one.name for one in rules.console), *(one.name for one in rules.link)],
        clock=clock, clock_end=clock,
        link={
            "primary_address": given.primary_address, "secondary_address": given.secondary_address,
            "protocol": given.protocol, "ports": list(given.ports), "integrity_alg": "",
        },
    )  # fmt: skip
    try:
        keep_rules(incident, rule_files)
        return _Import(given, rules, incident, captures, logs, timed).finish()
    except BaseException:
        incident.discard()
        raise


def _first_time(captures: Sequence[CaptureInput]) -> Ns:
    """Of the first frame that has a time; reads only as far as that."""
    for one in captures:
        for run in one.runs():
            if run.t_first_ns:
                return run.t_first_ns
    return 0


class _Import:
    """One import, once its files can be opened."""

    def __init__(
        self,
        given: Given,
        rules: RuleSet,
        incident: Incident,
        captures: list[CaptureInput],
        logs: Mapping[Side, tuple[bytes, str]],
        timed: Mapping[Side, LogTimes],
    ) -> None:
        self._given, self._rules, self._incident = given, rules, incident
        self._captures, self._logs, self._timed = captures, logs, timed
        self._sighting = Sighting(frozenset(given.ports))
        self._source_of: tuple[array[int], array[int]] | None = None
        """With several taps: tap and frame number there, of each frame."""
        self._notes: list[str] = []
        self._blind: list[str] = []

    def finish(self) -> Imported:
        tap_reports = self._write_capture() if self._captures else ()
        view, hits = self._judge_link() if self._captures else (None, [])
        hits += self._judge_consoles(hits)
        hits.sort(key=lambda one: one.t_match_ns)
        for note in self._notes:
            self._incident.note(note)
        kept = importjudge.bounded(hits)
        for one in kept:
            self._incident.triggered(one)
        counted = Counter(one.rule for one in hits) - Counter(one.rule for one in kept)
        self._incident.record["counted_hits"] = dict(counted)
        stats = self._tell_capture(view)
        verdict = plain(verdict_of(StoredIncident.open(self._incident.path)))
        outcome: Outcome = "fail" if hits else "inconclusive" if self._blind else "pass"
        reasons = (
            [f"found by the rules: {', '.join(sorted({one.rule for one in hits}))}"] if hits else []
        )
        omitted = left_out(read_record({"verdict": verdict})[0])
        if omitted:
            outcome, reasons = "fail", [*reasons, *omitted]
        reasons += self._blind
        self._incident.finish(outcome, verdict=verdict, reasons=[escape(one) for one in reasons])
        return Imported(
            path=self._incident.path,
            outcome=outcome,
            hits=tuple(self._hit(one) for one in kept),
            taps=tap_reports,
            writes=stats["writes"],
            answers=stats["acks"],
            digests_checked=stats["digests_checked"],
            blind=tuple(self._blind),
            notes=tuple(self._notes),
            verdict=verdict,
        )

    # --- the capture ------------------------------------------------------------------------------------
    def _write_capture(self) -> tuple[TapReport, ...]:
        names = ", ".join(one.path.name[:MAX_NAME_CHARS] for one in self._captures)
        writer = PcapngWriter(
            self._incident.link_path,
            interface="imported",
            snaplen_bytes=0,
            hardware=platform.machine(),
            system=platform.platform(),
            application="FreezeFrame import",
            description=names[:MAX_NAME_CHARS],
        )
        reports: tuple[TapReport, ...] = ()
        first_ns = last_ns = 0
        try:
            runs = self._captures[0].runs()
            if len(self._captures) > 1:
                merge, indexes = self._indexed()
                runs = self._merged(merge)
            for run in runs:
                self._look(run)
                first_ns, last_ns = first_ns or run.t_first_ns, run.t_last_ns
                if not writer.write(run.data, run.frames):
                    raise RigError(f"{self._incident.link_path}: {writer.full}")
            if len(self._captures) > 1:
                reports = self._tap_reports(merge, indexes)
            else:
                only = self._captures[0]
                reports = (TapReport(path=only.path, frames=writer.frames, problem=only.problem),)
        finally:
            writer.close(
                start_ns=first_ns, end_ns=last_ns, frames_received=writer.frames, frames_dropped=0
            )
        self._blind += [f"{one.path.name}: {one.problem}" for one in reports if one.problem]
        return reports

    def _look(self, run: Run) -> None:
        view = memoryview(run.data)
        for at, captured, original, _ in blocks(view):
            self._sighting.add(view[at : at + captured], original)

    def _indexed(self) -> tuple[taps.Merge, list[taps.TapIndex]]:
        indexes = []
        for one in self._captures:
            index = taps.TapIndex()
            for frame in _tap_frames(one):
                index.add(frame)
            if len(index.copies) >= taps.MAX_SEGMENTS:
                raise UsageError(
                    f"{one.path}: more than {taps.MAX_SEGMENTS} TCP segments; several taps are compared "
                    "segment by segment: cut the captures to the time in question (editcap -A -B)"
                )
            indexes.append(index)
        skews = [None, *(taps.skew(indexes[0], other) for other in indexes[1:])]
        return taps.Merge(indexes, skews), indexes

    def _merged(self, merge: taps.Merge) -> Iterator[Run]:
        self._source_of = array("B"), array("I")
        waiting: list[taps.TapFrame] = []
        for tap, number, frame in merge.frames([_tap_frames(one) for one in self._captures]):
            self._source_of[0].append(tap)
            self._source_of[1].append(number)
            waiting.append(frame)
            if len(waiting) >= _RUN_FRAMES:
                yield _run(waiting)
                waiting = []
        if waiting:
            yield _run(waiting)

    def _tap_reports(
        self, merge: taps.Merge, indexes: Sequence[taps.TapIndex]
    ) -> tuple[TapReport, ...]:
        reports = []
        for number, one in enumerate(self._captures):
            skew = merge.skews[number]
            if number and skew is None:
                self._blind.append(
                    f"{one.path.name} and {self._captures[0].path.name} have no TCP segment in common: how far their "
                    "clocks are apart is not known"
                )
            elif skew is not None:
                self._notes.append(f"{one.path.name}: {skew_text(skew)}")
            reports.append(
                TapReport(
                    path=one.path,
                    frames=indexes[number].frames,
                    problem=one.problem,
                    skew=skew,
                    differing=merge.differing,
                )
            )
        if merge.differing:
            self._notes.append(
                f"the taps differ in the data of {merge.differing} TCP segments, first in frame "
                f"{merge.first_differing}: they were changed between the taps; the copy nearest to the receiver is judged"
            )
        return tuple(reports)

    # --- judging ----------------------------------------------------------------------------------------
    def _judge_link(self) -> tuple[LinkView, list[Trigger]]:
        stored = StoredIncident.open(self._incident.path)
        ends = self._given.ends
        tells = ends.speak().tells
        view, hits = importjudge.link_hits(stored, ends, self._rules.link)
        totals = view.ledger.totals
        if ends.protocol == byname.USUAL and totals.writes and not totals.digests_checked:
            tried = importjudge.with_algorithm(stored, ends, self._rules.link)
            if tried is not None:
                (view, hits), algorithm = tried
                self._incident.record["link"]["integrity_alg"] = algorithm
                self._notes.append(
                    f"the capture does not show which digest was agreed on; it is {algorithm}: what was found fits no other"
                )
        self._blind += self._sighting.sentences()
        self._blind += importjudge.blindness(view, ends, self._sighting.frames)
        self._notes += importjudge.strangers(view, self._sighting.frames)
        for rule, count in view.withheld.items():
            self._notes.append(
                f"{rule}: {count} hits are left out, because the capture cannot show what they rest on"
            )
        if view.ledger.totals.writes and Tell.DIGEST not in tells:
            self._notes.append(
                f"protocol {ends.protocol} carries no digests: whether the data are right is not seen on the link"
            )
        return view, hits

    def _judge_consoles(self, link_hits: Sequence[Trigger]) -> list[Trigger]:
        reads: dict[Side, list[tuple[Ns, bytes]]] = {}
        for side, (data, problem) in self._logs.items():
            times, placing_note = importjudge.placed(
                side, data, self._timed[side], link_hits, self._begin_ns
            )
            if placing_note:
                self._notes.append(placing_note)
            if problem:
                self._blind.append(f"{self._given.consoles[side].name}: {problem}")
            if not data.strip():
                self._blind.append(f"the {side}'s console is empty")
            self._incident.console_path(side).write_bytes(data)
            self._incident.console_times_path(side).write_bytes(
                b"".join(READ_TIME.pack(t_ns, at) for t_ns, at in times)
            )
            ends = [*(at for _, at in times[1:]), len(data)]
            reads[side] = [
                (t_ns, data[at:end]) for (t_ns, at), end in zip(times, ends, strict=True)
            ]
        if not self._captures:
            self._blind.append("no capture of the link was given: nothing of it was checked")
        return importjudge.console_hits(reads, self._rules.console)

    @property
    def _begin_ns(self) -> Ns:
        return int(self._incident.record["clock"]["wall_ns"])

    def _tell_capture(self, view: LinkView | None) -> dict[str, int]:
        if view is None:
            return {"writes": 0, "acks": 0, "digests_checked": 0}
        stats = view.stats(
            t_ns=0,
            packets=self._sighting.frames,
            bytes_captured=self._incident.link_path.stat().st_size,
            kernel_drops=0,
        )
        counters = {
            name: getattr(stats, name) for name in stats.__struct_fields__ if name != "t_ns"
        }
        counters |= {"frames_stored": self._sighting.frames, "first_packet_no": 1}
        self._incident.record["capture"] = counters
        return counters

    def _hit(self, one: Trigger) -> importjudge.ImportHit:
        tap = None
        if one.source == "link" and self._source_of is not None and one.offset_bytes > 0:
            at = one.offset_bytes - 1
            tap = str(self._captures[self._source_of[0][at]].path), self._source_of[1][at]
        return importjudge.ImportHit.of(one, tap)


def skew_text(skew: taps.Skew) -> str:
    way = "ahead of" if skew.offset_ns >= 0 else "behind"
    if skew.error_ns is None:
        sure = "only one direction was seen by both, the way between the taps is in it"
    else:
        sure = f"+- {skew.error_ns / 1e6:.3f} ms"
    return (
        f"its clock is {abs(skew.offset_ns) / 1e6:.3f} ms {way} the first capture's ({sure}; by {skew.segments} TCP "
        "segments seen by both)"
    )


def _tap_frames(capture: CaptureInput) -> Iterator[taps.TapFrame]:
    for run in capture.runs():
        for frame in run_frames(run):
            yield frame.t_ns, frame.data, frame.original_length


def _run(frames: Sequence[taps.TapFrame]) -> Run:
    size = sum(len(data) for _, data, _ in frames)
    return Run(encode(frames), len(frames), size, frames[0][0], frames[-1][0])
