"""Somebody who looks at a console while a watch goes on."""

import threading
from pathlib import Path

from waiting import await_true

from freezeframe.harness.core.events import Side
from freezeframe.harness.incidents.following import ConsoleFollower, Recorder, all_recorders


class Looking(threading.Thread):
    """Somebody who looks at a console from the begin of a watch to its end."""

    def __init__(self, out_dir: Path, side: Side) -> None:
        super().__init__(daemon=True)

        def ours() -> Recorder | None:  # other tests may watch, too
            found = all_recorders(side, [out_dir])
            here = [one for one in found if one.newest.path.parent == out_dir.resolve()]
            return here[-1] if here else None

        self._follower = ConsoleFollower(await_true(ours, 60, "the first record"), side)
        self._seen = [one.data for one in self._follower.newest_lines(10**6)]
        self.start()

    def run(self) -> None:
        while not self._follower.is_over:
            chunks = self._follower.read()
            self._seen += [one.data for one in chunks]
            if not chunks:
                threading.Event().wait(0.02)

    def seen(self) -> bytes:
        self.join(60)
        return b"".join(self._seen)
