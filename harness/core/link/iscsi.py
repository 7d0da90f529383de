"""iSCSI as a protocol of the link: a mirror whose far leg is a remote disk.

One TCP connection a session, opened by the initiator. A write travels as immediate data of its SCSI
Command, or in Data-Out PDUs after R2Ts, or both; the SCSI Response answers it by the initiator task
tag, which is unique while the command is under way. Digests begin after the login, and only its
text says which: for a capture that begins later they are found by trying.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from crc32c import crc32c

from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.link.messages import (
    Answer,
    AnswerKind,
    Leaving,
    LinkMessage,
    LinkSession,
    Opened,
    Other,
    ReplicatedWrite,
    WriteKind,
    WritePart,
)
from freezeframe.harness.core.link.pdus import (
    EXCERPT_BYTES,
    Pdu,
    PduConnection,
    PduDirection,
    PduLink,
    Where,
)
from freezeframe.harness.core.link.protocol import Opening, Tell
from freezeframe.harness.wire import iscsi as wire
from freezeframe.harness.wire.iscsi import IscsiOp

MAX_IN_FLIGHT: Final = 65_536
_HEADER_DIGEST_KEY: Final = b"HeaderDigest="
_DATA_DIGEST_KEY: Final = b"DataDigest="
_CRC32C: Final = b"CRC32C"
_MAX_UNPROVEN_BYTES: Final = 1 << 18
"""Of data after something that may be a header: a longer wait would be for nothing."""
_SEQUENCE_BYTES: Final = 1 << 20
"""How far in the stream the sequence number of a PDU restricts those that come after it: at most 21,845
PDUs fit in between. After more bytes nothing is known of the sequence."""
_MAX_SEQUENCE_STEP: Final = 1 << 16
"""Within _SEQUENCE_BYTES, in what an end expects of the other end: one for each PDU in between, and the
commands under way."""
_MAX_SEQUENCE_BACK: Final = 1 << 12
"""Linux's Data-Out repeats what was expected when its R2T came: as many commands as Linux has under way
may have been answered since."""
_LOGIN: Final = frozenset({IscsiOp.LOGIN, IscsiOp.LOGIN_RESPONSE})
"""Never digested."""


def shown_id(write_id: bytes) -> str:
    """The task tag as Wireshark shows it; a target's console prints its bytes in reverse."""
    return f"0x{write_id.hex()}"


@dataclass(eq=False)
class IscsiSession(LinkSession):
    protocol: str = "iscsi"
    id_name: str = "task tag"
    show_id: Callable[[bytes], str] = shown_id


@dataclass(eq=False)
class _Connection(PduConnection[IscsiSession]):
    """Both directions of one connection: what its login agreed on, and the writes under way."""

    header_digest: bool | None = None
    """None: not known, found by trying."""
    data_digest: bool | None = None
    asked_header: bool | None = None
    asked_data: bool | None = None
    """What the target's login text says so far; in force once the login has ended."""
    block_bytes: int = 0
    in_flight: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """Task tag -> bytes that the command carries."""

    def lose_sight(self) -> None:
        super().lose_sight()
        self.in_flight.clear()

    def forget_guesses(self) -> None:
        self.header_digest = self.data_digest = None


@dataclass(frozen=True, slots=True)
class _Parts:
    """Where the parts of a PDU stand."""

    op: int
    headers_end: int
    data_at: int
    data_bytes: int
    data_end: int
    """With the pad."""
    has_header_digest: bool
    has_data_digest: bool


class IscsiLink(PduLink[IscsiSession, _Connection]):
    """The protocol: see ``core.link.protocol.ReplicationProtocol``."""

    name: Final = "iscsi"
    ports: Final = (wire.PORT,)
    tells: Final = frozenset({Tell.WRITE, Tell.DIGEST, Tell.ANSWER, Tell.STATUS})
    refuses_by: Final = "closing"
    wireshark: Final = "iscsi.initiatortasktag == {write_id}"

    def make_session(self, number: int, ends: tuple[str, str], port: int, t_ns: Ns) -> IscsiSession:
        primary = self.options.primary_address
        return IscsiSession(number, ends, port, t_ns, primary_address=primary)

    def make_connection(self, opening: Opening) -> _Connection:
        both = _Connection(self.associations.new_session(opening))
        if opening.from_start:
            both.asked_header = both.asked_data = False  # unless the text says so
        return both

    def make_direction(self, both: _Connection, opening: Opening) -> IscsiDirection:
        return IscsiDirection(self, both, opening)


