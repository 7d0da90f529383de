"""A controller that holds one root cause data set, with the simulator's own control port, on an
inherited line: FD."""

import os
import random
import sys
from typing import Any

from freezeframe.firmware_sim.control import Operations
from freezeframe.firmware_sim.rootcause import MemoryNvram, SetStore
from freezeframe.firmware_sim.tracebuffer import TraceBuffer
from freezeframe.harness.wire.control import Reason, SetKind
from freezeframe.harness.wire.rootcause import (
    HEADER_KEYS,
    LAST_WRITES,
    RING_RECORDS,
    STATE_KEYS,
    Event,
)

SERIAL_NUMBER = "FFSIM-P-0001"
WRITES_A_BARRIER = 32


def event_log() -> bytes:
    """A full event log as a primary has it after some seconds of random 64 KiB writes, eight under
    way at a time."""
    noise, trace, unanswered = random.Random(7), TraceBuffer(), []
    write_no = 0
    while trace.next_seq < RING_RECORDS:
        trace.uptime_ns += noise.randrange(20_000, 400_000)
        if len(unanswered) < noise.randrange(1, 9):
            write_no += 1
            sector, crc = noise.randrange(0, 1 << 21, 128), noise.getrandbits(32)
            trace.add(Event.HOST_WRITE, write_no, sector, 65536, crc)
            trace.add(Event.REPL_SEND, write_no, sector, 65536, crc)
            unanswered.append((write_no, sector))
            if write_no % WRITES_A_BARRIER == 0:
                trace.add(Event.REPL_BARRIER_SENT, write_no // WRITES_A_BARRIER, WRITES_A_BARRIER)
        elif unanswered:
            done, sector = unanswered.pop(0)
            trace.add(Event.REPL_ACK_RECEIVED, done, sector)
            trace.add(Event.HOST_ACK, done)
    return trace.linear()


def stored() -> SetStore:
    """The same every time."""
    noise, sets = random.Random(8), SetStore(MemoryNvram())
    header: dict[str, Any] = dict.fromkeys(HEADER_KEYS, 0)
    header |= {"set_id": sets.next_id, "kind": SetKind.WARMSTART, "reason": Reason.CONSOLE_TRIGGER}
    header |= {"incident_id": noise.randbytes(16), "boot_epoch": 1, "serial_number": SERIAL_NUMBER}
    state: dict[str, Any] = dict.fromkeys(STATE_KEYS, 0)
    state["last_writes"] = [
        [
            n,
            noise.randrange(0, 1 << 21, 128),
            65536,
            noise.getrandbits(32),
            noise.randbytes(8),
            n * 250_000,
            3,
        ]
        for n in range(LAST_WRITES)
    ]
    sets.add(header, state, event_log())
    return sets


class Firmware:
    """What listing and reading sets needs of a controller."""

    serial_number = SERIAL_NUMBER
    boot_epoch = 1

    def __init__(self, sets: SetStore) -> None:
        self.sets = sets

    def control_seen(self, _op: int, _seq: int) -> None:
        """No trace of it: the log is what is pulled."""

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"{name}: nothing but reading of sets is asked for")


def main() -> None:
    fd, operations = int(sys.argv[1]), Operations(Firmware(stored()))
    os.write(1, b"ready\n")
    while data := os.read(fd, 4096):
        for reply in operations.feed(data):
            left = memoryview(reply)
            while left:
                left = left[os.write(fd, left) :]


if __name__ == "__main__":
    sys.exit(main())
