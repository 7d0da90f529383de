"""The audit journal of a bench: who did what to it, why, and what came of it.

It lies outside of any incident and is only appended to, one JSON object per line:

    $STATE_DIRECTORY/BENCH.audit.jsonl                (of a service, set by its manager)
    $XDG_STATE_HOME/freezeframe/BENCH.audit.jsonl     (without the variable: ~/.local/state)

    utc      when, in milliseconds
    bench    path of the bench file: another bench of the same name writes into the same journal
    who      the user, and the command with its process id
    action   arm, disarm, strike, break, power cycle, frame, console, rules, health, notify, or a report of the
             policy (lost, back, guard ...)
    about    the side, the part, the rule or the incident
    why      the reason, if there is one
    result   what came of it: "ok", or what went wrong

A line that a full disk cut short stays; what follows it begins a line of its own.

All frames by which a watch instructs a controller are in it, those of a redrive and those that are
written again included, and those sent by hand. Each line is synced to
the disk before the next step.
"""

import getpass
import json
import os
from pathlib import Path
from typing import Final

from freezeframe.harness.core.text import escape
from freezeframe.harness.edge.clock import utc_now

NAME: Final = "{bench}.audit.jsonl"


def state_directory() -> Path:
    """Return the folder of what outlives a command; it may not exist yet."""
    # A service manager lists several with colons; the first is the service's own.
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if home else Path.home() / ".local" / "state") / "freezeframe"


def user() -> str:
    """Return the name of who started this command."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user without an entry in the password file
        return f"uid {os.getuid()}"


class AuditJournal:
    """One command's access to the journal. A journal that cannot be written stops nothing: the
    reason is in ``problem``."""

    def __init__(self, bench: str, command: str, bench_file: Path) -> None:
        """``bench``: the bench's name; ``command``: what acts, "watch"."""
        self.path = state_directory() / NAME.format(bench=bench)
        self._bench_file = str(bench_file)
        self.who = f"{user()}, {command} (pid {os.getpid()})"
        self.problem = ""

    def add(
        self, action: str, about: str = "", why: str = "", result: str = "ok", *, who: str = ""
    ) -> None:
        """Append one line; it is on the disk when this returns. ``who``: a person who acts through this
        command."""
        who = escape(f"{who}, through {self.who}") if who else self.who
        entry = {
            "utc": utc_now(), "bench": self._bench_file, "who": who, "action": action, "about": escape(about),
            "why": escape(why), "result": escape(result),
        }  # fmt: skip
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.path, flags, 0o640)
            try:
                line = json.dumps(entry).encode() + b"\n"
                line = line if _ends_with_a_line(fd) else b"\n" + line
                while (
                    line
                ):  # one write, unless the disk is full: lines of several commands stay whole
                    line = line[os.write(fd, line) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self.problem = self.problem or f"{self.path}: {error.strerror}"


def _ends_with_a_line(fd: int) -> bool:
    """Whether the file is empty or its last line is whole."""
    size = os.fstat(fd).st_size
    return size == 0 or os.pread(fd, 1, size - 1) == b"\n"
