"""``incident.json`` as typed, frozen structs: what a run noted of itself, and the verdict on it. Pure.

Written by ``incidents/incident.py``, read by ``incidents/record.py``. Times are CLOCK_MONOTONIC of the run unless a field
says otherwise. A part that is None was not recorded, or was damaged when it was read.
"""

from typing import Annotated, Any, Final

import msgspec

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.lineerrors import LineErrors
from freezeframe.harness.core.verdict.comparisonrecord import (
    MAX_OFFSET_NS,
    MAX_TIME_NS,
    ComparisonRecord,
    Count,
    Number,
    RecordPart,
    Text,
    Time,
)
from freezeframe.harness.core.verdict.failingblock import FailingBlock
from freezeframe.harness.core.verdict.resyncrecord import ResyncRecord

FORMAT: Final = "freezeframe-incident/2"
VERDICT_FORMAT: Final = "freezeframe-verdict/2"


class ClockReading(RecordPart, frozen=True, kw_only=True):
    """CLOCK_MONOTONIC and CLOCK_REALTIME at one moment, known to be at most ``error_ns`` apart."""

    monotonic_ns: Time
    wall_ns: Time
    error_ns: Count = 0


class TriggerRecord(RecordPart, frozen=True, kw_only=True):
    """What started the incident, or a later hit of a rule."""

    rule: Text = ""
    source: Text = ""
    """console | link"""
    side: Text = ""
    offset_bytes: Count | None = None
    """Console: just behind the match. Link: number of the frame, from 1."""
    excerpt_hex: Text = ""
    excerpt: Text = ""
    detail: Text = ""
    sector: int | None = None
    """Of the write that the rule is about; negative: of none."""
    block_id: Text = ""
    instruct: tuple[Side, ...] = ()
    line: Text = ""
    """The whole line of a console, known once the run has ended."""
    t_arrival_ns: Time | None = None
    t_match_ns: Time | None = None
    t_frame_ns: Time | None = None
    t_frame_done_ns: Time | None = None
    t_ack_ns: Time | None = None
    reaction_us: Number | None = None


class ReplyRecord(RecordPart, frozen=True, kw_only=True):
    """A controller's answer to its control frame."""

    ok: bool = False
    status: Text = ""
    text: Text = ""
    set_id: int | None = None
    boot_epoch: int | None = None
    events_logged: int | None = None
    uptime_ns: Time | None = None
    t_ack_ns: Time | None = None


class ActionRecord(RecordPart, frozen=True, kw_only=True):
    """A control frame, or why it could not go out."""

    side: Side
    t_frame_ns: Time
    t_frame_done_ns: Time | None = None
    seq: int | None = None
    frame_hex: Text = ""
    error: Text = ""
    reply: ReplyRecord | None = None
    t_warmstart_ns: Time | None = None
    warmstart_us: Number | None = None


class SetRecord(RecordPart, frozen=True, kw_only=True):
    """A root cause data set as it was pulled."""

    bytes: Count = 0
    sha256: Text = ""
    complete: bool = False
    path: Text = ""
    events: Count = 0
    reason: Text = ""


class RecoveryStep(RecordPart, frozen=True, kw_only=True):
    """A step of the recovery."""

    t_ns: Time
    step: Text
    side: Text = ""
    detail: Text = ""


class ControllerRecord(RecordPart, frozen=True, kw_only=True):
    """Who was there when the bench was armed, and what its clock showed between the question and the answer."""

    driver: Text = ""
    model: Text = ""
    serial_number: Text = ""
    firmware_version: Text = ""
    boot_epoch: int | None = None
    uptime_ns: Time | None = None
    uptime_error_ns: Count = 0
    t_asked_ns: Time | None = None
    t_answered_ns: Time | None = None


class LinkRecord(RecordPart, frozen=True, kw_only=True):
    """Which connections are the replication link."""

    primary_address: Text = ""
    secondary_address: Text = ""
    ports: tuple[Annotated[int, msgspec.Meta(ge=0, le=65535)], ...] = ()
    integrity_alg: Text = ""
    protocol: Text = ""
    """Of the replication; "": the usual one."""
    must_check: tuple[Text, ...] = ()
    """What the capture had to show at least once, or the outcome is inconclusive: digest, answer."""


