"""What was not seen or not checked is never good news: a whole healthy incident says that nothing diverged, and
whatever is taken from it takes the good sentence with it and is named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import golden_incidents
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console

from freezeframe.harness.core.events import SIDES
from freezeframe.harness.core.lineerrors import LineErrors
from freezeframe.harness.core.link.skim import run_of
from freezeframe.harness.core.verdict import assurance
from freezeframe.harness.core.verdict.comparisonrecord import ComparisonRecord
from freezeframe.harness.core.verdict.evidence import Evidence, gather
from freezeframe.harness.core.verdict.grade import GRADES, grade
from freezeframe.harness.core.verdict.record import (
    CanaryRecord,
    IncidentRecord,
    LinkRecord,
    RecheckRecord,
)
from freezeframe.harness.core.verdict.verdict import judge
from freezeframe.harness.edge.pcapng import run_frames
from freezeframe.harness.incidents.columns import COLUMNS
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.store import link_runs
from freezeframe.harness.report.html import page
from freezeframe.harness.report.summary import summary

GOOD: Final = "Nothing diverged."


@dataclass(frozen=True, repr=False)
class Whole:
    """Everything that a healthy run left."""

    dossier: Dossier
    evidence: Evidence
    frames: list[tuple[int, bytes]]
    journal: bytes

    def judged(
        self, record: IncidentRecord, frames: list[tuple[int, bytes]] | None, **parts: Any
    ) -> Evidence:
        given: dict[str, Any] = {
            "sets": {}, "journal": self.journal,
            "consoles": {side: (own.console, own.console_times) for side, own in self.evidence.sides.items()},
        }  # fmt: skip
        return gather(
            record, frames=None if frames is None else [run_of(frames)] if frames else [],
            frames_offset_ns=record.wall_offset_ns, **(given | parts),
        )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    stored = golden_incidents.unpack("small_clean", tmp_path_factory.mktemp("clean"))
    dossier = Dossier(stored)
    frames = [
        (one.t_ns, bytes(one.data)) for run in link_runs(stored.path) for one in run_frames(run)
    ]
    return Whole(dossier, dossier.evidence, frames, (stored.path / "host.journal").read_bytes())


def test_a_whole_healthy_incident_says_so(whole: Whole) -> None:
    """The speech to all the silences below."""
    verdict = judge(whole.judged(whole.evidence.record, whole.frames))
    assert (verdict.text, verdict.conclusive, verdict.reason) == (GOOD, True, "")
    assert assurance.not_judged(whole.evidence) == ()
    shown = rendered(whole.evidence.record)
    assert "equal on both sides; no acknowledged write lost" in shown


@pytest.mark.parametrize(
    ("name", "errors", "costs"),
    [
        ("primary console", LineErrors(framing=1), 1),
        ("secondary console", LineErrors(buffer_overruns=2, overruns=1), 1),
        ("secondary console", LineErrors(breaks=3), 0),
        ("primary control line", LineErrors(overruns=1), 0),  # an answer that is damaged is refused
    ],
)
def test_what_a_consoles_serial_driver_lost_costs_a_letter(
    whole: Whole, name: str, errors: LineErrors, costs: int
) -> None:
    record = whole.evidence.record
    before = grade(whole.judged(record, whole.frames))
    after = grade(whole.judged(structs.replace(record, line_errors={name: errors}), whole.frames))
    assert GRADES.index(after.letter) == GRADES.index(before.letter) + costs
    named = [one for one in after.lacks if one.endswith(f"counted: {errors.losses}")]
    assert len(named) == costs


# --- what can be missing ----------------------------------------------------------------------------------------
Frames = list[tuple[int, bytes]] | None
State = tuple[IncidentRecord, Frames, dict[str, Any]]


def _port(data: bytes, port: int) -> bytes:
    """A TCP frame whose service port is another."""
    for at in (34, 36):
        if data[at : at + 2] == (7788).to_bytes(2, "big"):
            return data[:at] + port.to_bytes(2, "big") + data[at + 2 :]
    return data


def _link(**changes: Any) -> Callable[[State], State]:
    def change(state: State) -> State:
        link = structs.replace(state[0].link or LinkRecord(), **changes)
        return structs.replace(state[0], link=link), *state[1:]

    return change


def _frames(change: Callable[[list[tuple[int, bytes]]], Frames]) -> Callable[[State], State]:
    return lambda state: (state[0], None if state[1] is None else change(state[1]), state[2])


def _record(change: Callable[[IncidentRecord], Mapping[str, Any]]) -> Callable[[State], State]:
    return lambda state: (structs.replace(state[0], **change(state[0])), *state[1:])


def _part(name: str, value: Any) -> Callable[[State], State]:
    return lambda state: (*state[:2], state[2] | {name: value})


def _compared(**changes: Any) -> Callable[[State], State]:
    def change(record: IncidentRecord) -> Mapping[str, Any]:
        return {
            "comparison": structs.replace(
                record.comparison or ComparisonRecord(data_equal=True), **changes
            )
        }

    return _record(change)


TAKEN: Final[Mapping[str, tuple[Callable[[State], State], str]]] = {
    "no capture": (_frames(lambda frames: None), "no capture"),
    "nothing captured": (_frames(lambda frames: []), "no capture"),
    "another port captured": (_frames(lambda frames: [(t, _port(one, 7799)) for t, one in frames]), "no replicated write"),
    "another port watched": (_link(ports=(7799,)), "no replicated write"),
    "protocol none": (_link(protocol="none"), "not understood"),
    "only the primary's frames": (
        _frames(lambda frames: [one for one in frames if one[1][26:30] == bytes([10, 77, 0, 1])]), "answer",
    ),
    "only the secondary's frames": (
        _frames(lambda frames: [one for one in frames if one[1][26:30] == bytes([10, 77, 0, 2])]), "no replicated write",
    ),
    "exchanged addresses": (_link(primary_address="10.77.0.2", secondary_address="10.77.0.1"), "exchanged"),
    "a hole": (_frames(lambda frames: [one for at, one in enumerate(frames) if at % 40 != 30]), "hole"),
    "frames dropped": (
        _record(lambda record: {"capture": structs.replace(record.capture, kernel_drops=3)}), "missed 3 frames",  # type: ignore[type-var]
    ),
    "no journal": (_part("journal", None), "journal"),
    "bytes lost by the serial driver": (
        _record(lambda record: {"line_errors": {"secondary console": LineErrors(overruns=2, breaks=1)}}),
        "the secondary's console are missing or wrong, its serial driver counted: 2 overruns",
    ),
    "no console": (_part("consoles", {}), "console was recorded"),
    "a canary unheard": (_record(lambda record: {"canaries": {"primary": CanaryRecord(seen=False)}}), "canary"),
    "no recheck": (_record(lambda record: {"recheck": {"secondary": RecheckRecord()}}), "recheck"),
    "an empty recheck": (
        _record(lambda record: {"recheck": {"secondary": RecheckRecord(agrees=True)}}), "searched again",
    ),
    "nothing compared": (_compared(bytes_compared=0), "not compared"),
    "nothing promised": (_compared(acked_writes=0), "not compared with what the host was promised"),
    "no comparison": (_record(lambda record: {"comparison": None, "data_equal": None}), "not compared"),
}  # fmt: skip
"""What is taken -> how, and a word by which the verdict names it."""


def rendered(record: IncidentRecord) -> str:
    console = Console(width=2000, force_terminal=False)
    with console.capture() as captured:
        console.print(summary(record, "pass", verbose=True))
    return captured.get()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.sets(st.sampled_from(sorted(TAKEN)), min_size=1, max_size=4))
def test_what_is_taken_takes_the_good_sentence_and_is_named(whole: Whole, names: set[str]) -> None:
    taken(whole, names)


@pytest.mark.parametrize("name", TAKEN)
def test_each_alone_is_named(whole: Whole, name: str) -> None:
    assert TAKEN[name][1] in taken(whole, {name})


def taken(whole: Whole, names: set[str]) -> str:
    """Judge what is left, hold all outputs to it; the verdict's text."""
    state: State = (whole.evidence.record, whole.frames, {})
    for name in sorted(names):
        state = TAKEN[name][0](state)
    e = whole.judged(state[0], state[1], **state[2])
    verdict = judge(e)
    assert not verdict.conclusive and GOOD not in verdict.text
    assert verdict.reason
    record = structs.replace(state[0], verdict=verdict)
    shown = rendered(record)
    assert GOOD not in shown
    html = page(
        replace(whole.dossier, given=e, stored=replace(whole.dossier.stored, record=record))
    )
    assert GOOD not in html
    if names & {"nothing compared", "no comparison"}:
        assert "equal on both sides" not in shown and "no acknowledged write lost" not in shown
        assert 'class="card good"><span>data equal' not in html
        assert column("data_equal", record) is None
    if names & {"nothing promised", "nothing compared"}:
        assert "no acknowledged write lost" not in shown
        assert "acknowledged writes lost" not in html
    if names & {"a canary unheard", "no recheck", "an empty recheck"}:
        assert "canaries heard" not in shown
    return verdict.text


