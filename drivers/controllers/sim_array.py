"""Driver for the controllers of ``firmware_sim``, on this machine or on a board.

It sends the control frames of ``wire.control`` over any ByteLink. Idempotent requests are repeated
when the controller does not answer, within the deadline of the caller. A line shared with the
console also carries text, which is kept for ``take_text``.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, assert_never

import cbor2

from freezeframe.harness.core import frames, rootcause
from freezeframe.harness.core.events import NS_PER_MS, Ns, Side
from freezeframe.harness.core.frames import BadFrame, Frame, FrameReceiver, TextRun
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.clock import MonotonicClock
from freezeframe.harness.errors import RigError, UsageError, WireError, WrongDeviceError
from freezeframe.harness.roles import (
    MAX_BLOCK_READ_BYTES,
    REHEARSED,
    BreakLine,
    ByteLink,
    Clock,
    Identity,
    Reply,
    RootCauseSet,
    SetEntry,
)
from freezeframe.harness.wire import control
from freezeframe.harness.wire.control import Op, Status

MODEL_FAMILY: Final = "SimArray "
"""Prefix of the model of every controller supported by this driver."""
SILENCE_NS: Final = 400 * NS_PER_MS
"""Repeat a request after this time without a byte of a frame. The longest reply takes 360 ms at
115,200 baud."""
MAX_SILENCES: Final = 12
"""Consecutive attempts without progress after which a pull is given up: about 5 s."""
WINDOW_BYTES: Final = 16 * control.MAX_SET_DATA_BYTES
"""Length of one READ_SET: whole replies, just below MAX_WINDOW_BYTES."""
WINDOWS_IN_FLIGHT: Final = 3
READ_BYTES: Final = 64 << 10
MAX_KEPT_REPLIES: Final = 32
"""Limit of replies kept while another one is awaited: the reply to a frame written by the reflex
may arrive at any time."""
assert MAX_BLOCK_READ_BYTES // control.MAX_BLOCK_DATA_BYTES < MAX_KEPT_REPLIES
MAX_TEXT_BYTES: Final = 1 << 20
MAX_REFUSAL_BYTES: Final = 200

assert WINDOW_BYTES <= control.MAX_WINDOW_BYTES


class SimArray:
    """Implements roles.Controller, roles.Serviceable, roles.Rehearsing, roles.BlockReading and
    roles.BreakingIn."""

    reads_while_booting = True
    warmstart_line: bytes = rb"warmstart: set \d+"
    boot_line: bytes = rb"boot epoch \d+, "
    frame_repeats: int = 1
    """Within a boot a second copy has the same sequence number and gets the same answer; after a restart
    its boot epoch is stale, and it is refused."""

    def __init__(
        self, side: Side, link: ByteLink, *, serial_number: str, clock: Clock | None = None
    ) -> None:
        if (
            not serial_number.isascii()
            or not 1 <= len(serial_number) <= control.SERIAL_NUMBER_BYTES
        ):
            raise UsageError(
                f"{side}: serial_number {serial_number!r}: allowed are 1 to {control.SERIAL_NUMBER_BYTES} ASCII characters"
            )
        self.side: Side = side
        self.link = link
        self.serial_number = serial_number
        self._clock = clock or MonotonicClock()
        self._receiver = FrameReceiver()
        self._seq = self._clock.now() & 0xFFFF
        """Starts at a random number, so that replies to requests of an earlier session are not
        taken for ours."""
        self._kept: OrderedDict[tuple[int, int], tuple[Frame, Ns]] = OrderedDict()
        self._frames: deque[Frame] = deque()
        self._text = bytearray()
        self.bad_frames = 0
        """Number of damaged frames received so far."""

    # --- roles.Controller ---
    def identify(self, deadline_ns: Ns) -> Identity:
        """Ask for the identity. Raises WrongDeviceError when it is not the device of the bench
        file."""
        body = self._body(self._ask(Op.IDENTIFY, b"", deadline_ns))
        reply = frames.unpack(frames.IdentityPayload, body)
        if not reply.model.startswith(MODEL_FAMILY) or reply.serial_number != self.serial_number:
            raise WrongDeviceError(
                f"{self.side}: {self.link.name} leads to {reply.model} "
                f"{reply.serial_number or 'without a serial number'}, "
                f"the bench file says {MODEL_FAMILY}with serial number {self.serial_number}"
            )
        return Identity(
            model=reply.model,
            serial_number=reply.serial_number,
            firmware_version=reply.firmware_version,
            boot_epoch=reply.boot_epoch,
            role=reply.role,
            pair_state=control.PAIR_STATE_NAMES.get(
                reply.pair_state, f"pair state {reply.pair_state}"
            ),
            uptime_ns=reply.uptime_ns,
            events_logged=reply.events_logged,
            capabilities=reply.capabilities,
        )

    def freeze_frame(
        self, identity: Identity, reason: int, incident_id: bytes, *, disruptive: bool = True
    ) -> bytes:
        """Encode WARMSTART, or STATE_SAVE when not disruptive, for this target in this boot."""
        if len(incident_id) != control.INCIDENT_ID_BYTES:
            raise UsageError(
                f"incident id of {len(incident_id)} bytes, it has {control.INCIDENT_ID_BYTES}"
            )
        request = frames.FreezePayload(
            identity.serial_number, identity.boot_epoch, reason, incident_id
        )
        op = Op.WARMSTART if disruptive else Op.STATE_SAVE
        return frames.encode(op, self._next_seq(), frames.pack(request))

    def freeze_reply(self, frame: bytes, deadline_ns: Ns) -> Reply | None:
        sent = frames.decode(frame)
        found = self._wait_for(
            sent.type, sent.seq, deadline_ns, max(0, deadline_ns - self._clock.now())
        )
        return self._reply(*found) if found else None

    # --- roles.Rehearsing ---
    def rehearse(self, frame: bytes, deadline_ns: Ns) -> Reply:
        """The same frame with a reason that there is not: the controller reads all of it, finds
        itself and this boot named, and refuses it where it would act."""
        sent = frames.decode(frame)
        request = frames.unpack(frames.FreezePayload, sent.payload)
        payload = frames.pack(replace(request, reason=control.REHEARSAL_REASON))
        asked = frames.encode(Op(sent.type), self._next_seq(), payload)
        assert len(asked) == len(frame)
        self.link.write(asked)
        reply = self.freeze_reply(asked, deadline_ns)
        if reply is None:
            return Reply(ok=False, status="no answer", t_received_ns=self._clock.now())
        if reply.status != frames.status_name(Status.BAD_ARGUMENT):
            return replace(reply, ok=False)
        return replace(reply, ok=True, status=REHEARSED)

    def state(self, deadline_ns: Ns) -> dict[str, Any]:
        record = rootcause.decode_cbor(self._body(self._ask(Op.GET_STATE, b"", deadline_ns)))
        if not isinstance(record, dict):
            raise WireError(f"{self.side}: the state record is not a map")
        return record

    def sets(self, deadline_ns: Ns) -> list[SetEntry]:
        body = self._body(self._ask(Op.LIST_SETS, b"", deadline_ns))
        if (
            len(body) % control.SET_ENTRY.size
            or len(body) > control.MAX_SETS * control.SET_ENTRY.size
        ):
            raise WireError(
                f"{self.side}: the list of sets has {len(body)} bytes, which is not a list"
            )
        entries = [
            frames.unpack(frames.SetEntryPayload, body, at)
            for at in range(0, len(body), control.SET_ENTRY.size)
        ]
        return [
            SetEntry(
                set_id=entry.set_id,
                kind=_kind_name(entry.kind),
                complete=bool(entry.complete),
                reason=entry.reason,
                incident_id=entry.incident_id,
                raw_bytes=entry.raw_bytes,
                stored_bytes=entry.stored_bytes,
                boot_epoch=entry.boot_epoch,
                sha256=entry.sha256.hex(),
            )
            for entry in entries
        ]

    def pull(
        self, entry: SetEntry, have: bytes, deadline_ns: Ns, progress: Callable[[bytes], None]
    ) -> RootCauseSet:
        """Pull a set with several READ_SET windows in flight; data lost on the line is requested
        again."""
        if (
            max(entry.stored_bytes, entry.raw_bytes) > control.MAX_SET_BYTES
            or len(have) > entry.stored_bytes
        ):
            raise WireError(
                f"{self.side}: set {entry.set_id} of {entry.stored_bytes} bytes cannot be"
            )
        pull = _Pull(entry.set_id, entry.stored_bytes, len(have))
        stored = bytearray(have)
        silences = 0
        while pull.next_offset < entry.stored_bytes:
            self._ask_for(pull)
            frame = self._next_frame(deadline_ns, SILENCE_NS)
            arrived = self._take_chunk(pull, frame) if frame else b""
            if arrived:
                silences = 0
                stored += arrived
                progress(arrived)
            elif frame is None:
                silences += 1
                if silences > MAX_SILENCES or self._clock.now() >= deadline_ns:
                    raise RigError(
                        f"{self.side}: {self.link.name} is silent, "
                        f"{pull.next_offset} of {entry.stored_bytes} bytes of set {entry.set_id} have arrived"
                    )
                pull.lose_what_is_in_flight()
        return rootcause.decode(bytes(stored), entry.sha256)

    # --- roles.BlockReading ---
    def read_blocks(self, offset_bytes: int, length_bytes: int, deadline_ns: Ns) -> bytes:
        """Ask for all pieces at once; one that is lost or damaged on the line is asked for again."""
        data = bytearray()
        end = offset_bytes + length_bytes
        requests = []
        for at in range(offset_bytes, end, control.MAX_BLOCK_DATA_BYTES):
            asked = min(control.MAX_BLOCK_DATA_BYTES, end - at)
            request = frames.pack(frames.ReadBlocksPayload(at, asked))
            requests.append((self._next_seq(), at, asked, request))
            self.link.write(frames.encode(Op.READ_BLOCKS, requests[-1][0], request))
        for seq, at, asked, request in requests:
            found = self._wait_for(Op.READ_BLOCKS, seq, deadline_ns, SILENCE_NS)
            body = self._body(found or self._ask(Op.READ_BLOCKS, request, deadline_ns))
            piece = body[control.BLOCK_DATA.size :]
            if (
                frames.unpack(frames.BlockDataPayload, body).offset_bytes != at
                or len(piece) != asked
            ):
                raise WireError(
                    f"{self.side}: asked for {asked} bytes at {at}, the answer is of another place or length"
                )
            data += piece
        return bytes(data)

    # --- roles.BreakingIn ---
    def break_in(self, deadline_ns: Ns) -> None:
        """The firmware takes a BREAK as an NMI: nothing has to follow."""
        if not isinstance(self.link, BreakLine):
            raise RigError(f"{self.side}: {self.link.name} carries no BREAK")
        self.link.send_break()

    # --- roles.Serviceable ---
    def acknowledge(self, entry: SetEntry, identity: Identity, deadline_ns: Ns) -> Reply:
        request = frames.AcknowledgeSetPayload(
            identity.serial_number, identity.boot_epoch, entry.set_id, bytes.fromhex(entry.sha256)
        )
        return self._reply(*self._ask(Op.ACK_SET, frames.pack(request), deadline_ns))

    def set_faults(self, identity: Identity, plan: Mapping[str, Any], deadline_ns: Ns) -> Reply:
        target = frames.pack(frames.TargetPayload(identity.serial_number, identity.boot_epoch))
        return self._reply(*self._ask(Op.SET_FAULTS, target + cbor2.dumps(dict(plan)), deadline_ns))

    def print_line(self, text: str, deadline_ns: Ns) -> Reply:
        line = text.encode()
        if not 1 <= len(line) <= control.PRINT_MAX_BYTES:
            raise UsageError(
                f"a line to print has 1 to {control.PRINT_MAX_BYTES} bytes, not {len(line)}"
            )
        return self._reply(*self._ask(Op.PRINT, line, deadline_ns))

    def set_trace_level(self, identity: Identity, level: int, deadline_ns: Ns) -> Reply:
        request = frames.TraceLevelPayload(identity.serial_number, identity.boot_epoch, level)
        return self._reply(*self._ask(Op.SET_TRACE_LEVEL, frames.pack(request), deadline_ns))

    def take_text(self) -> bytes:
        """Return the console text received over the control line since the last call; at most the
        newest MAX_TEXT_BYTES."""
        text = bytes(self._text)
        self._text.clear()
        return text

    # --- requests and replies ---
    def _ask(self, op: Op, payload: bytes, deadline_ns: Ns) -> tuple[Frame, Ns]:
        """Send a request and wait for its reply; repeat it after each silence.

        The same bytes are sent each time. A controller that has already executed them repeats its
        answer and does nothing else.
        """
        seq = self._next_seq()
        request = frames.encode(op, seq, payload)
        tries = 0
        while True:
            self.link.write(request)
            tries += 1
            found = self._wait_for(op, seq, deadline_ns, SILENCE_NS)
            if found:
                return found
            if self._clock.now() >= deadline_ns:
                raise RigError(
                    f"{self.side}: the controller at {self.link.name} does not answer {op.name} "
                    f"(asked {tries} times, {self.bad_frames} damaged frames seen); is it powered, and is the line right?"
                )

    def _wait_for(
        self, op: int, seq: int, deadline_ns: Ns, silence_ns: Ns
    ) -> tuple[Frame, Ns] | None:
        """Return the reply to ``op``, already received or still to come, and its time. Replies to
        other requests are kept."""
        kept = self._kept.pop((op | control.REPLY, seq), None)
        if kept:
            return kept
        while frame := self._next_frame(deadline_ns, silence_ns):
            if (frame.type, frame.seq) == (op | control.REPLY, seq):
                return frame, self._clock.now()
            self._keep(frame)
        return None

    def _keep(self, frame: Frame) -> None:
        self._kept[frame.type, frame.seq] = frame, self._clock.now()
        if len(self._kept) > MAX_KEPT_REPLIES:
            self._kept.popitem(last=False)

    def _next_frame(self, deadline_ns: Ns, silence_ns: Ns) -> Frame | None:
        """Return the next frame of the line; None at the deadline, or after ``silence_ns`` without
        a byte of a frame."""
        quiet_until_ns = self._clock.now() + silence_ns
        while not self._frames:
            data = self.link.read(READ_BYTES, min(deadline_ns, quiet_until_ns))
            if not data:
                return None
            for received in self._receiver.feed(data):
                match received:
                    case Frame():
                        self._frames.append(received)
                    case TextRun(data=text):
                        self._text += text
                        del self._text[:-MAX_TEXT_BYTES]
                    case BadFrame():
                        self.bad_frames += 1
                    case _:
                        assert_never(received)
            now_ns = self._clock.now()
            if self._receiver.in_frame:
                quiet_until_ns = now_ns + silence_ns
            elif not self._frames and now_ns >= min(deadline_ns, quiet_until_ns):
                return None
        return self._frames.popleft()

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFF
        return self._seq

    def _body(self, answer: tuple[Frame, Ns]) -> bytes:
        """Return the data after the status. A refused query is a failure of the device: WireError."""
        status, body = self._status(answer[0])
        if status != Status.OK:
            raise WireError(
                f"{self.side}: {frames.op_name(answer[0].type)}: {_refusal(status, body)}"
            )
        return body

    def _reply(self, frame: Frame, t_received_ns: Ns) -> Reply:
        status, body = self._status(frame)
        if status != Status.OK:
            return Reply(
                ok=False,
                status=frames.status_name(status),
                text=escape(body[:MAX_REFUSAL_BYTES]),
                t_received_ns=t_received_ns,
            )
        if frame.type & ~control.REPLY not in (Op.WARMSTART, Op.STATE_SAVE):
            return Reply(ok=True, status=frames.status_name(status), t_received_ns=t_received_ns)
        frozen = frames.unpack(frames.FreezeReplyPayload, body)
        return Reply(
            ok=True,
            status=frames.status_name(status),
            set_id=frozen.set_id,
            boot_epoch=frozen.boot_epoch,
            events_logged=frozen.events_logged,
            uptime_ns=frozen.uptime_ns,
            t_received_ns=t_received_ns,
        )

    def _status(self, frame: Frame) -> tuple[int, bytes]:
        if not frame.payload:
            raise WireError(
                f"{self.side}: a reply to {frames.op_name(frame.type)} without a status"
            )
        return frame.payload[0], frame.payload[control.STATUS.size :]

    def _ask_for(self, pull: "_Pull") -> None:
        for offset_bytes, length_bytes in pull.windows_to_ask():
            seq = self._next_seq()
            pull.seqs.add(seq)
            request = frames.ReadSetPayload(pull.set_id, offset_bytes, length_bytes)
            self.link.write(frames.encode(Op.READ_SET, seq, frames.pack(request)))

    def _take_chunk(self, pull: "_Pull", frame: Frame) -> bytes:
        """Return the bytes that ``frame`` adds in order; b"": none."""
        if frame.type != Op.READ_SET | control.REPLY:
            self._keep(frame)
            return b""
        status, body = self._status(frame)
        if status != Status.OK:
            if frame.seq in pull.seqs:
                raise WireError(f"{self.side}: set {pull.set_id}: {_refusal(status, body)}")
            return b""
        head = frames.unpack(frames.SetDataPayload, body)
        if head.set_id != pull.set_id:
            return b""
        return pull.take(head.offset_bytes, body[control.SET_DATA.size :])


class _Pull:
    """Tracks which bytes of a set have arrived, and which to request. A serial line keeps the
    order: a chunk that arrives before the expected one shows that the expected one is lost, and it
    is requested again at once."""

    def __init__(self, set_id: int, total_bytes: int, have_bytes: int) -> None:
        self.set_id = set_id
        self.next_offset = have_bytes
        """All bytes before this offset have arrived."""
        self.seqs: set[int] = set()
        """Of this pull's requests."""
        self._total_bytes = total_bytes
        self._asked_to = have_bytes
        self._early: dict[int, bytes] = {}
        """Offset -> chunk that arrived before an earlier one."""
        self._lost: list[tuple[int, int]] = []
        self._in_order_to = have_bytes
        """Offset of the next chunk of the first pass; gaps before it have been requested again."""

    def windows_to_ask(self) -> list[tuple[int, int]]:
        """Return (offset, length) of the requests to send now."""
        windows, self._lost = self._lost, []
        while self._asked_to < min(
            self._total_bytes, self.next_offset + WINDOWS_IN_FLIGHT * WINDOW_BYTES
        ):
            length = min(WINDOW_BYTES, self._total_bytes - self._asked_to)
            windows.append((self._asked_to, length))
            self._asked_to += length
        return windows

    def lose_what_is_in_flight(self) -> None:
        """Handle a silent line: requested data that has not arrived is lost."""
        ends = [*sorted(self._early), self._asked_to]
        start = self.next_offset
        for end in ends:
            while start < end:
                length = min(WINDOW_BYTES, end - start)
                self._lost.append((start, length))
                start += length
            start = max(start, end + len(self._early.get(end, b"")))
        self._in_order_to = self._asked_to

    def take(self, offset: int, data: bytes) -> bytes:
        """Add a chunk and return the bytes that are now in order. Raises WireError when it ends
        after the set."""
        if offset + len(data) > self._total_bytes:
            raise WireError(
                f"set {self.set_id} has {self._total_bytes} bytes, a chunk ends at {offset + len(data)}"
            )
        if offset + len(data) > self._asked_to or offset + len(data) <= self.next_offset:
            return b""
        if offset > self.next_offset:
            self._early.setdefault(offset, data)
            gap_start = max(self.next_offset, self._in_order_to)
            if offset > gap_start:
                self._lost.append((gap_start, min(offset - gap_start, WINDOW_BYTES)))
            self._in_order_to = max(self._in_order_to, offset + len(data))
            return b""
        self._in_order_to = max(self._in_order_to, offset + len(data))
        added = bytearray(data[self.next_offset - offset :])
        self.next_offset += len(added)
        for early in sorted(self._early):
            if early > self.next_offset:
                break
            rest = self._early.pop(early)[self.next_offset - early :]
            added += rest
            self.next_offset += len(rest)
        return bytes(added)


def _kind_name(kind: int) -> str:
    try:
        return control.SetKind(kind).name.lower().replace("_", " ")
    except ValueError:
        return f"kind {kind}"


def _refusal(status: int, text: bytes) -> str:
    said = escape(text[:MAX_REFUSAL_BYTES])
    return frames.status_name(status) + (f" ({said})" if said else "")
