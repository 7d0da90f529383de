"""An incident as one capture file: link, consoles, control frames and actions on one clock, for
Wireshark."""

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from freezeframe.harness.core import frames
from freezeframe.harness.core.events import SIDES, Ns
from freezeframe.harness.core.text import escape, sector_range
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.edge.capturefile import (
    LINKTYPE_ETHERNET,
    LINKTYPE_UPPER_PDU,
    CaptureFile,
    upper_pdu,
)
from freezeframe.harness.errors import WireError
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.report.lua import PROTOCOL

TEXT_DISSECTOR: Final = "syslog"
"""Of Wireshark's own dissectors of text the one that puts a line into the column Info, in old
versions too."""
MAX_ROWS: Final = 200_000
MAX_INFO_CHARS: Final = 200
_FIRST: Final = "FreezeFrame: "


class _Packet(NamedTuple):
    t_ns: Ns
    interface: int
    data: bytes
    original_length: int = 0
    comments: tuple[str, ...] = ()


def write_pcapng(dossier: Dossier, path: Path) -> int:
    """Write the file; the number of its packets."""
    record = dossier.record
    comment = f"FreezeFrame incident {dossier.stored.id}, outcome {dossier.stored.outcome}"
    if record.scenario:
        comment += f", scenario {record.scenario}, seed {record.seed}"
    with CaptureFile(path, application="FreezeFrame export", comment=escape(comment)) as out:
        link = out.interface("link", "the replication link", LINKTYPE_ETHERNET)
        consoles = {
            side: out.interface(
                f"console-{side}", f"the {side}'s console, a packet a line", LINKTYPE_UPPER_PDU
            )
            for side in SIDES
        }
        controls = {
            side: out.interface(
                f"control-{side}", f"control frames to the {side}", LINKTYPE_UPPER_PDU
            )
            for side in SIDES
        }
        actions = out.interface("actions", "what the harness noticed and did", LINKTYPE_UPPER_PDU)
        others = [
            *(packet for side in SIDES for packet in _console(dossier, side, consoles[side])),
            *(packet for side in SIDES for packet in _control(dossier, side, controls[side])),
            *_actions(dossier, actions),
        ]
        others.sort(key=lambda packet: packet.t_ns)
        for packet in heapq.merge(_link(dossier, link), others, key=lambda packet: packet.t_ns):
            out.packet(
                packet.interface,
                packet.t_ns,
                packet.data,
                original_length=packet.original_length,
                comments=packet.comments,
            )
    return out.packets


def frame_comments(dossier: Dossier) -> dict[int, list[str]]:
    """Frame number -> comments: what is wrong with it, and the failing write's own frames."""
    comments = {packet_no: list(texts) for packet_no, texts in dossier.link.marks.items()}
    trigger = dossier.record.trigger
    if trigger is not None and trigger.source == "link" and trigger.offset_bytes:
        said = escape(f"trigger {trigger.rule}: {trigger.detail}")
        comments.setdefault(trigger.offset_bytes, []).insert(0, said)
    failing, diff, verdict = dossier.failing, dossier.diff, dossier.verdict
    if failing is not None:
        named = f"write {verdict.write_id}, " if verdict.write_id is not None else ""
        said = f"the failing write: {named}{sector_range(failing.sector, failing.sectors)}"
        if diff is not None:
            at = diff.offsets[0]
            mask = diff.expected[at] ^ diff.found[at]
            said += (
                f"; {len(diff.offsets)} bytes differ, the first is byte {at} from sector {diff.sector}, "
                f"bit mask 0x{mask:02x}; found: {diff.found_from}"
            )
        comments.setdefault(failing.packet_no, []).append(said)
        if failing.ack_packet_no:
            said = f"{failing.ack} of the failing write, {failing.latency_ns / 1e6:.3f} ms after it"
            comments.setdefault(failing.ack_packet_no, []).append(said)
    return comments


def _link(dossier: Dossier, interface: int) -> Iterator[_Packet]:
    comments = frame_comments(dossier)
    for frame_no, frame in enumerate(dossier.frames(), 1):
        marks = tuple(_FIRST + text for text in comments.get(frame_no, ()))
        yield _Packet(frame.t_ns, interface, frame.data, frame.original_length, marks)


def _console(dossier: Dossier, side: str, interface: int) -> Iterator[_Packet]:
    for line in dossier.consoles["primary" if side == "primary" else "secondary"]:
        info = escape(line.data[: 4 * MAX_INFO_CHARS])[:MAX_INFO_CHARS]
        data = upper_pdu(line.data, dissector=TEXT_DISSECTOR, protocol=f"console {side}", info=info)
        marks: tuple[str, ...] = ()
        if line.rules:
            what = "the trigger" if line.is_trigger else "also a trigger"
            marks = (f"{_FIRST}{what}: rule {', '.join(line.rules)}",)
        t_ns = line.t_ns + dossier.wall_offset_ns if line.t_ns else 0
        yield _Packet(t_ns, interface, data, comments=marks)


def _control(dossier: Dossier, side: str, interface: int) -> Iterator[_Packet]:
    for sent in dossier.control_frames:
        if sent.side != side:
            continue
        try:
            frame = frames.decode(sent.frame)
            info = f"{frames.op_name(frame.type)} to the {side}, sequence number {frame.seq}"
            dissector = PROTOCOL
        except WireError:
            # Another device type's: its bytes, most often a line of text.
            info = escape(f"control line to the {side}: ".encode() + sent.frame.strip())[
                :MAX_INFO_CHARS
            ]
            dissector = TEXT_DISSECTOR
        data = upper_pdu(sent.frame, dissector=dissector, protocol=f"control {side}", info=info)
        yield _Packet(
            sent.t_ns + dossier.wall_offset_ns,
            interface,
            data,
            comments=(f"{_FIRST}control frame: {info}",),
        )


def _actions(dossier: Dossier, interface: int) -> Iterator[_Packet]:
    for row in dossier.rows[:MAX_ROWS]:
        about = [
            f"{name}={row[name]}"
            for name in row
            if name not in _HEAD and row[name] not in ("", [], None)
        ]
        text = escape(" ".join([_head(row), *about]))
        data = upper_pdu(
            text.encode(), dissector=TEXT_DISSECTOR, protocol="action", info=text[:MAX_INFO_CHARS]
        )
        yield _Packet(row["t_ns"] + dossier.wall_offset_ns, interface, data)


_HEAD: Final = frozenset({"t_ns", "source", "side", "event", "excerpt_hex", "frame_hex"})


def _head(row: Row) -> str:
    return " ".join(str(row[name]) for name in ("source", "side", "event") if row.get(name))
