"""Which write an output of an incident names: read from the output itself, as a person or a tool would."""

import html
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto  # type: ignore[import-untyped]

NO_WRITE = "no write"
_HOST = re.compile(r"write (\d+), sectors? (\d+)(?:-(\d+))?")
_LINK = re.compile(r"sectors? (\d+)(?:-(\d+))?, block_id (0x[0-9a-f]+), frames (\d+) to (\d+)")
_STEP = re.compile(r'<span class="name">(.*?)</span><span class="about" title=".*?">(.*?)</span>')
_BYTES = re.compile(r"byte (\d+) from sector (\d+), bit mask 0x([0-9a-f]{2})")


@dataclass(frozen=True)
class Named:
    """What one output says of the failing write; None: it says nothing of that."""

    write_id: int | None = None
    sectors: tuple[int, int] | None = None
    """First sector, number of sectors."""
    block_id: str | None = None
    packet_no: int | None = None
    """Of the frame that completes the copy on the link, in the recorded capture."""
    differs: tuple[int, int] | None = None
    """Offset of the first differing byte on the volume, its bit mask."""


def by_verdict(verdict: Mapping[str, Any]) -> Named:
    """What the verdict object says, as ``replay --json`` prints it."""
    steps = {one["at"]: one for one in verdict["route"]}
    sectors = verdict["write_lba"], verdict["write_sectors"]
    differs = None
    if verdict["byte_offset"] is not None:
        differs = verdict["write_lba"] * 512 + verdict["byte_offset"], verdict["bit_mask"]
    return Named(
        write_id=verdict["write_id"] if "host intent" in steps else None,
        sectors=None if None in sectors else sectors,
        block_id=verdict["block_id"] if "link data" in steps else None,
        packet_no=steps["link data"]["packet_no"] if "link data" in steps else None,
        differs=differs,
    )


def _range(first: str, last: str | None) -> tuple[int, int]:
    """(first sector, number of sectors)"""
    return int(first), int(last or first) - int(first) + 1


def by_steps(steps: Mapping[str, str], differs: tuple[int, int] | None = None) -> Named:
    """From the steps of the write's way: name -> what is said of it."""
    host = _HOST.search(steps.get("host writes", ""))
    copy = [
        _LINK.search(said)
        for name, said in steps.items()
        if name.startswith("the copy on the link")
    ]
    link = next((one for one in copy if one is not None), None)
    sectors = None
    if host is not None:
        sectors = _range(host[2], host[3])
    if link is not None:
        on_link = _range(link[1], link[2])
        assert sectors in (None, on_link), "the host's step and the link's name different sectors"
        sectors = on_link
    return Named(
        write_id=int(host[1]) if host else None,
        sectors=sectors,
        block_id=link[3] if link else None,
        packet_no=int(link[5]) if link else None,
        differs=differs,
    )


def by_page(page: str) -> Named:
    """The page: the write's way, and the note above the bytes."""
    way = page.partition('<section id="way">')[2].partition("</section>")[0]
    steps = {html.unescape(name): html.unescape(said) for name, said in _STEP.findall(way)}
    diff = html.unescape(page.partition('<section id="diff">')[2].partition("</section>")[0])
    return by_steps(steps, _differs(diff))


def by_trace(data: bytes) -> Named:
    """The Perfetto trace: the slices on the tracks of the write's way."""
    read = proto.Trace.FromString(data)
    ways = {
        one.track_descriptor.uuid
        for one in read.packet
        if one.HasField("track_descriptor") and one.track_descriptor.name == "the write's way"
    }
    steps = {}
    for packet in read.packet:
        event = packet.track_event
        if event.name and event.track_uuid in ways:
            about = {one.name: one.string_value for one in event.debug_annotations}
            steps[event.name] = about.get("what", "")
    return by_steps(steps)


def by_comments(comments: Mapping[int, list[str]]) -> tuple[int | None, tuple[int, int] | None]:
    """(frame, where bytes differ) by the comments of a capture: frame number -> its comments."""
    found = [
        (number, said)
        for number, texts in comments.items()
        for said in texts
        if "the failing write:" in said
    ]
    assert len(found) <= 1, f"{len(found)} frames are called the failing write"
    return (found[0][0], _differs(found[0][1])) if found else (None, None)


def by_pcapng(path: Path) -> tuple[int | None, tuple[int, int] | None]:
    """The same of an exported file, as tshark reads it; frames of the link are counted apart."""
    fields = ("-e", "frame.interface_name", "-e", "frame.comment")
    done = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", *fields],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    link = [row[1] if len(row) > 1 else "" for row in rows if row[0] == "link"]
    return by_comments({number: [said] for number, said in enumerate(link, 1)})


def _differs(said: str) -> tuple[int, int] | None:
    found = _BYTES.search(said)
    return (int(found[2]) * 512 + int(found[1]), int(found[3], 16)) if found else None
