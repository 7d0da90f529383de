"""The reflex in this process, and a console that has its next chunk whenever one was read: it never
pauses.

    chatter.py DIRECTORY < one JSON object; events on the standard output

    chunks     list of text; what the console says, one a read
    rules      list of ConsoleRule
    new_rules  list of ConsoleRule or null; a command that is there together with chunk number ``reload_at``
    reload_at  int

Says on the standard error how many chunks were read and not recorded at the most.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from freezeframe.harness.core import events
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.watch.reflex import Reflex
from freezeframe.harness.watch.reflex_io import ReflexConfig, StreamConfig


class Script(msgspec.Struct):
    chunks: list[str]
    rules: list[ConsoleRule]
    new_rules: list[ConsoleRule] | None = None
    reload_at: int = 0


def chatter(directory: Path, script: Script) -> tuple[list[events.AnyEvent], int]:
    """What the reflex tells of a console that never pauses; bytes read and not recorded at the
    most."""
    ran = subprocess.run(
        [sys.executable, __file__, str(directory)],
        input=msgspec.json.encode(script),
        capture_output=True,
        check=True,
        timeout=200,
    )
    assert (directory / "log").read_bytes() == "".join(script.chunks).encode()
    return events.Decoder().feed(ran.stdout), int(ran.stderr)


def main() -> None:
    script = msgspec.json.decode(sys.stdin.buffer.read(), type=Script)
    log, times = (Path(sys.argv[1], name) for name in ("log", "times"))
    source, console = os.pipe()
    commands_read, commands = os.pipe()
    os.dup2(commands_read, 0)

    class Told(Reflex):
        reads, read_bytes, unrecorded_bytes = 0, 0, 0

        def say(self) -> None:
            chunk = script.chunks[self.reads].encode()
            if script.new_rules is not None and self.reads == script.reload_at:
                rules = msgspec.json.encode(script.new_rules)
                os.write(commands, events.encode(events.NewRules(t_ns=0, rules=rules)))
            os.write(console, chunk)
            self.read_bytes += len(chunk)

        def read_console(self, fd: int) -> bool:
            if not super().read_console(fd):
                return False
            self.reads += 1
            self.unrecorded_bytes = max(self.unrecorded_bytes, self.read_bytes - log.stat().st_size)
            self.is_stopping = self.reads == len(script.chunks)
            if not self.is_stopping:
                self.say()
            return True

    stream = StreamConfig(side="primary", fd=source, log_path=str(log), times_path=str(times))
    reflex = Told(
        ReflexConfig(streams=[stream], control={}, rules=script.rules, default_instruct=[])
    )
    reflex.say()
    reflex.run()
    sys.stderr.write(f"{reflex.unrecorded_bytes}\n")


if __name__ == "__main__":
    main()
