"""Scapy layers: what they build is what they dissect, and what real nodes sent is built again byte
for byte."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.packet import Raw

from freezeframe.harness.core.link.tcpstream import Reassembler, StreamData
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.edge.scapy_layers import (
    BODIES,
    REPLIES,
    REQUESTS,
    ControlFrame,
    Drbd,
    DrbdH80,
    DrbdH95,
    DrbdH100,
    SetEntryLayer,
    SyncParam95,
    packets,
)
from freezeframe.harness.wire import control, drbd
from freezeframe.harness.wire.drbd import Cmd

GOLDEN = Path(__file__).parents[2] / "golden" / "drbd"


def golden_streams() -> list[bytes]:
    """Every direction of every connection of the golden captures."""
    streams: dict[tuple[str, int], bytes] = {}
    for capture in ("small-handshake", "small-failure"):
        reassembler = Reassembler()
        for number, frame in enumerate(read_frames(GOLDEN / f"{capture}.pcap"), 1):
            for event in reassembler.feed(frame.t_ns, frame.data, number):
                if isinstance(event, StreamData):
                    key = (capture, event.flow.number)
                    streams[key] = streams.get(key, b"") + bytes(event.data)
    return list(streams.values())


def test_real_packets_are_taken_apart_and_built_again() -> None:
    seen = set()
    for stream in golden_streams():
        found = packets(stream)
        assert b"".join(bytes(packet) for packet in found) == stream
        for packet in found:
            if isinstance(packet, Drbd):
                seen.add(packet.cmd)
                fresh = packet.copy()
                for layer in fresh.iterpayloads():
                    layer.raw_packet_cache = None  # build from the fields, not from what was read
                assert bytes(fresh) == bytes(packet)
    assert {
        Cmd.SIZES,
        Cmd.UUIDS,
        Cmd.STATE,
        Cmd.PROTOCOL,
        Cmd.SYNC_PARAM89,
        Cmd.DATA,
        Cmd.BARRIER_ACK,
    } <= seen


@settings(max_examples=150, deadline=None)
@given(
    cmd=st.sampled_from(sorted(BODIES)),
    header=st.sampled_from([DrbdH80, DrbdH95, DrbdH100]),
    fill=st.binary(min_size=200, max_size=200),
    tail=st.binary(max_size=50),
)
def test_built_is_dissected_is_built(cmd, header, fill, tail) -> None:  # type: ignore[no-untyped-def]
    fixed = drbd.LAYOUTS[cmd][0].size
    built = bytes(header(cmd=int(cmd)) / Raw(fill[:fixed] + tail))
    dissected = Drbd(built)
    assert type(dissected) is header
    fresh = dissected.copy()
    for layer in fresh.iterpayloads():
        layer.raw_packet_cache = None
    assert len(bytes(fresh)) == len(built)
    if cmd not in (
        Cmd.CONNECTION_FEATURES,
        Cmd.SYNC_PARAM89,
    ):  # texts lose what follows their NUL padding
        assert bytes(fresh) == built


def test_a_person_can_read_it() -> None:
    state = Drbd(bytes(DrbdH100(cmd=Cmd.STATE) / BODIES[Cmd.STATE](state=0x0000C882))).show(
        dump=True
    )
    assert "P_STATE" in state
    assert "WFConnection Secondary/Unknown Inconsistent/DUnknown" in state
    write = DrbdH100(cmd=Cmd.DATA) / BODIES[Cmd.DATA](sector=8, dp_flags=0x102) / Raw(bytes(516))
    shown = Drbd(bytes(write)).show(dump=True)
    assert "rw_sync+send_write_ack" in shown
    assert Drbd(bytes(write)).length == 540
    param = DrbdH100(cmd=Cmd.SYNC_PARAM89) / SyncParam95(c_max_rate=102400)
    assert Drbd(bytes(param))[SyncParam95].c_max_rate == 102400


def test_what_is_no_packet_is_raw() -> None:
    assert isinstance(Drbd(b"hello"), Raw)
    whole = bytes(DrbdH100(cmd=Cmd.PING))
    found = packets(whole + whole[:9])
    assert [type(packet) for packet in found] == [DrbdH100, Raw]


# --- control frames
# -----------------------------------------------------------------------------------------------
def test_a_control_frame_is_what_the_codec_makes() -> None:
    from freezeframe.harness.core import frames

    payload = control.FREEZE.pack(b"A1".ljust(16, b"\0"), 3, control.Reason.LINK_TRIGGER, b"i" * 16)
    line = frames.encode(control.Op.WARMSTART, 7, payload)
    frame = ControlFrame(line)
    assert (frame.type, frame.seq, frame.length) == (control.Op.WARMSTART, 7, 38)
    assert (frame.serial_number.rstrip(b"\0"), frame.boot_epoch) == (b"A1", 3)
    assert "link_trigger" in frame.show(dump=True)
    request = REQUESTS[control.Op.WARMSTART](
        serial_number=b"A1", boot_epoch=3, reason=2, incident_id=b"i" * 16
    )
    assert bytes(ControlFrame(type=control.Op.WARMSTART, seq=7) / request) == line
    assert bytes(frame) == line


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(
        [int(op) for op in control.Op] + [int(op) | control.REPLY for op in control.Op]
    ),
    seq=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=200),
)
def test_any_control_frame_is_built_as_it_was_dissected(
    kind: int, seq: int, payload: bytes
) -> None:
    built = bytes(ControlFrame(type=kind, seq=seq) / Raw(payload))
    assert built.startswith(b"\0")
    assert built.endswith(b"\0")
    assert b"\0" not in built[1:-1]
    frame = ControlFrame(built)
    assert (frame.type, frame.seq, frame.length) == (kind, seq, len(payload))
    assert bytes(frame) == built


def test_replies_with_entries_and_refusals() -> None:
    reply = control.Op.LIST_SETS | control.REPLY
    sets = [SetEntryLayer(set_id=1, raw_bytes=5), SetEntryLayer(set_id=2)]
    frame = ControlFrame(bytes(ControlFrame(type=reply) / REPLIES[control.Op.LIST_SETS](sets=sets)))
    assert [entry.set_id for entry in frame.sets] == [1, 2]
    refused = (
        ControlFrame(type=reply) / REPLIES[control.Op.LIST_SETS](status=3) / Raw(b"wrong target")
    )
    frame = ControlFrame(bytes(refused))
    assert frame.status == control.Status.WRONG_TARGET
    assert frame.load == b"wrong target"


def test_too_short_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 12"):
        ControlFrame(b"\0\x03\xf5\x01\0")


def test_only_the_light_half_of_scapy_is_imported() -> None:
    code = "import sys, freezeframe.harness.edge.scapy_layers\n"
    code += "print([m for m in sys.modules if m.startswith('scapy.layers')])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    assert told.stdout.strip() == "[]"
