"""What a person asks a watch to do by hand: the requests of its acting socket, one JSON object a line, and
the answers. ``docs/watch.md`` lists them.
"""

import json
from typing import Annotated, Final, Literal

import msgspec

from freezeframe.harness.core.events import Side

MAX_TEXT_CHARS: Final = 1000
MAX_WRITE_BYTES: Final = 4096
"""Of one ``write``. At 115,200 baud a third of a second."""
MAX_REQUEST_BYTES: Final = 16 << 10

LimitedText = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARS)]
NeededText = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT_CHARS)]


def _verb(name: str) -> str:
    """WarmstartRequest -> warmstart"""
    return name.removesuffix("Request").lower()


class _Request(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag=_verb, forbid_unknown_fields=True
):  # fmt: skip
    who: LimitedText = ""
    """Who the person is, where the user of the process does not say it: sudo's caller."""
    command: LimitedText = ""
    """What asks: "warmstart"."""


class ArmRequest(_Request, frozen=True):
    """Arm the bench; an open breaker of the storm guard is closed."""

    reason: LimitedText = ""


class DisarmRequest(_Request, frozen=True):
    """Nobody is instructed until somebody arms the bench. Answered once the reflex has no frames."""

    reason: NeededText


class SaveRequest(_Request, frozen=True):
    side: Side


class WarmstartRequest(_Request, frozen=True):
    side: Side
    confirmed: NeededText
    """How the person has confirmed that the controller restarts: "with --yes"."""


class TakeRequest(_Request, frozen=True):
    """Take the one writer's place of a console. It is free again when this connection ends."""

    side: Side


class WriteRequest(_Request, frozen=True):
    """Write to the console whose place this connection has."""

    data: bytes
    """In base64."""
    named: LimitedText = ""
    """The list of the bench file that it is a part of."""


class BreakRequest(_Request, frozen=True):
    """Send a BREAK there."""

    named: LimitedText = ""


Request = (
    ArmRequest | DisarmRequest | SaveRequest | WarmstartRequest | TakeRequest | WriteRequest | BreakRequest
)  # fmt: skip


class Instructed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a frame that was sent by hand."""

    side: Side
    ok: bool
    status: str
    text: str
    serial_number: str
    set: int | None
    boot_epoch: int
    answered_us: float
    up_after_ms: float | None = None
    """After a warmstart, until the controller answered again."""


class HandAnswer(msgspec.Struct, frozen=True, kw_only=True):
    whose: Literal["", "usage", "rig"] = ""
    """Whose fault it is that it was not done; "": it was."""
    text: str = ""
    """What was done, or why it was not."""
    health: str = ""
    """Of the bench, after it."""
    instructed: Instructed | None = None


_encoder: Final = msgspec.json.Encoder()
_requests: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_answers: Final[msgspec.json.Decoder[HandAnswer]] = msgspec.json.Decoder(HandAnswer)


def encode(message: Request | HandAnswer) -> bytes:
    """One line. What is not UTF-8 in a text, such as a terminal's Latin-1 or a path, becomes "?"."""
    try:
        return _encoder.encode(message) + b"\n"
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(message), ensure_ascii=False)
        return text.encode("utf-8", "replace") + b"\n"


def decode_request(line: bytes) -> Request:
    """ValueError: it is none."""
    try:
        found = _requests.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if isinstance(found, WriteRequest) and len(found.data) > MAX_WRITE_BYTES:
        raise ValueError(f"write: {len(found.data)} bytes, at most {MAX_WRITE_BYTES}")
    return found


def decode_answer(line: bytes) -> HandAnswer:
    """ValueError: it is none."""
    try:
        return _answers.decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
