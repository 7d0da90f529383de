"""Serve a console under watch to other programs, as a client of its station: what comes from the device goes to
them, and with ``--write`` what one of them sends goes through the writer's place."""

import threading
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from freezeframe.harness.cli.consolewrite import ConsoleWriter
from freezeframe.harness.cli.output import say_aside
from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.consoleport import BREAK_SENT, ConsolePort
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.following import ConsoleFollower

LOOK_S: Final = 0.02
"""Between two looks at the record."""


def serve_on(
    port: ConsolePort,
    follower: ConsoleFollower,
    writer: ConsoleWriter | None,
    stop: threading.Event,
) -> None:
    """Until the record ends, or ``stop``. RigError: the watch has ended, and the writer's place with it."""
    follower.newest_lines(0)
    say_aside(f"freezeframe: served on {port.address}; Ctrl-C ends it", "dim")
    while not follower.is_over and not stop.is_set():
        chunks = follower.read()
        for chunk in chunks:
            port.say(chunk.data)
        came = port.turn(0 if chunks else LOOK_S)
        if writer is not None:
            writer.turn(0)
            _write(writer, came)
        for note in port.notes:
            say_aside(f"freezeframe: {escape(note)}")
        port.notes.clear()


def _write(writer: ConsoleWriter, came: Sequence[bytes]) -> None:
    """What cannot be written is reported; whoever sent it sees that nothing comes of it."""
    for is_break, pieces in groupby(came, lambda one: one == BREAK_SENT):
        try:
            for data in [BREAK_SENT] if is_break else [b"".join(pieces)]:
                writer.send_break() if is_break else writer.write(data)
        except (RigError, UsageError) as error:
            say_aside(f"freezeframe: not sent: {escape(str(error))}")
