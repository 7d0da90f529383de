"""A replication link's traffic at a given rate, over real TCP between two network namespaces,
without controllers.

    python -m benchmarks.traffic sender|receiver NAMESPACE SIZE_BYTES WRITES MB_PER_S

Protocol 101, crc32c, protocol C: the sender dials both sockets, sends writes with right digests and
a barrier every 64; the receiver acknowledges each write. The packets are made in advance, so that
the sender costs little more than its system calls. The sender ends when all is acknowledged, and
prints the seconds that took.
"""

import os
import socket
import struct
import sys
import time
from typing import Final

from freezeframe.firmware_sim.drbd_codec import (
    digest_function,
    encode,
    encode_ack,
    encode_data_head,
    encode_header,
)
from freezeframe.harness.edge.netns import SECONDARY_ADDRESS, Namespace
from freezeframe.harness.wire.drbd import Cmd, DpFlag

PORT: Final = 7788
VERSION: Final = 101
BATCH: Final = 64
WINDOW: Final = 256
"""Writes under way."""
CHUNK: Final = 1 << 20


def greeting(command: Cmd) -> bytes:
    return encode_header(0, command, 0)


def features() -> bytes:
    return encode_header(0, Cmd.CONNECTION_FEATURES, 72) + struct.pack(">III60x", 86, 4, VERSION)


def protocol() -> bytes:
    return encode(VERSION, Cmd.PROTOCOL, 3, 0, 0, 0, 0, 0, body=b"crc32c\0")


def write_packets(size_bytes: int) -> list[bytes]:
    """One batch: BATCH writes and a barrier."""
    digest, _ = digest_function("crc32c")
    assert digest is not None
    packets = []
    flags = int(DpFlag.RW_SYNC | DpFlag.SEND_WRITE_ACK)
    for number in range(BATCH):
        data = os.urandom(size_bytes)
        body = digest(data) + data
        head = encode_data_head(
            VERSION, Cmd.DATA, number * 2048, number.to_bytes(8, "big"), number, flags, len(body)
        )
        packets.append(head + body)
    return packets


def send(size_bytes: int, writes: int, mb_per_s: float) -> None:
    data = socket.create_connection((SECONDARY_ADDRESS, PORT))
    data.sendall(greeting(Cmd.INITIAL_DATA))
    meta = socket.create_connection((SECONDARY_ADDRESS, PORT))
    for one in (data, meta):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    meta.sendall(greeting(Cmd.INITIAL_META))
    data.sendall(features())
    data.recv(80, socket.MSG_WAITALL)
    data.sendall(protocol())
    packets = write_packets(size_bytes)
    ack_bytes = len(encode_ack(VERSION, Cmd.WRITE_ACK, 0, bytes(8), size_bytes, 0))
    barrier_ack_bytes = len(encode(VERSION, Cmd.BARRIER_ACK, bytes(4), BATCH))
    start, sent, answered = time.monotonic(), 0, 0
    expected = writes * ack_bytes + writes // BATCH * barrier_ack_bytes
    while sent < writes:
        due = start + sent * size_bytes / mb_per_s / 1e6
        while (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        data.sendall(packets[sent % BATCH])
        sent += 1
        if sent % BATCH == 0:
            data.sendall(encode(VERSION, Cmd.BARRIER, struct.pack("<I", sent // BATCH), 0))
        while answered < (sent - WINDOW) * ack_bytes:
            answered += len(meta.recv(CHUNK))
    while answered < expected:
        answered += len(meta.recv(CHUNK))
    print(time.monotonic() - start, flush=True)


def _skip(data: socket.socket, buffer: bytearray) -> int:
    """Take what is there without copying it; 0 at the end."""
    try:
        return data.recv_into(buffer, CHUNK, socket.MSG_TRUNC)
    except ConnectionResetError:
        return 0


def receive(size_bytes: int) -> None:
    listener = socket.create_server((SECONDARY_ADDRESS, PORT))
    print("ready", flush=True)
    data, _ = listener.accept()
    data.recv(8, socket.MSG_WAITALL)
    meta, _ = listener.accept()
    for one in (data, meta):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    meta.recv(8, socket.MSG_WAITALL)
    data.recv(80, socket.MSG_WAITALL)
    data.sendall(features())
    data.sendall(protocol())
    head = len(encode_data_head(VERSION, Cmd.DATA, 0, bytes(8), 0, 0, 0))
    write_bytes = head + 4 + size_bytes
    batch_bytes = BATCH * write_bytes + len(encode(VERSION, Cmd.BARRIER, bytes(4), 0))
    acks = [
        encode_ack(
            VERSION, Cmd.WRITE_ACK, number * 2048, number.to_bytes(8, "big"), size_bytes, number
        )
        for number in range(BATCH)
    ]
    skip = bytearray(CHUNK)
    total, acked = -len(protocol()), 0
    while got := _skip(data, skip):
        total += got
        while total > 0:
            batch, inside = divmod(total, batch_bytes)
            done = batch * BATCH + min(BATCH, inside // write_bytes)
            if acked >= done:
                break
            upto = min(done, (acked // BATCH + 1) * BATCH)
            out = b"".join(acks[acked % BATCH : (upto - 1) % BATCH + 1])
            if upto % BATCH == 0:
                out += encode(VERSION, Cmd.BARRIER_ACK, struct.pack("<I", upto // BATCH), BATCH)
            meta.sendall(out)
            acked = upto


def main() -> None:
    role, namespace = sys.argv[1], Namespace.open(sys.argv[2])
    size_bytes, writes, mb_per_s = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    namespace.run(
        lambda: send(size_bytes, writes, mb_per_s) if role == "sender" else receive(size_bytes)
    )


if __name__ == "__main__":
    main()