class ArmedRecord(RecordPart, frozen=True, kw_only=True):
    """What was proved of a side's control frame before it was armed."""

    state: Text = ""
    """armed | armed (unrehearsed)"""
    rehearsed_bytes: Count | None = None
    """Length of the frame that was tried out without its effect."""
    why: Text = ""
    """Why it could not be tried out."""


class CanaryRecord(RecordPart, frozen=True, kw_only=True):
    """Whether a line that a controller was asked to print came in on its console."""

    seen: bool | None = None
    reason: Text = ""
    round_trip_us: Number | None = None
    arrival_to_match_us: Number | None = None


class RecheckRecord(RecordPart, frozen=True, kw_only=True):
    """What a second search of a recorded console came to."""

    agrees: bool | None = None
    reason: Text = ""
    checked_bytes: Count = 0
    hits: Count = 0
    missed: tuple[tuple[Text, int], ...] = ()
    unfounded: tuple[tuple[Text, int], ...] = ()
    not_checked: tuple[Text, ...] = ()


class CaptureRecord(RecordPart, frozen=True, kw_only=True):
    """What the link watch counted; None: it did not say."""

    packets: Count | None = None
    bytes_captured: Count = 0
    kernel_drops: Count = 0
    gaps: Count = 0
    messages: Count = 0
    """Of the protocol, understood."""
    writes: Count = 0
    acks: Count = 0
    outstanding: Count = 0
    """Writes that still wait for their answer."""
    digests_checked: Count = 0
    frames_stored: Count | None = None
    first_packet_no: Count | None = None
    blind: dict[Text, Text] = msgspec.field(default_factory=dict)
    """What the capture could not see: kind -> a sentence (``core.link.blindness``)."""


class WrongReadRecord(RecordPart, frozen=True, kw_only=True, array_like=True):
    """Bytes that the workload read back and that are not what it wrote."""

    offset_bytes: Count
    size_bytes: Count
    text: Text = ""


class WorkloadRecord(RecordPart, frozen=True, kw_only=True):
    """What the host wrote; None: not known."""

    driver: Text = ""
    keeps_journal: bool | None = None
    ok: bool | None = None
    error: Text = ""
    writes_acked: Count | None = None
    bytes_written: Count = 0
    longest_hold_ns: Count = 0
    verified_bytes: Count = 0
    wrong_reads: tuple[WrongReadRecord, ...] = ()
    wrong_reads_total: Count = 0


class RedriveRecord(RecordPart, frozen=True, kw_only=True):
    """What sending the failing write again came to."""

    outcome: Text = ""
    reason: Text = ""
    write_id: int | None = None


class EventLogRecord(RecordPart, frozen=True, kw_only=True):
    """How much of an event log was left when it was saved (``ringdepth.RingDepth``)."""

    held: Count = 0
    overwritten: Count = 0
    since_trigger: Count | None = None
    since_write: Count | None = None


# --- the verdict --------------------------------------------------------------------------------------------
class WriteKey(RecordPart, frozen=True, kw_only=True):
    """Exactly one write, by every name that a source has for it. None: that source does not hold it."""

    write_id: int | None = None
    """The host's number."""
    block_id: str | None = None
    """The link's, as text."""
    sector: int | None = None
    sectors: int | None = None
    packet_no: int | None = None
    """The frame of the capture that completes its data, from 1."""
    primary_no: int | None = None
    """The number in the primary's event log."""
    secondary_no: int | None = None


class WayStep(RecordPart, frozen=True, kw_only=True):
    """One step of the failing write's way, as one source holds it."""

    at: str
    """host intent | link data | link ANSWER | SIDE EVENT"""
    source: str
    """The file."""
    t_ns: int | None
    """None: nothing ties that clock to the run's."""
    error_ns: int | None
    seq: int | None = None
    """Of the event record."""
    packet_no: int | None = None
    first_packet_no: int | None = None
    crc32c: str | None = None
    digest: str | None = None
    digest_right: bool | None = None


class AlsoFound(RecordPart, frozen=True, kw_only=True):
    """Something else that went wrong."""

    stage: str | None
    candidates: tuple[str, ...] = ()
    kind: str = ""
    side: str | None = None
    write_id: int | None = None
    lba: int | None = None
    reason: str = ""


class ClockFit(RecordPart, frozen=True, kw_only=True):
    """A controller's uptime on the host's clock: add ``offset_ns``, give or take ``error_ns``."""

    offset_ns: int
    error_ns: int
    consistent: bool


