"""The trace, decoded with Perfetto's own definitions."""

from collections import Counter
from typing import Any

import golden_incidents
import pytest
from golden_incidents import RECEIVER, SENDER
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.report.perfetto import WAY, trace
from freezeframe.harness.report.protobuf import integer, varint


@pytest.fixture(scope="module", params=[RECEIVER, SENDER])
def decoded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Dossier, Any]:
    evidence = Dossier(golden_incidents.unpack(request.param, tmp_path_factory.mktemp("trace")))
    return evidence, proto.Trace.FromString(trace(evidence))


def tracks(decoded: Any) -> dict[int, Any]:
    return {
        one.track_descriptor.uuid: one.track_descriptor
        for one in decoded.packet
        if one.HasField("track_descriptor")
    }


def test_nothing_in_it_is_unknown_to_perfetto(decoded: tuple[Dossier, Any]) -> None:
    """Each packet says the same when only the fields that Perfetto knows are written again."""
    for packet in decoded[1].packet:
        whole = packet.ByteSize()
        packet.DiscardUnknownFields()
        assert packet.ByteSize() == whole


def test_every_place_has_its_tracks(decoded: tuple[Dossier, Any]) -> None:
    named = tracks(decoded[1])
    groups = {
        uuid: one.process.process_name for uuid, one in named.items() if one.HasField("process")
    }
    assert sorted(groups.values()) == [
        "1 host",
        "2 primary",
        "3 replication link",
        "4 secondary",
        "5 harness",
    ]
    children = {(groups[one.parent_uuid], one.name) for one in named.values() if one.parent_uuid}
    assert {(group, WAY) for group in groups.values()} <= children
    assert {("2 primary", "console"), ("4 secondary", "event log"), ("3 replication link", "replicated writes"),
            ("1 host", "host writes"), ("5 harness", "recovery"), ("5 harness", "reflex")} <= children  # fmt: skip
    used = {one.track_event.track_uuid for one in decoded[1].packet if one.HasField("track_event")}
    assert used <= set(named)


def test_each_flow_arrow_has_both_ends(decoded: tuple[Dossier, Any]) -> None:
    evidence, read = decoded
    started, ended, names = Counter[int](), Counter[int](), {}
    for packet in read.packet:
        event = packet.track_event
        for flow in event.flow_ids:
            started[flow] += 1
            names[flow] = [event.name]
    for packet in read.packet:
        for flow in packet.track_event.terminating_flow_ids:
            ended[flow] += 1
            names[flow].append(packet.track_event.name)
    assert (
        started == ended
        and set(started.values()) == {1}
        and len(started) == len(evidence.path.arrows)
    )
    link = "the copy on the link" + (", digest wrong" if evidence.record.scenario == SENDER else "")
    wanted = [
        ["host writes", "primary takes the write from the host"],
        ["primary sends the copy", link],
        [link, "secondary finds the digest wrong"],
        ["secondary finds the digest wrong", "log line arrives"],
        ["log line arrives", "trigger digest-failed"],
        ["trigger digest-failed", "control frame to the primary"],
        ["trigger digest-failed", "control frame to the secondary"],
        ["primary answers", "primary's set pulled"],
    ]
    assert all(one in names.values() for one in wanted)


def test_slices_of_a_track_never_overlap(decoded: tuple[Dossier, Any]) -> None:
    depth, last = Counter[int](), dict[int, int]()
    for packet in decoded[1].packet:
        event = packet.track_event
        if event.type not in (proto.TrackEvent.TYPE_SLICE_BEGIN, proto.TrackEvent.TYPE_SLICE_END):
            continue
        depth[event.track_uuid] += 1 if event.type == proto.TrackEvent.TYPE_SLICE_BEGIN else -1
        assert depth[event.track_uuid] in (0, 1) and packet.timestamp >= last.get(
            event.track_uuid, 0
        )
        last[event.track_uuid] = packet.timestamp
    assert not any(depth.values())


def test_times_tie_to_the_wall(decoded: tuple[Dossier, Any]) -> None:
    evidence, read = decoded
    snapshot = next(one.clock_snapshot for one in read.packet if one.HasField("clock_snapshot"))
    clocks = {one.clock_id: one.timestamp for one in snapshot.clocks}
    told = evidence.record.clock
    assert told is not None
    assert clocks == {1: told.wall_ns, 3: told.monotonic_ns, 6: told.monotonic_ns}
    frame = next(
        one for one in read.packet if one.track_event.name == "control frame to the primary"
    )
    assert frame.timestamp == evidence.record.actions[0].t_frame_ns


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, (1 << 63) - 1, (1 << 64) - 1])
def test_varints_are_protobufs(value: int) -> None:
    packet = proto.TracePacket.FromString(integer(8, value))
    assert packet.timestamp == value
    assert varint(-1) == varint((1 << 64) - 1)