def column(key: str, record: IncidentRecord) -> object:
    (one,) = (one for one in COLUMNS if one.key == key)
    assert one.read is not None
    return one.read(record)


# --- the record alone -------------------------------------------------------------------------------------------
EQUAL = st.none() | st.booleans()
COMPARISONS = st.none() | st.builds(
    ComparisonRecord, data_equal=st.booleans(), bytes_compared=st.sampled_from([0, 512]),
    acked_writes=st.sampled_from([0, 3]), lost_acked_writes=st.sampled_from([0, 2]),
)  # fmt: skip


@given(equal=EQUAL, compared=COMPARISONS, lost=st.sampled_from([None, 0, 2]))
def test_equal_and_not_lost_are_said_of_what_was_compared(
    equal: bool | None, compared: ComparisonRecord | None, lost: int | None
) -> None:
    record = IncidentRecord(data_equal=equal, comparison=compared, lost_acked_writes=lost)
    says_equal, says_lost = assurance.data_equal(record), assurance.lost_writes(record)
    if equal is False or (compared is not None and not compared.data_equal):
        assert says_equal is False
    elif compared is not None and not compared.bytes_compared:
        assert says_equal is None
    if lost:
        assert says_lost == lost, "bad news stays bad news"
    if says_lost == 0 and compared is not None:
        assert compared.bytes_compared and compared.acked_writes


