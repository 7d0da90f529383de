"""The acting socket of a watch: what commands by hand ask of its station, in a thread of its own.

Here is everything that waits for a peer. The station's thread gets whole, understood requests, one at a time of each
peer, and answers when it has done them.
"""

import contextlib
import pwd
import queue
import threading
from functools import partial
from typing import Final, Self

from freezeframe.harness.core import byhand
from freezeframe.harness.core.byhand import HandAnswer
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.requests import Asker, Requests
from freezeframe.harness.errors import RigError
from freezeframe.harness.runs.audit import state_directory
from freezeframe.harness.runs.station import Station
from freezeframe.harness.runs.view import View
from freezeframe.harness.runs.waking import Waker

LOOK_S: Final = 2.0
"""A peer that takes no answer is looked at so often."""
CLOSE_S: Final = 5.0


class Acting(threading.Thread):
    """Serves while its block goes on. A socket that cannot be made is reported, and costs nothing else."""

    def __init__(self, station: Station, bench_id: str, view: View) -> None:
        super().__init__(name="acting", daemon=True)
        self._station = station
        self._waker, self._over = Waker(), threading.Event()
        self._answers: queue.SimpleQueue[tuple[Asker, HandAnswer]] = queue.SimpleQueue()
        self._numbers: dict[Asker, int] = {}
        self._last_number = 0
        self._requests: Requests | None = None
        try:
            self._requests = Requests(state_directory(), bench_id, byhand.MAX_REQUEST_BYTES)
        except RigError as error:
            view.phase(str(error))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._over.set()
        self._waker.wake()
        self.join(CLOSE_S)
        if not self.is_alive():
            self._waker.close()

    def run(self) -> None:
        if (requests := self._requests) is None:
            return
        while not self._over.is_set():
            for asker, line in requests.wait(self._waker.fileno(), LOOK_S):
                if line is None:
                    self._gone(asker)
                else:
                    self._take(requests, asker, line)
            self._waker.drain()
            while not self._answers.empty():
                asker, answer = self._answers.get_nowait()
                self._send(requests, asker, answer)
        requests.close()

    def _take(self, requests: Requests, asker: Asker, line: bytes) -> None:
        try:
            request = byhand.decode_request(line)
        except ValueError as error:
            answer = HandAnswer(whose="usage", text=f"not a request: {escape(str(error))}")
            self._send(requests, asker, answer, is_last=True)
            return
        number = self._numbers.setdefault(asker, self._last_number + 1)
        self._last_number = max(self._last_number, number)
        reply = partial(self._reply, asker)
        hands = self._station.hands
        self._station.post(partial(hands.take, request, person(asker, request), number, reply))

    def _reply(self, asker: Asker, answer: HandAnswer) -> None:
        """From any thread."""
        self._answers.put((asker, answer))
        self._waker.wake()

    def _send(
        self, requests: Requests, asker: Asker, answer: HandAnswer, *, is_last: bool = False
    ) -> None:
        if not requests.answer(asker, byhand.encode(answer), is_last=is_last):
            self._gone(asker)

    def _gone(self, asker: Asker) -> None:
        if (number := self._numbers.pop(asker, None)) is not None:
            self._station.post(partial(self._station.hands.gone, number))


def person(asker: Asker, request: byhand.Request) -> str:
    """Who asks: the user as the kernel knows him, and whom he says he is."""
    name = f"uid {asker.uid}"
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(asker.uid).pw_name
    if request.who and request.who != name:
        name = f"{request.who} as {name}"
    return escape(f"{name}, {request.command or 'a program'} (pid {asker.pid})")