class IscsiDirection(PduDirection[_Connection]):
    """One direction of one connection."""

    _sequence: int | None = None
    """What the newest PDU that is believed said that it expects next; None: not known."""
    _sequence_end: int = 0
    """Offset in the stream of the end of that PDU."""

    # --- PDUs ------------------------------------------------------------------------------------
    def measure(self, data: bytearray, at: int) -> int | str:
        if len(data) - at < wire.BHS_BYTES:
            return 0
        op = data[at] & wire.OPCODE_MASK
        if op not in IscsiOp._value2member_map_:
            return f"no PDU has the opcode {op:#04x}"
        if self.sends_writes is not None and (op in wire.FROM_INITIATOR) is not self.sends_writes:
            return f"{IscsiOp(op).name} from the wrong end"
        if op not in wire.IN_SEQUENCE and not data[at + 1] & wire.FINAL:
            return f"{IscsiOp(op).name} without its final bit"
        if op in _LOGIN and (data[at + 4] or _data_bytes(data, at) > wire.MAX_LOGIN_BYTES):
            words, length = data[at + 4], _data_bytes(data, at)
            return f"{IscsiOp(op).name} with {words} words of headers and {length} bytes of data"
        if self.stream.unproven:
            if op in _LOGIN:  # neither digest nor sequence proves one, and it comes first only
                return f"{IscsiOp(op).name} in the middle of a connection"
            if not _is_plausible(data, at):
                return f"{IscsiOp(op).name} with what only another PDU may have"
            before = self._sequence_near(at)
            if before is not None and not _follows(before, data, at):
                return f"{IscsiOp(op).name} out of sequence"
        if op not in _LOGIN:
            found = self._find_digests(data, at)
            if found is not True:
                return found
        parts = self._parts(data, at)
        if self.stream.looking and parts.has_header_digest:
            end = parts.headers_end
            if len(data) - at >= end + 4 and not _digest_is(data[at : at + end], data, at + end):
                return "its header digest is wrong"
        return parts.data_end + (4 if parts.has_data_digest else 0)

    def is_own(self, pdu: Pdu) -> bool:
        """A connection begins with the login's text; a header alone may be a stranger's small numbers."""
        key, is_text, _ = pdu.body[wire.BHS_BYTES :].partition(b"=")
        return pdu.body[0] & wire.OPCODE_MASK in _LOGIN and bool(is_text) and key.isalnum()

    def _sequence_near(self, at: int) -> int | None:
        """What the newest PDU that is believed expects next; None: there is none within _SEQUENCE_BYTES."""
        is_near = self.stream.offset_bytes + at - self._sequence_end <= _SEQUENCE_BYTES
        return self._sequence if is_near else None

    def _find_digests(self, data: bytearray, at: int) -> Literal[True] | int | str:
        """In a capture that lacks the login: find whether digests follow the first header and the
        first data. 0: more bytes are needed; text: no PDU begins here."""
        both = self.both
        is_unproven = both.header_digest is False and self.stream.looking
        if is_unproven and self._sequence_near(at) is None:
            found = self._follows_undigested(data, at)
            if found is not True:
                return found
        if both.header_digest is None:
            end = at + wire.BHS_BYTES + data[at + 4] * 4
            if len(data) < end + 4:
                return 0
            if _digest_is(data[at:end], data, end):
                both.header_digest = True
            else:
                found = self._follows_undigested(data, at)
                if found is not True:
                    return found
                both.header_digest = False
        parts = self._parts(data, at)
        if both.data_digest is None and parts.data_bytes:
            begin, end = at + parts.data_at, at + parts.data_end
            head = at + parts.headers_end
            if (
                parts.has_header_digest
                and len(data) >= head + 4
                and not _digest_is(data[at:head], data, head)
            ):
                return True  # what is no header tells nothing about its data
            if len(data) < end + 4:
                return 0
            both.data_digest = _digest_is(data[begin:end], data, end)
        return True

    def _follows_undigested(self, data: bytearray, at: int) -> Literal[True] | int | str:
        """Whether another header of the same end, which goes on in sequence, follows where it would
        without digests: one that only looks like a header, in the middle of data, is not taken for
        one."""
        parts = self._parts(data, at)
        if parts.data_bytes > _MAX_UNPROVEN_BYTES:
            return "a long PDU without proof"
        following = at + parts.data_end
        if len(data) < following + wire.BHS_BYTES:
            return 0
        if parts.data_bytes and _digest_is(data[at + parts.data_at : following], data, following):
            following += wire.DIGEST.size  # data may be digested where headers are not
            if len(data) < following + wire.BHS_BYTES:
                return 0
        op = data[following] & wire.OPCODE_MASK
        is_same_end = (op in wire.FROM_INITIATOR) is (parts.op in wire.FROM_INITIATOR)
        if not is_same_end or not _is_plausible(data, following):
            return "no PDU follows it"
        sequence = _sequence_of(data, at)
        if not sequence or not _follows(sequence, data, following):
            return "what follows it is out of sequence"
        return True

    def _parts(self, data: bytes | bytearray, at: int) -> _Parts:
        first, _, _, _, words, length, _, _ = wire.BHS.unpack_from(data, at)
        op = first & wire.OPCODE_MASK
        headers_end = wire.BHS_BYTES + words * 4
        is_login = op in _LOGIN
        header_digest = bool(self.both.header_digest) and not is_login
        data_at = headers_end + (4 if header_digest else 0)
        data_bytes = int.from_bytes(length, "big")
        data_end = data_at + (data_bytes + 3) // 4 * 4
        data_digest = bool(self.both.data_digest) and not is_login and data_bytes > 0
        return _Parts(op, headers_end, data_at, data_bytes, data_end, header_digest, data_digest)

    def confirm(self, body: bytes) -> bool | None:
        parts = self._parts(body, 0)
        end = parts.headers_end
        return _digest_is(body[:end], body, end) if parts.has_header_digest else None

    def take(self, pdu: Pdu, out: list[LinkMessage]) -> None:
        body = pdu.body
        parts = self._parts(body, 0)
        name = IscsiOp(parts.op).name
        if not pdu.tentative:  # what only looks like one must not turn the direction round
            self.sends_writes = parts.op in wire.FROM_INITIATOR
        carries = parts.op in (
            IscsiOp.SCSI_COMMAND,
            IscsiOp.DATA_OUT,
            IscsiOp.DATA_IN,
            IscsiOp.LOGIN,
            IscsiOp.TEXT,
        )
        where = self.where(pdu, name, parts.data_at if carries else len(body))
        end = parts.headers_end
        if parts.has_header_digest and not _digest_is(body[:end], body, end):
            received = wire.DIGEST.unpack_from(body, end)[0]
            what = f"{name}: header digest {received:#x}, computed {crc32c(body[:end]):#x}"
            out.append(self.malformed(what, body[:EXCERPT_BYTES], pdu))
            return
        if not pdu.tentative and parts.op not in _LOGIN:
            self._sequence, self._sequence_end = _sequence_of(body, 0), pdu.offset + len(body)
        match parts.op:
            case IscsiOp.SCSI_COMMAND:
                self._command(pdu, parts, where, out)
            case IscsiOp.DATA_OUT:
                self._data_out(pdu, parts, where, out)
            case IscsiOp.SCSI_RESPONSE:
                self._response(pdu, parts, where, out)
            case IscsiOp.LOGIN_RESPONSE:
                self._login(pdu, parts, where, out)
            case IscsiOp.LOGOUT:
                out.append(Leaving(*where))
            case _:
                out.append(Other(*where))

    def _login(self, pdu: Pdu, parts: _Parts, where: Where, out: list[LinkMessage]) -> None:
        both, body = self.both, pdu.body
        for text in body[parts.data_at : parts.data_at + parts.data_bytes].split(b"\0"):
            if text.startswith(_HEADER_DIGEST_KEY):
                both.asked_header = text.removeprefix(_HEADER_DIGEST_KEY) == _CRC32C
            elif text.startswith(_DATA_DIGEST_KEY):
                both.asked_data = text.removeprefix(_DATA_DIGEST_KEY) == _CRC32C
        out.append(Other(*where))
        flags = body[wire.FLAGS_AT]
        refused = bool(body[36])
        if refused or not flags & wire.FINAL:
            return
        if flags & wire.LOGIN_STAGE_MASK == wire.FULL_FEATURE:
            both.header_digest, both.data_digest = both.asked_header, both.asked_data
            if both.header_digest is None or both.data_digest is None:
                return  # the text that says it was not captured
            header = "on" if both.header_digest else "off"
            data = "on" if both.data_digest else "off"
            agreed = f"iSCSI, header digest {header}, data digest {data}"
            out.append(Opened(both.session, pdu.t_ns, agreed))

    def _checked_data(self, pdu: Pdu, parts: _Parts) -> tuple[bytes, bytes, bytes]:
        """Data, digest on the wire and digest computed; the digests b"" where there is none. A
        digest covers the pad."""
        data = pdu.body[parts.data_at : parts.data_at + parts.data_bytes]
        if not parts.has_data_digest or pdu.tentative:
            return data, b"", b""
        padded = pdu.body[parts.data_at : parts.data_end]
        return data, pdu.body[parts.data_end : parts.data_end + 4], wire.DIGEST.pack(crc32c(padded))

    def _command(self, pdu: Pdu, parts: _Parts, where: Where, out: list[LinkMessage]) -> None:
        body, both = pdu.body, self.both
        tag = body[wire.TASK_TAG_AT : wire.TASK_TAG_AT + wire.TASK_TAG_BYTES]
        expected = wire.EXPECTED_LENGTH.unpack_from(body, wire.EXPECTED_LENGTH_AT)[0]
        found = _written(body)
        if found is None:
            both.in_flight.pop(tag, None)
            both.strays.asked(tag)
            out.append(Other(*where))
            return
        kind, lba, blocks = found
        data, sent, computed = self._checked_data(pdu, parts)
        if kind == "write" and blocks and expected % blocks == 0:
            both.block_bytes = expected // blocks
        length = expected if kind == "write" else blocks * both.block_bytes
        expects_answer = not both.strays.has_answered(tag, pdu)
        if expects_answer:
            both.in_flight[tag] = length
        while len(both.in_flight) > MAX_IN_FLIGHT:
            both.in_flight.popitem(last=False)
        out.append(
            ReplicatedWrite(
                *where, (self.opening.connection, tag), tag, kind, 0, lba * both.block_bytes, length, data, body,
                pdu.t_first_ns, pdu.first_packet_no, expects_answer, "crc32c" if sent else "", sent, computed,
            )
        )  # fmt: skip

    def _data_out(self, pdu: Pdu, parts: _Parts, where: Where, out: list[LinkMessage]) -> None:
        body = pdu.body
        tag = body[wire.TASK_TAG_AT : wire.TASK_TAG_AT + wire.TASK_TAG_BYTES]
        if tag not in self.both.in_flight:
            out.append(Other(*where))
            return
        at = wire.BUFFER_OFFSET.unpack_from(body, wire.BUFFER_OFFSET_AT)[0]
        data, sent, computed = self._checked_data(pdu, parts)
        algorithm = "crc32c" if sent else ""
        key = (self.opening.connection, tag)
        out.append(WritePart(*where, key, at, data, algorithm, sent, computed))

    def _response(self, pdu: Pdu, parts: _Parts, where: Where, out: list[LinkMessage]) -> None:
        body = pdu.body
        tag = body[wire.TASK_TAG_AT : wire.TASK_TAG_AT + wire.TASK_TAG_BYTES]
        if self.both.in_flight.pop(tag, None) is None:
            self.both.strays.answered(tag, pdu)
            out.append(Other(*where))
            return
        response, status = body[wire.RESPONSE_AT], body[wire.STATUS_AT]
        code = response << 8 | status
        text = wire.STATUS_NAMES.get(status, f"status {status:#x}")
        sense = body[parts.data_at : parts.data_at + parts.data_bytes]
        if status == wire.CHECK_CONDITION and len(sense) > wire.SENSE_LENGTH.size + 2:
            key = sense[wire.SENSE_LENGTH.size + 2] & 0xF
            text += f", {wire.SENSE_NAMES.get(key, f'sense key {key}')}"
        named = (*where[:2], f"SCSI_RESPONSE {text}", *where[3:])
        kind: AnswerKind = "refused" if code else "ok"
        out.append(Answer(*named, (self.opening.connection, tag), tag, kind, code, -1, 0, body))