class StateDifference(RecordPart, frozen=True, kw_only=True):
    """A field that both controllers' state records must agree on, and do not."""

    field: str
    primary: Any = None
    secondary: Any = None
    healthy_primary: Any = None
    healthy_secondary: Any = None


class NotSeen(RecordPart, frozen=True, kw_only=True):
    """What the evidence does not hold, although it happened or may have happened."""

    capture: bool = False
    """There is no capture of the link at all."""
    protocol: bool = False
    """There is a capture, and nobody here understands its protocol."""
    link_gaps: int = 0
    """Holes in the captured streams."""
    frames_dropped: int = 0
    """By the kernel, as the link watch counted them."""
    frames_missing: int = 0
    """Recorded by the link watch, and not in the file."""
    directions: tuple[Side, ...] = ()
    """Sides of which the capture shows no write, or no answer."""
    consoles: tuple[Side, ...] = ()
    sets: tuple[Side, ...] = ()
    journal: bool = False


class NotChecked(RecordPart, frozen=True, kw_only=True):
    """What the evidence holds and nobody could check."""

    writes: int = 0
    """Captured writes without a digest that could be checked."""
    writes_captured: int = 0
    unanswered: int = 0
    """Captured writes of which no answer was captured."""
    data_compared: bool = True
    """False: the volumes of the two sides were not compared."""


class Verdict(RecordPart, frozen=True, kw_only=True):
    """Where an incident's data first diverged, or why the evidence does not say."""

    format: str = VERDICT_FORMAT
    conclusive: bool = False
    text: str = ""
    stage: str | None = None
    candidates: tuple[str, ...] = ()
    kind: str | None = None
    side: str | None = None
    write_id: int | None = None
    block_id: str | None = None
    write_lba: int | None = None
    write_sectors: int | None = None
    packet_no: int | None = None
    primary_no: int | None = None
    secondary_no: int | None = None
    lba: int | None = None
    """The first wrong sector."""
    byte_offset: int | None = None
    """Of the first wrong byte, in the write's data. None: the verdict does not say that bytes differ."""
    bit_mask: int | None = None
    bytes_different: int | None = None
    expected: str | None = None
    found: str | None = None
    reason: str = ""
    reasons: tuple[str, ...] = ()
    confidence: str = "open"
    t_detect_ns: int | None = None
    t_cause_ns: int | None = None
    t_cause_error_ns: int | None = None
    evidence_grade: str = ""
    evidence_lacks: tuple[str, ...] = ()
    not_seen: NotSeen = NotSeen()
    not_checked: NotChecked = NotChecked()
    also: tuple[AlsoFound, ...] = ()
    resyncs: tuple[ResyncRecord, ...] = ()
    route: tuple[WayStep, ...] = ()
    clocks: dict[Side, ClockFit | None] = msgspec.field(default_factory=dict)
    state_differences: tuple[StateDifference, ...] = ()

    @property
    def write(self) -> WriteKey | None:
        """The one write that it is about; None: about none, or about none for certain."""
        key = WriteKey(
            write_id=self.write_id, block_id=self.block_id, sector=self.write_lba, sectors=self.write_sectors,
            packet_no=self.packet_no, primary_no=self.primary_no, secondary_no=self.secondary_no,
        )  # fmt: skip
        return key if key != WriteKey() else None

    @property
    def conclusion(self) -> tuple[object, ...]:
        """What it says, without its words: equal for two verdicts that say the same."""
        return (
            self.conclusive, self.stage, self.candidates, self.kind, self.side, self.write_id, self.block_id,
            self.write_lba, self.write_sectors, self.lba, self.byte_offset, self.bit_mask, self.bytes_different,
            self.evidence_grade, self.t_cause_ns, self.t_cause_error_ns,
            tuple((one.stage, one.candidates, one.kind, one.side, one.write_id, one.lba) for one in self.also),
        )  # fmt: skip


class JudgedBy(RecordPart, frozen=True, kw_only=True):
    """The program and the rules that made the incident's evidence and its verdict."""

    version: Text = ""
    commit: Text = ""
    """Of the product's source; "" when it was not built from a checkout."""
    bench_file: Text = ""
    """The folder's copy of the bench file, secrets redacted; "": none was kept."""
    rule_files: tuple[Text, ...] = ()
    """The folder's copies of the rule files that were in force when the run began."""
    reaction_budget_us: Number | None = None
    """The bench's, from a trigger's read to the end of the first frame's write; None: it has none."""


