"""A protocol that is not FreezeFrame's own, behind a boundary: what it raises is named as its, costs no
record of the link, and accuses no device.

After its first error nothing more is understood: each stretch of bytes is a hole, and ``broken`` says
why (``blindness`` withholds every conclusion). The capture goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, get_args

from freezeframe.harness.core.events import Ns, Side
from freezeframe.harness.core.link.messages import Hole, LinkMessage, LinkSession
from freezeframe.harness.core.link.protocol import Direction, Opening, ReplicationProtocol
from freezeframe.harness.core.text import escape, where_raised

MAX_SAID_CHARS: Final = 300
_MESSAGES: Final = get_args(LinkMessage)


class GuardedProtocol:
    """Plays ``ReplicationProtocol``: passes everything on."""

    def __init__(self, protocol: ReplicationProtocol, name: str) -> None:
        self._protocol = protocol
        self._name = name
        self.broken = ""
        """The first error; "": none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def fail(self, method: str, error: Exception, expected: str) -> None:
        if not self.broken:
            said = escape(str(error))[:MAX_SAID_CHARS]
            self.broken = (
                f"protocol {self._name!r}: {method} raised {type(error).__name__}"
                + (f": {said}" if said else "")
                + where_raised(error)
                + f"; expected: {expected}"
            )

    def connection(self, opening: Opening) -> Direction | None:
        if self.broken:
            return None
        try:
            direction = self._protocol.connection(opening)
        except Exception as error:  # noqa: BLE001 - whatever it raises is reported as its own
            self.fail("connection()", error, "a Direction, or None")
            return None
        return None if direction is None else GuardedDirection(self, direction, opening)

    def number_of(self, write_id: bytes, side: Side) -> int | None:
        try:
            return self._protocol.number_of(write_id, side)
        except Exception as error:  # noqa: BLE001 - as above
            self.fail("number_of()", error, "a number, or None")
            return None


class GuardedDirection:
    """Plays ``Direction``."""

    def __init__(self, link: GuardedProtocol, direction: Direction, opening: Opening) -> None:
        self._link = link
        self._direction = direction
        self._opening = opening
        self._session: LinkSession | None = None

    def begin(self) -> Iterable[LinkMessage]:
        return self._of("begin()", self._direction.begin, self._opening.t_ns)

    def feed(self, data: bytes | memoryview, t_ns: Ns, packet_no: int) -> Iterable[LinkMessage]:
        return self._of("feed()", lambda: self._direction.feed(data, t_ns, packet_no), t_ns)

    def gap(self, length_bytes: int, t_ns: Ns) -> Iterable[LinkMessage]:
        return self._of("gap()", lambda: self._direction.gap(length_bytes, t_ns), t_ns)

    def closed(self, t_ns: Ns, packet_no: int, reason: str) -> Iterable[LinkMessage]:
        return self._of("closed()", lambda: self._direction.closed(t_ns, packet_no, reason), t_ns)

    def _of(
        self, method: str, call: Callable[[], Iterable[LinkMessage]], t_ns: Ns
    ) -> list[LinkMessage]:
        """The call's messages, whole: a generator's error comes here too."""
        found: list[LinkMessage] = []
        if not self._link.broken:
            try:
                for message in call():
                    if not isinstance(message, _MESSAGES):
                        raise TypeError(f"{type(message).__name__} is no message")
                    found.append(message)
                    self._session = message.session
                return found
            except Exception as error:  # noqa: BLE001 - as above
                self._link.fail(method, error, "a list of messages of freezeframe.link")
        self._opening.fill.discard()
        if self._session is not None:
            found.append(Hole(self._session, self._opening.source, t_ns, True, True))
        return found
