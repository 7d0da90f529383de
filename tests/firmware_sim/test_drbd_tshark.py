"""The exchange of two peers as a capture, judged by tshark's own DRBD dissector."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from drbd_world import MS, S, World
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from freezeframe.harness.wire.drbd import PORT, Cmd

MSS_BYTES = 1448
ADDRESS = {"a": "10.77.0.1", "b": "10.77.0.2"}


def write_pcap(world: World, path: Path) -> None:
    """Each socket as a TCP connection from a to b's port, from its SYN on."""
    frames = []
    next_seq: dict[tuple[int, str], int] = {}
    for time_ns, name, socket, data in world.records:
        other = "b" if name == "a" else "a"
        port = 40_000 + socket
        ends = {"sport": port, "dport": PORT} if name == "a" else {"sport": PORT, "dport": port}

        def frame(
            flags: str,
            ack: int,
            seq: int,
            payload: bytes,
            name=name,
            other=other,
            ends=ends,
            time_ns=time_ns,
        ):  # type: ignore[no-untyped-def]
            packet = (
                Ether()
                / IP(src=ADDRESS[name], dst=ADDRESS[other])
                / TCP(**ends, flags=flags, seq=seq, ack=ack)
            )
            packet = packet / payload if payload else packet
            packet.time = time_ns / 1e9
            return packet

        if not data:
            frames.append(frame("S", 0, 0, b""))
            next_seq[socket, "a"] = next_seq[socket, "b"] = 1
            continue
        for at in range(0, len(data), MSS_BYTES):
            piece = data[at : at + MSS_BYTES]
            frames.append(frame("PA", next_seq[socket, other], next_seq[socket, name], piece))
            next_seq[socket, name] += len(piece)
    wrpcap(str(path), frames)


def tshark(path: Path, *arguments: str) -> list[str]:
    command = [
        "tshark", "-r", str(path), "-o", "tcp.desegment_tcp_streams:TRUE", "--enable-heuristic", "drbd_tcp",
        "--disable-protocol", "tcpencap", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return done.stdout.splitlines()


def exchange(version: int) -> World:
    """Set-up, writes of all kinds, a cut with writes under way, a resync with writes in it, a
    polite end."""
    world = World(both={"protocol_max": version}).start("a")
    for write_no in range(1, 9):
        world.a.write(write_no, 4096 * write_no, bytes([write_no]) * 4096, fua=write_no == 3)
    world.a.trim(9, 4096, 8192)
    world.a.write(10, 65536, b"\x77" * 65536)
    world.run(1 * S)
    world.a.write(11, 262144, b"\x11" * 65536)
    world.cut()
    world.run(1 * MS)
    world.a.write(12, 524288, b"\x22" * 200 * 1024)
    world.run_until(lambda: "Began resync as SyncSource" in world.a.text())
    world.a.write(13, 524288, b"\x33" * 8192)
    world.run(3 * S)
    world.a.peer.mark_out_of_sync(4096, 4096)
    world.run(1 * S)
    world.a.peer.stop(world.now)
    world.run(1 * S)
    assert world.equal()
    return world


@pytest.mark.parametrize("version", [95, 101])
def test_tshark_decodes_every_packet(version: int, tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    world = exchange(version)
    path = tmp_path / "pair.pcap"
    write_pcap(world, path)
    assert tshark(path, "-Y", "_ws.malformed") == []
    commands: Counter[int] = Counter()
    for line in tshark(path, "-Y", "drbd", "-T", "fields", "-e", "drbd.command"):
        commands.update(int(value, 16) for value in line.split(","))
    expected = sent_commands(world, version)
    assert commands == expected
    assert {Cmd.TRIM, Cmd.RS_DATA_REPLY, Cmd.COMPRESSED_BITMAP, Cmd.DATA_REPLY} <= set(commands)
    sizes = tshark(path, "-Y", "drbd.command == 0x16", "-T", "fields", "-e", "drbd.size")
    assert "65536" in ",".join(sizes).split(",")


def sent_commands(world: World, version: int) -> Counter[int]:
    """The commands of all packets sent, by their headers alone."""
    streams: dict[tuple[int, str], bytes] = {}
    for _, name, socket, data in world.records:
        streams[socket, name] = streams.get((socket, name), b"") + data
    counts: Counter[int] = Counter()
    for stream in streams.values():
        at = 0
        while at < len(stream):
            magic = stream[at : at + 4]
            if magic == b"\x86\x20\xec\x20":
                command, length, size = (
                    int.from_bytes(stream[at + 6 : at + 8], "big"),
                    stream[at + 8 : at + 12],
                    16,
                )
            elif magic == b"\x83\x74\x02\x67":
                command, length, size = (
                    int.from_bytes(stream[at + 4 : at + 6], "big"),
                    stream[at + 6 : at + 8],
                    8,
                )
            else:
                assert magic[:2] == b"\x83\x5a"
                command, length, size = (
                    int.from_bytes(stream[at + 2 : at + 4], "big"),
                    stream[at + 4 : at + 8],
                    8,
                )
            counts[command] += 1
            at += size + int.from_bytes(length, "big")
    return counts
