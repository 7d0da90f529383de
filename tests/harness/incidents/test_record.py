"""incident.json, read value by value: what is right is kept, what is wrong is left out and named."""

import json
import random
from dataclasses import asdict
from typing import Any

import pytest
from record_keys import unread

from freezeframe.harness.core.blocks.compare import Comparison, Difference, LostWrite
from freezeframe.harness.core.verdict.record import FAULTS_ARMED, FORMAT, IncidentRecord
from freezeframe.harness.incidents.record import OLDEST, read_record

WHOLE: dict[str, Any] = {
    "format": FORMAT,
    "bench": "lab",
    "clock": {"monotonic_ns": 5, "wall_ns": 9, "error_ns": 1},
    "trigger": {"rule": "r", "source": "console", "side": "secondary", "offset_bytes": 7, "t_match_ns": 3},
    "actions": [
        {"side": "primary", "t_frame_ns": 4, "reply": {"ok": True, "status": "ok", "t_ack_ns": 6}},
        {"side": "secondary", "t_frame_ns": 5, "reply": None},
    ],
    "sets": {"primary": {"bytes": 3, "complete": True}},
    "workload": {"wrong_reads": [[512, 512, "bad"]], "wrong_reads_total": 1},
    "recovery": [{"t_ns": 1, "side": "primary", "step": "up", "detail": ""}],
}  # fmt: skip


def test_a_whole_record_is_read_without_a_problem() -> None:
    record, damage = read_record(WHOLE)
    assert damage == ()
    assert record.trigger is not None and record.trigger.offset_bytes == 7
    assert [one.side for one in record.actions] == ["primary", "secondary"]
    assert record.actions[0].reply is not None and record.actions[0].reply.t_ack_ns == 6
    assert record.sets["primary"].bytes == 3 and record.wall_offset_ns == 4
    assert record.workload is not None
    assert [one.text for one in record.workload.wrong_reads] == ["bad"]


def test_what_the_comparison_found_is_read_whole() -> None:
    """As a run writes it; a field that the record did not have would be lost without a word."""
    found = Comparison(
        bytes_compared=4096, sides_equal=False, data_equal=False, sectors_different=1, lost_acked_writes=1,
        lost=(LostWrite(write_id=3, side="secondary", offset_bytes=512, kind="stale"),),
        first_difference=Difference(
            side="secondary", offset_bytes=512, kind="stale", expected_crc32c=1, found_crc32c=2,
            first_byte=536, bit_mask=96,
        ),
        kinds={"secondary: stale": 1},
    )  # fmt: skip
    raw = json.loads(json.dumps(WHOLE | {"comparison": asdict(found)}))
    assert list(unread(raw)) == []
    record, damage = read_record(raw)
    assert damage == () and record.comparison is not None
    first, (lost,) = record.comparison.first_difference, record.comparison.lost
    assert first is not None and (first.first_byte, first.bit_mask) == (536, 96)
    assert (lost.write_id, lost.was_flushed, record.comparison.kinds) == (3, True, found.kinds)
    other = raw | {"shape": 1, "comparison": {"lost": [{"hue": 2}]}}
    assert set(unread(other)) == {".shape", ".comparison.lost[].hue"}


@pytest.mark.parametrize(
    ("changed", "names", "gone"),
    [
        ({"trigger": 7}, "trigger: not an object", "trigger"),
        ({"trigger": WHOLE["trigger"] | {"t_match_ns": "soon"}}, "trigger.t_match_ns", ""),
        ({"trigger": WHOLE["trigger"] | {"offset_bytes": -1}}, "trigger.offset_bytes", ""),
        ({"actions": "all"}, "actions: not a list", ""),
        ({"actions": [{"side": "tertiary", "t_frame_ns": 1}]}, "actions[0].side: one of primary, secondary", ""),
        ({"actions": [{"side": "primary"}]}, "actions[0].t_frame_ns: missing", ""),
        ({"sets": {"nobody": {}}}, "sets.nobody", ""),
        ({"clock": {"monotonic_ns": True, "wall_ns": 1}}, "clock.monotonic_ns", "clock"),
        ({"comparison": {"data_equal": 1}}, "comparison.data_equal", "comparison"),
        ({"seed": {}}, "seed", "seed"),
        ({"bench": "\ud800"}, "", ""),
        ({"format": "freezeframe-incident/9"}, "not known", ""),
    ],
)  # fmt: skip
def test_a_damaged_part_is_left_out_and_named_and_the_rest_is_read(
    changed: dict[str, Any], names: str, gone: str
) -> None:
    record, damage = read_record(WHOLE | changed)
    assert any(names in one for one in damage) or not names
    assert not gone or getattr(record, gone) is None
    assert [one.step for one in record.recovery] == ["up"], "the rest is read"


def test_what_is_no_object_is_an_empty_record() -> None:
    for raw in (None, [], "x", 5):
        assert read_record(raw) == (IncidentRecord(), ("not a JSON object",))
    assert read_record({}) == (IncidentRecord(format=FORMAT), ())


def test_the_first_format_gets_the_frame_of_the_verdict_from_its_way() -> None:
    route = [{"at": "host intent", "source": "host.journal", "t_ns": 1, "error_ns": 0},
             {"at": "link data", "source": "link.pcapng", "t_ns": 2, "error_ns": 0, "packet_no": 124}]  # fmt: skip
    old = {"format": OLDEST, "verdict": {"conclusive": True, "write_id": 10, "route": route}}
    record, damage = read_record(old)
    assert damage == () and record.verdict is not None
    assert (record.verdict.packet_no, record.verdict.write_id) == (124, 10)
    assert record.verdict.write is not None and record.verdict.write.packet_no == 124


def test_any_value_anywhere_is_survived_and_costs_little() -> None:
    dice = random.Random(5)
    wrong = (
        None,
        -1,
        2**70,
        "x" * 5000,
        [],
        [[]] * 1000,
        {},
        {"a": {"b": 1}},
        1.5,
        True,
        float("inf"),
    )
    for _ in range(500):
        raw = json.loads(json.dumps(WHOLE))
        place: Any = raw
        while isinstance(place, dict | list) and place:
            key = dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if dice.random() < 0.4 or not isinstance(place[key], dict | list):
                place[key] = dice.choice(wrong)
                break
            place = place[key]
        record, damage = read_record(raw)
        assert isinstance(record, IncidentRecord) and all(len(one) < 1000 for one in damage)


def test_a_fault_that_was_armed_is_a_deliberate_one() -> None:
    steps = [{"t_ns": 1, "side": "primary", "step": "up", "detail": ""}]
    armed = [*steps, {"t_ns": 2, "side": "secondary", "step": FAULTS_ARMED, "detail": "[]"}]
    for recovery, is_deliberate in ((None, False), ([], False), (steps, False), (armed, True)):
        record, _ = read_record(WHOLE | {"recovery": recovery})
        assert record.has_deliberate_fault is is_deliberate
