"""NVMe/TCP traffic of a mirror at a given rate, over real TCP between two network namespaces, without
controllers.

    python -m benchmarks.traffic_nvme sender|receiver NAMESPACE SIZE_BYTES WRITES MB_PER_S

Header and data digests, one I/O queue, each write as Linux sends a large one: a command, the target's R2T,
the data, the answer. The PDUs are made in advance. The sender ends when all is answered, and prints the
seconds that took.
"""

import os
import select
import socket
import struct
import sys
import time
from typing import Final

from crc32c import crc32c

from freezeframe.harness.edge.netns import SECONDARY_ADDRESS, Namespace
from freezeframe.harness.wire import nvme_tcp
from freezeframe.harness.wire.nvme_tcp import Opcode, PduFlag, PduType

BATCH: Final = 64
"""Different writes; a write's place in it is its command id."""
WINDOW: Final = 32
"""Writes under way."""
CHUNK: Final = 1 << 20
SHORT_BYTES: Final = 28
"""An R2T, or an answer, with its header digest."""


def pdu(kind: PduType, body: bytes, data: bytes = b"") -> bytes:
    header = nvme_tcp.COMMON_HEADER.size + len(body)
    flags = PduFlag.HEADER_DIGEST | (PduFlag.DATA_DIGEST | PduFlag.LAST if data else 0)
    data_at = header + nvme_tcp.DIGEST.size if data else 0
    tail = data + nvme_tcp.DIGEST.pack(crc32c(data)) if data else b""
    whole = header + nvme_tcp.DIGEST.size + len(tail)
    head = nvme_tcp.COMMON_HEADER.pack(kind, flags, header, data_at, whole) + body
    return head + nvme_tcp.DIGEST.pack(crc32c(head)) + tail


def hello(kind: PduType) -> bytes:
    """Both digests; never digested itself."""
    size = nvme_tcp.HEADER_BYTES[kind]
    digests = nvme_tcp.IC_DIGEST_HEADER | nvme_tcp.IC_DIGEST_DATA
    head = nvme_tcp.COMMON_HEADER.pack(kind, 0, size, 0, size)
    return (head + nvme_tcp.IC.pack(0, 0, digests, 0)).ljust(size, b"\0")


def connect(queue: int) -> bytes:
    entry = bytearray(64)
    entry[0], entry[nvme_tcp.FABRICS_TYPE_AT] = nvme_tcp.FABRICS_OPCODE, nvme_tcp.FABRICS_CONNECT
    entry[1] = 0x40
    nvme_tcp.CONNECT_QID.pack_into(entry, nvme_tcp.CONNECT_QID_AT, queue)
    return pdu(PduType.CAPSULE_CMD, bytes(entry))


def command(cid: int, size_bytes: int) -> bytes:
    blocks = size_bytes // 512
    entry = nvme_tcp.COMMAND.pack(
        Opcode.WRITE, 0x40, cid, 1, 0, size_bytes, 0x5A, cid * blocks, blocks - 1, 0, 0
    )
    return pdu(PduType.CAPSULE_CMD, entry)


def part(cid: int, size_bytes: int) -> bytes:
    return nvme_tcp.DATA_HEADER.pack(cid, cid, 0, size_bytes) + bytes(4)


def ready(cid: int, size_bytes: int) -> bytes:
    return pdu(PduType.R2T, part(cid, size_bytes))


def answer(cid: int) -> bytes:
    return pdu(PduType.CAPSULE_RESP, nvme_tcp.COMPLETION.pack(0, 0, 0, 0, cid, 0))


def data(cid: int, size_bytes: int) -> bytes:
    return pdu(PduType.H2C_DATA, part(cid, size_bytes), os.urandom(size_bytes))


def dial(queue: int) -> socket.socket:
    made = socket.create_connection((SECONDARY_ADDRESS, nvme_tcp.PORT))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.sendall(hello(PduType.IC_REQ))
    made.recv(nvme_tcp.HEADER_BYTES[PduType.IC_RESP], socket.MSG_WAITALL)
    made.sendall(connect(queue))
    made.recv(SHORT_BYTES, socket.MSG_WAITALL)
    return made


def send(size_bytes: int, writes: int, mb_per_s: float) -> None:
    admin, queue = dial(0), dial(1)
    commands = [command(cid, size_bytes) for cid in range(BATCH)]
    bodies = [data(cid, size_bytes) for cid in range(BATCH)]
    start, sent, answered, held = time.monotonic(), 0, 0, b""
    while answered < writes:
        due = start + sent * size_bytes / mb_per_s / 1e6
        wait = max(0.0, due - time.monotonic())
        may_send = sent < writes and sent - answered < WINDOW
        if may_send and not wait:
            queue.sendall(commands[sent % BATCH])
            sent += 1
        if not select.select([queue], [], [], (wait if may_send else None))[0]:
            continue
        held += queue.recv(CHUNK)
        for at in range(0, len(held) - SHORT_BYTES + 1, SHORT_BYTES):
            if held[at] == PduType.R2T:
                (cid,) = struct.unpack_from("<H", held, at + nvme_tcp.COMMON_HEADER.size)
                queue.sendall(bodies[cid])
            else:
                answered += 1
        held = held[len(held) // SHORT_BYTES * SHORT_BYTES :]
    print(time.monotonic() - start, flush=True)
    admin.close()


def receive(size_bytes: int) -> None:
    listener = socket.create_server((SECONDARY_ADDRESS, nvme_tcp.PORT))
    print("ready", flush=True)
    ends = []
    for _ in range(2):
        made, _ = listener.accept()
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.recv(nvme_tcp.HEADER_BYTES[PduType.IC_REQ], socket.MSG_WAITALL)
        made.sendall(hello(PduType.IC_RESP))
        made.recv(len(connect(0)), socket.MSG_WAITALL)
        made.sendall(answer(0))
        ends.append(made)
    queue = ends[1]
    readies = [ready(cid, size_bytes) for cid in range(BATCH)]
    answers = [answer(cid) for cid in range(BATCH)]
    head_bytes, skip_buffer = nvme_tcp.COMMON_HEADER.size + 4, bytearray(CHUNK)
    while head := queue.recv(head_bytes, socket.MSG_WAITALL):
        kind, _, _, _, whole = nvme_tcp.COMMON_HEADER.unpack_from(head)
        is_command = kind == PduType.CAPSULE_CMD
        (cid,) = struct.unpack_from("<H", head, 10 if is_command else 8)
        rest = whole - len(head)
        while rest:
            rest -= queue.recv_into(skip_buffer, min(rest, CHUNK), socket.MSG_TRUNC)
        queue.sendall((readies if is_command else answers)[cid])


def main() -> None:
    role, namespace = sys.argv[1], Namespace.open(sys.argv[2])
    size_bytes, writes, mb_per_s = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    namespace.run(
        lambda: send(size_bytes, writes, mb_per_s) if role == "sender" else receive(size_bytes)
    )


if __name__ == "__main__":
    main()