Versions = Text | dict[Text, Text]

FAULTS_ARMED: Final = "faults armed"
"""Step of the incident's history when deliberate faults were armed."""
IMPORT_BENCH: Final = "import"
"""Name of the bench in an imported incident, which has none."""


class IncidentRecord(RecordPart, frozen=True, kw_only=True):
    """All of ``incident.json``."""

    format: Text = FORMAT
    id: Text = ""
    incident_id_hex: Text = ""
    outcome: Text = ""
    created: Text = ""
    clock: ClockReading | None = None
    """At its begin."""
    clock_end: ClockReading | None = None
    bench: Text = ""
    bench_id: Text = ""
    """Name and digest of the lines as the bench file writes them: two benches of one name differ in it."""
    pair_id: Text = ""
    """Name and digest of the lines that were opened; "": of controllers made for this run alone."""
    scenario: Text | None = None
    seed: Annotated[int, msgspec.Meta(ge=-MAX_TIME_NS, le=MAX_TIME_NS)] | Text | None = None
    rules: tuple[Text, ...] = ()
    versions: dict[Text, Versions] = msgspec.field(default_factory=dict)
    judged_by: JudgedBy | None = None
    trigger: TriggerRecord | None = None
    more_triggers: tuple[TriggerRecord, ...] = ()
    actions: tuple[ActionRecord, ...] = ()
    sets: dict[Side, SetRecord] = msgspec.field(default_factory=dict)
    recovery: tuple[RecoveryStep, ...] = ()
    data_equal: bool | None = None
    lost_acked_writes: Count | None = None
    comparison: ComparisonRecord | None = None
    capture: CaptureRecord | None = None
    workload: WorkloadRecord | None = None
    notes: tuple[Text, ...] = ()
    reasons: tuple[Text, ...] = ()
    controllers: dict[Side, ControllerRecord] = msgspec.field(default_factory=dict)
    link: LinkRecord | None = None
    armed: dict[Side, ArmedRecord] = msgspec.field(default_factory=dict)
    canaries: dict[Side, CanaryRecord] = msgspec.field(default_factory=dict)
    recheck: dict[Side, RecheckRecord] = msgspec.field(default_factory=dict)
    counted_hits: dict[Text, Count] = msgspec.field(default_factory=dict)
    line_errors: dict[Text, LineErrors] = msgspec.field(default_factory=dict)
    """Line -> what its serial driver counted in the incident. A driver that does not count is not there."""
    redrive: RedriveRecord | None = None
    event_logs: dict[Side, EventLogRecord] = msgspec.field(default_factory=dict)
    failing_block: FailingBlock | None = None
    verdict: Verdict | None = None

    @property
    def has_deliberate_fault(self) -> bool:
        """A scenario or a test armed a fault: what triggered was asked for."""
        return any(one.step == FAULTS_ARMED for one in self.recovery)

    @property
    def is_import(self) -> bool:
        """Made by ``import`` of captures and logs: nothing was armed, instructed or compared."""
        return self.bench == IMPORT_BENCH

    @property
    def triggers(self) -> tuple[TriggerRecord, ...]:
        """The incident's own, then those after it."""
        return (*((self.trigger,) if self.trigger is not None else ()), *self.more_triggers)

    @property
    def wall_offset_ns(self) -> Ns:
        """Add to CLOCK_MONOTONIC of the run for CLOCK_REALTIME."""
        if self.clock is None:
            return 0
        return min(max(self.clock.wall_ns - self.clock.monotonic_ns, -MAX_OFFSET_NS), MAX_OFFSET_NS)

    @property
    def wall_step_ns(self) -> Ns:
        """By how much wall and monotonic clock moved apart between the begin and the end."""
        if self.clock is None or self.clock_end is None:
            return 0
        begin, end = self.clock, self.clock_end
        return (end.wall_ns - begin.wall_ns) - (end.monotonic_ns - begin.monotonic_ns)

    def armed_ns(self, side: Side | None = None) -> Ns:
        """When the bench was armed, as far as is known: when ``side`` (None: the first of them) was asked for its
        identity; else when the incident's folder was made; 0: neither is known."""
        asked = [
            one.t_asked_ns
            for name, one in self.controllers.items()
            if one.t_asked_ns is not None and side in (None, name)
        ]
        return min(asked, default=self.clock.monotonic_ns if self.clock is not None else 0)
