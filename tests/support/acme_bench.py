"""A made-up vendor's pair as real ports: two controllers with console, control line, dump service and
host port, which replicate over TCP with a CRC and answers with a status. A process of its own; it ends
when its standard input ends. Needs the package that `driver new acme` wrote on PYTHONPATH.

    python acme_bench.py FOLDER        writes FOLDER/ports.json once all ports are open
"""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from acme_pair import link as wire  # type: ignore[import-not-found,unused-ignore]
from acme_pair.device import Device  # type: ignore[import-not-found,unused-ignore]
from crc32c import crc32c

from freezeframe.firmware_sim.nbd_port import NbdSession, Request
from freezeframe.harness.edge import netns

SIZE_BYTES = 4 << 20
SECTOR = 512
PASSWORD = "an acme secret"


class Clock:
    def now(self) -> int:
        return time.monotonic_ns()


class Console(list[str]):
    """What the firmware prints goes to whoever has the console open."""

    def __init__(self) -> None:
        super().__init__()
        self.client: socket.socket | None = None

    def append(self, line: str) -> None:
        super().append(line)
        if self.client is not None:
            self.client.sendall(line.encode() + b"\r\n")


class AcmeController:
    def __init__(self, side: str, folder: Path, send: "Callable[[bytes], int] | None") -> None:
        self.side, self.send = side, send
        self.device = Device(serial_number=f"SK-{side}", clock=Clock(), printed=Console())
        self.device.role = 1 if side == "primary" else 2
        self.volume = bytearray(SIZE_BYTES)
        self.lock = threading.RLock()
        self._seen, self._armed = 0, self.device.faults
        self.nbd_path = folder / f"{side}.nbd"
        nbd = socket.socket(socket.AF_UNIX)
        nbd.bind(str(self.nbd_path))
        self.ports = {
            "console": serve(listener(), self._console),
            "control": serve(listener(), self._control),
            "dump": serve(listener(), self._dump),
        }
        serve(nbd, self._host)

    def fault(self) -> str:
        """What goes wrong with this replicated write, counted since the plan was armed."""
        if self._armed is not self.device.faults:
            self._seen, self._armed = 0, self.device.faults
        self._seen += 1
        kind: str = self._armed.get(self._seen, "")
        return kind

    # --- ports ---------------------------------------------------------------------------------------
    def _console(self, client: socket.socket) -> None:
        self.device.printed.client = client
        while client.recv(4096):
            pass
        self.device.printed.client = None

    def _control(self, client: socket.socket) -> None:
        with client.makefile("rb") as lines:
            for line in lines:
                with self.lock:
                    answers = self.device.ask(line.decode("ascii", "replace"))
                client.sendall("".join(f"{one}\r\n" for one in answers).encode())
                if line.split()[-1:] == [b"warmstart"] and answers[0].split()[1] == "ok":
                    return  # the control port closes with the restart

    def _dump(self, client: socket.socket) -> None:
        with client.makefile("rb") as lines:
            password, set_id, offset = lines.readline().decode().rsplit(maxsplit=2)
        if password == PASSWORD and int(set_id) in self.device.sets:
            client.sendall(self.device.sets[int(set_id)][1][int(offset) :])

    def _host(self, client: socket.socket) -> None:
        session = NbdSession(SIZE_BYTES, self.send is None)
        client.sendall(session.take_output())
        while data := client.recv(256 << 10):
            requests = session.feed(data)
            client.sendall(session.take_output())
            for request in requests:
                client.sendall(session.reply(request, *self._serve(request)))

    def _serve(self, request: Request) -> tuple[bytes, int]:
        begin, end = request.offset_bytes, request.offset_bytes + request.length_bytes
        with self.lock:
            if request.kind == "read":
                return bytes(self.volume[begin:end]), 0
            if request.kind == "write":
                self.volume[begin:end] = request.data
                self._replicate(begin, bytes(request.data))
        return b"", 0

    # --- the primary's end of the link ---------------------------------------------------------------
    def _replicate(self, offset: int, data: bytes) -> None:
        """Until the peer has taken it: a refused copy is sent again."""
        assert self.send is not None
        wrong = self.fault()
        while True:
            crc, sent = crc32c(data), bytearray(data)
            if wrong == "bit_flip_sender":
                sent[1234] ^= 0x20
            if self.send((offset, bytes(sent), crc)) == 0:
                return
            wrong = ""
            place = f"{offset // SECTOR}s +{len(data)}"
            self.device.printed.append(f"acme: data error: {place} refused")

    # --- the secondary's -----------------------------------------------------------------------------
    def take(self, offset: int, crc: int, data: bytes) -> int:
        """Status of the answer."""
        with self.lock:
            wrong = self.fault()
            about = {"sector": offset // SECTOR, "bytes": len(data)}
            if crc32c(data) != crc:
                self.device.log("REPL_DIGEST_FAILED", "ERROR", **about)
                self.device.printed.append(f"acme: data error: {about['sector']}s +{len(data)}")
                return 1
            if wrong != "lost_write":
                self.volume[offset : offset + len(data)] = data
                number = len(self.device.events)
                self.device.log("REPL_STORE", write_no=number, **about, crc32c=crc)
            return 0


def listener() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made


def serve(made: socket.socket, talk: Callable[[socket.socket], None]) -> int:
    made.listen(8)

    def one(client: socket.socket) -> None:
        with client:
            with contextlib.suppress(OSError):
                talk(client)

    def accept() -> None:
        while True:
            threading.Thread(target=one, args=(made.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    name = made.getsockname()
    return int(name[1]) if isinstance(name, tuple) else 0


def read_message(stream: socket.socket) -> tuple[int, int, int, bytes]:
    def exactly(length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            data = stream.recv(length - len(found))
            if not data:
                raise OSError("the peer has left")
            found += data
        return bytes(found)

    _, kind, status, number, length = wire.HEAD.unpack(exactly(wire.HEAD.size))
    return kind, status, number, exactly(length)


class Link:
    """The primary's connection: one write at a time."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream, self.number = stream, 0

    def __call__(self, copy: tuple[int, bytes, int]) -> int:
        offset, data, crc = copy
        self.number += 1
        self.stream.sendall(wire.write(self.number, offset, data, crc))
        return read_message(self.stream)[1]


def main(folder: Path) -> None:
    pair = netns.make_pair()
    for side, namespace in (("primary", pair.primary), ("secondary", pair.secondary)):
        (folder / f"{side}.netns").symlink_to(namespace.path)
    secondary = AcmeController("secondary", folder, None)
    listening = pair.secondary.run(socket.socket)
    listening.bind((netns.SECONDARY_ADDRESS, wire.PORT))
    listening.listen(1)
    stream = pair.primary.run(socket.socket)
    stream.connect((netns.SECONDARY_ADDRESS, wire.PORT))
    peer = listening.accept()[0]
    for one in (stream, peer):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.sendall(wire.message(wire.HELLO))
        read_message(peer if one is stream else stream)

    def answer() -> None:
        while True:
            _, _, number, body = read_message(peer)
            offset, crc = wire.WRITE_HEAD.unpack_from(body)
            status = secondary.take(offset, crc, body[wire.WRITE_HEAD.size :])
            peer.sendall(wire.message(wire.ANSWER, number, status=status))

    threading.Thread(target=answer, daemon=True).start()
    primary = AcmeController("primary", folder, Link(stream))
    ports = {one.side: one.ports for one in (primary, secondary)}
    (folder / "ports.part").write_text(json.dumps(ports))
    (folder / "ports.part").rename(folder / "ports.json")
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