@pytest.mark.parametrize("sides", [("primary",), ("secondary",), SIDES])
def test_only_the_consoles_that_were_proved_to_be_watched_are_called_so(
    sides: tuple[str, ...],
) -> None:
    recheck = {side: RecheckRecord(agrees=True, checked_bytes=9) for side in sides}
    shown = rendered(IncidentRecord(recheck=recheck))  # type: ignore[arg-type]
    assert "canaries heard" not in shown
    assert ("recheck agrees (" in shown) == (len(sides) == 1)


@pytest.mark.parametrize(
    ("source", "reaction_us", "budget_us", "is_slow"),
    [
        ("console", 100.5, 100.0, True),
        ("link", 100.5, 100.0, True),
        ("console", 100.0, 100.0, False),
        ("operator", 100.5, 100.0, False),
        ("console", None, 100.0, False),
        ("console", 100.5, None, False),
    ],
)
def test_a_reaction_is_slow_beyond_the_budget_and_where_somebody_had_to_be_quick(
    source: str, reaction_us: float | None, budget_us: float | None, is_slow: bool
) -> None:
    said = assurance.slow_reaction(source, reaction_us, budget_us)
    assert bool(said) is is_slow
    assert not is_slow or ("100.5 us" in said and "100 us are allowed" in said)
