"""The driver of one controller: how FreezeFrame asks it, instructs it, and collects its data set.

The device of this skeleton answers lines of text on its control line. Each line begins with the
number of the question, so that an answer which comes late is not taken for another one's:

    12 who                                      12 ok serial_number=SK-1 boot_epoch=3 ...
    13 freeze SK-1 3 0 INCIDENT save            13 ok set_id=1 boot_epoch=3 ...
    14 sets                                     14 + set_id=1 kind=save ...     14 ok
    15 read 1 0 2048                            15 ok data=BASE64
    16 print text                               16 ok
    anything that it will not do                16 refused why

Replace the questions and their answers by your device's; keep what each method returns.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from freezeframe.driver import (
    PAIR_STATE_NAMES,
    ByteLink,
    Clock,
    Identity,
    MonotonicClock,
    Ns,
    Reply,
    RigError,
    RootCauseSet,
    SetEntry,
    Side,
    WireError,
    WrongDeviceError,
    set_header,
    state_record,
)

MODEL = "Skeleton"
MAX_LINE_BYTES = 64 << 10
TELLS = frozenset({"REPL_DIGEST_FAILED", "REPL_STORE"})
"""Events that the log of this device always holds when they happen. Name none that it may leave out:
FreezeFrame concludes from their absence."""


class SkeletonDriver:
    """Plays ``Controller``, ``Printing`` and ``FaultArming`` of freezeframe.driver."""

    warmstart_line = rb"skeleton: warmstart"
    """Regex: what the console prints first when a warmstart begins."""
    boot_line = rb"skeleton: boot \d+"
    """Regex: what it prints first in a boot."""

    @dataclass(frozen=True)
    class Options:
        """``[primary.options]`` of the bench file. A password is a field of type Secret."""

        read_bytes: int = 2048
        """Bytes per question of a pull."""

    def __init__(
        self,
        side: Side,
        link: ByteLink,
        *,
        serial_number: str,
        options: Options | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.side: Side = side
        self.link = link
        self.serial_number = serial_number
        self.options = options or self.Options()
        self._clock = clock or MonotonicClock()
        self._number = self._clock.now() // 1000 % 1_000_000
        self._held = bytearray()

    # --- Controller ------------------------------------------------------------------------------
    def identify(self, deadline_ns: Ns) -> Identity:
        """RigError when nobody answers, WireError when the answer makes no sense,
        WrongDeviceError when somebody else answers."""
        who = self._ask("who", deadline_ns)
        if who.get("serial_number") != self.serial_number:
            raise WrongDeviceError(
                f"{self.side}: {self.link.name} leads to {who.get('serial_number')!r}, the bench file says "
                f"{self.serial_number!r}"
            )
        return Identity(
            model=MODEL,
            serial_number=self.serial_number,
            firmware_version=who.get("version", ""),
            boot_epoch=_number(who, "boot_epoch"),
            role=_number(who, "role"),
            pair_state=PAIR_STATE_NAMES.get(_number(who, "pair_state"), "suspended"),
            uptime_ns=_number(who, "uptime_ns"),
            events_logged=_number(who, "events_logged"),
        )

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        """No I/O: it is written later, by another process. The device must refuse it unless it is
        this one in this boot."""
        self._number += 1
        act = "warmstart" if disruptive else "save"
        target = f"{identity.serial_number} {identity.boot_epoch}"
        return f"{self._number} freeze {target} {reason} {incident_id.hex()} {act}\n".encode()

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        number = frame.split()[0]
        while line := self._line(deadline_ns):
            if line.split()[:1] == [number]:
                return self._reply(line)
        return None

    def state(self, deadline_ns: Ns) -> dict[str, Any]:
        who = self._ask("who", deadline_ns)
        known = ("role", "pair_state", "boot_epoch", "uptime_ns")
        return state_record(**{key: _number(who, key) for key in known})

    def sets(self, deadline_ns: Ns) -> list[SetEntry]:
        number, found = self._send("sets"), list[SetEntry]()
        while True:
            words = self._answer(number, deadline_ns).split()
            if words[1] == b"ok":
                return found
            if words[1] != b"+":
                raise WireError(f"{self.side}: sets: {b' '.join(words[1:])[:80]!r}")
            found.append(_entry(_fields(words[2:])))

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: Ns, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        """Goes on after ``have``; each new byte goes to ``progress`` as it comes."""
        stored = bytearray(have)
        while len(stored) < entry.stored_bytes:
            wanted = min(self.options.read_bytes, entry.stored_bytes - len(stored))
            answer = self._ask(f"read {entry.set_id} {len(stored)} {wanted}", deadline_ns)
            try:
                piece = base64.b64decode(answer.get("data", ""), validate=True)
            except (binascii.Error, ValueError) as error:
                raise RigError(f"{self.side}: a damaged answer of {self.link.name}") from error
            if len(piece) != wanted:
                raise RigError(f"{self.side}: {len(piece)} bytes instead of {wanted}")
            stored += piece
            progress(piece)
        found = hashlib.sha256(stored).hexdigest()
        if found != entry.sha256:
            raise WireError(f"the set's SHA-256 is {found}, its device listed {entry.sha256}")
        return self.decode_set(bytes(stored), self.serial_number)

    @staticmethod
    def decode_set(stored: bytes, serial_number: str) -> RootCauseSet:
        """Pure: an incident is read again years later, without the device. WireError: damaged."""
        try:
            content = json.loads(stored)
            header = content["header"] | {"serial_number": serial_number, "model": MODEL}
            header["incident_id"] = bytes.fromhex(header["incident_id"])
            return RootCauseSet(
                header=set_header(**header),
                state=state_record(**content["state"]),
                events=content["events"],
                tells=TELLS,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise WireError(f"not a set of this device: {error!r}"[:200]) from error

    # --- Printing --------------------------------------------------------------------------------
    def print_line(self, text: str, deadline_ns: Ns) -> Reply:
        return self._reply(self._answer(self._send(f"print {text}"), deadline_ns))

    # --- FaultArming: for test firmware, else remove it ------------------------------------------
    def set_faults(self, identity: Identity, plan: Mapping[str, Any], deadline_ns: Ns) -> Reply:
        target = f"{identity.serial_number} {identity.boot_epoch}"
        faults = " ".join(f"{one['kind']}:{one['at_write']}" for one in plan["faults"])
        return self._reply(self._answer(self._send(f"faults {target} {faults}"), deadline_ns))

    # --- questions and answers -------------------------------------------------------------------
    def _send(self, question: str) -> int:
        self._number += 1
        self.link.write(f"{self._number} {question}\n".encode())
        return self._number

    def _ask(self, question: str, deadline_ns: Ns) -> dict[str, str]:
        words = self._answer(self._send(question), deadline_ns).split()
        if words[1] != b"ok":
            raise WireError(f"{self.side}: {question}: {b' '.join(words[1:])[:80]!r}")
        return _fields(words[2:])

    def _answer(self, number: int, deadline_ns: Ns) -> bytes:
        """The next line that answers question ``number``. RigError: none came by the deadline."""
        while line := self._line(deadline_ns):
            words = line.split(maxsplit=2)
            if len(words) >= 2 and words[0] == str(number).encode():
                return line
        raise RigError(f"{self.side}: no answer on {self.link.name}: is the device powered?")

    def _line(self, deadline_ns: Ns) -> bytes:
        """The next line, b"" at the deadline. Its length is bounded: the device may print noise."""
        while b"\n" not in self._held:
            data = self.link.read(4096, deadline_ns)
            if not data:
                return b""
            self._held += data
            if len(self._held) > MAX_LINE_BYTES:
                del self._held[:-4096]
        line, _, rest = bytes(self._held).partition(b"\n")
        self._held[:] = rest
        return line.strip() or b"?"

    def _reply(self, line: bytes) -> Reply:
        words = line.split()
        given = _fields(words[2:])
        is_ok = words[1:2] == [b"ok"]
        return Reply(
            ok=is_ok,
            status="ok" if is_ok else b" ".join(words[2:]).decode("ascii", "replace")[:80],
            set_id=_number(given, "set_id"),
            boot_epoch=_number(given, "boot_epoch"),
            events_logged=_number(given, "events_logged"),
            uptime_ns=_number(given, "uptime_ns"),
            t_received_ns=self._clock.now(),
        )


def _fields(words: list[bytes]) -> dict[str, str]:
    """Words of the form key=value."""
    parts = (word.decode("ascii", "replace").partition("=") for word in words)
    return {key: value for key, equals, value in parts if equals}


def _number(fields: Mapping[str, str], key: str) -> int:
    text = fields.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise WireError(f"{key} is {text[:40]!r}, not a number")
    return int(text)


def _entry(fields: Mapping[str, str]) -> SetEntry:
    try:
        incident_id = bytes.fromhex(fields.get("incident_id", ""))
    except ValueError as error:
        raise WireError(f"incident_id is {fields['incident_id'][:40]!r}") from error
    return SetEntry(
        set_id=_number(fields, "set_id"),
        kind=fields.get("kind", ""),
        complete=fields.get("complete") == "1",
        reason=_number(fields, "reason"),
        incident_id=incident_id,
        raw_bytes=_number(fields, "stored_bytes"),
        stored_bytes=_number(fields, "stored_bytes"),
        boot_epoch=_number(fields, "boot_epoch"),
        sha256=fields.get("sha256", ""),
    )