def _digest_is(covered: bytes | bytearray, data: bytes | bytearray, at: int) -> bool:
    """Whether the digest at ``at`` is that of ``covered``."""
    return bool(wire.DIGEST.unpack_from(data, at)[0] == crc32c(bytes(covered)))


def _data_bytes(data: bytes | bytearray, at: int) -> int:
    return int.from_bytes(wire.BHS.unpack_from(data, at)[5], "big")


def _sequence_of(data: bytes | bytearray, at: int) -> int:
    return int(wire.SEQUENCE.unpack_from(data, at + wire.SEQUENCE_AT)[0])


def _follows(before: int, data: bytes | bytearray, at: int) -> bool:
    """Whether the header at ``at`` may come after one that expected ``before`` next. 0 is in most data, and
    near the numbers of a young session: a true one is passed over."""
    sequence = _sequence_of(data, at)
    is_data_out = data[at] & wire.OPCODE_MASK == IscsiOp.DATA_OUT
    back = _MAX_SEQUENCE_BACK if is_data_out else 0
    return sequence != 0 and (sequence - before + back) % (1 << 32) < back + _MAX_SEQUENCE_STEP


def _is_plausible(data: bytearray, at: int) -> bool:
    """Whether these may be a header's first bytes: all PDUs but those that come in sequences have
    the final bit, which tells them from zeroes; only a command has additional headers; what is an
    initiator's to set is 0 in a target's."""
    first, op = data[at], data[at] & wire.OPCODE_MASK
    if op not in IscsiOp._value2member_map_ or (data[at + 4] and op != IscsiOp.SCSI_COMMAND):
        return False
    reserved = first & ~wire.OPCODE_MASK & (0x80 if op in wire.FROM_INITIATOR else 0xC0)
    return not reserved and (op in wire.IN_SEQUENCE or bool(data[at + 1] & wire.FINAL))


def _written(body: bytes) -> tuple[WriteKind, int, int] | None:
    """What a command writes: kind, LBA, blocks; None: nothing."""
    code = body[wire.CDB_AT]
    if code in wire.WRITES_10 or code == wire.WRITE_SAME_10:
        _, _, lba, _, blocks, _ = wire.READ_WRITE_10.unpack_from(body, wire.CDB_AT)
        return ("zero" if code == wire.WRITE_SAME_10 else "write"), lba, blocks
    if code in wire.WRITES_12:
        _, _, lba, blocks, _, _ = wire.READ_WRITE_12.unpack_from(body, wire.CDB_AT)
        return "write", lba, blocks
    if code in wire.WRITES_16 or code == wire.WRITE_SAME_16:
        _, _, lba, blocks, _, _ = wire.READ_WRITE_16.unpack_from(body, wire.CDB_AT)
        return ("zero" if code == wire.WRITE_SAME_16 else "write"), lba, blocks
    if code in wire.FLUSHES:
        return "flush", 0, 0
    return None
