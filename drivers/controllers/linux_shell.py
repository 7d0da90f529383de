"""A dialogue with a root shell on a serial line: commands out, what they print in.

Works with a bare ``sh`` as with an interactive one that echoes, prompts and folds lines: answers
stand between two lines that the shell prints and that no echo of the command contains.
"""

import itertools
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from freezeframe.harness.core.events import NS_PER_MS, Ns
from freezeframe.harness.errors import RigError, WireError
from freezeframe.harness.roles import ByteLink, Clock

READ_BYTES: Final = 64 << 10
MAX_ANSWER_BYTES: Final = 4 << 20
MAX_KEPT_BYTES: Final = 64 << 10
"""Of what comes outside an answer: replies to a line that somebody else has written."""
MARK: Final = "@ff"
ASK_AGAIN_NS: Final = 700 * NS_PER_MS
"""A shell that starts loses what came before it: no answer has begun after this time, the question
is put again."""
MAX_ASK_AGAIN_NS: Final = 8 * ASK_AGAIN_NS
"""Each time the wait is twice as long: a busy node whose shell needs two seconds to read the
question would be interrupted before each answer otherwise."""
RESETS: Final = (b"\x03\n)\n", b'\x03\n"\n)\n', b"\x03\n'\n)\n")
"""A node that boots swallows the start of a question, and what is left may open a quote or a brace.
An interrupt ends it in an interactive shell; another dies of a wrong parenthesis, and the node
starts a new one."""
_ESCAPES: Final = re.compile(r"^(?:\x1b\[[?0-9;]*[A-Za-z]|\r)+")
"""What a terminal's shell puts in front of a line."""
_PROMPTS: Final = re.compile(r"(?:.*[#$%>] ?)?")
"""Of lines that were typed ahead: a shell without a line editor prints them when it reads these, as
many as there were lines, an empty one among them ("# # > > ")."""
RESET_NS: Final = 200 * NS_PER_MS


@dataclass
class _Question:
    """What was asked and has no whole answer yet."""

    script: str
    number: int
    ask_ns: Ns
    """When it is put (again)."""
    patience_ns: Ns = ASK_AGAIN_NS
    answer: list[str] | None = None
    """Lines of the answer; None: it has not begun."""
    answer_bytes: int = 0
    breaks_off_ns: Ns = 0
    """When an answer of which no more comes is given up; 0: at its caller's deadline only."""


class Shell:
    """One question at a time. ``kept`` holds the whole lines that came outside of answers."""

    def __init__(self, link: ByteLink, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._number = clock.now() // NS_PER_MS % 100_000
        """Begins anywhere: an earlier session's answers are not taken for ours."""
        self._held = bytearray()
        self._resets = itertools.cycle(RESETS)
        self._is_astray = False
        """The last thing asked has no answer yet: a reset comes before the next, also before that
        of a later call."""
        self._open: _Question | None = None
        """Given up by its caller. The same question again goes on waiting for its answer: a busy
        node, asked in short steps, would be interrupted before each answer otherwise."""
        self.kept: deque[str] = deque()
        self._kept_bytes = 0

    def ask(self, script: str, deadline_ns: Ns) -> list[str]:
        """Run ``script`` (sh, any number of lines) and return the lines that it printed. RigError:
        no answer in time."""
        open_question, self._open = self._open, None
        if open_question is not None and open_question.script == script:
            asked = open_question
            # An answer that broke off for good is asked for again.
            asked.breaks_off_ns = asked.breaks_off_ns or self._clock.now() + asked.patience_ns
        else:
            self._number += 1
            asked = _Question(script, self._number, self._clock.now())
        begin, end = f"{MARK}+{asked.number}", f"{MARK}-{asked.number}"
        # One compound command: a shell that echoes has done so before the first mark comes. The
        # quotes keep the marks themselves out of the echo, and the empty line ends that of the
        # prompts, whatever they look like.
        question = f'\n{{ echo; echo "{begin[:2]}""{begin[2:]}"\n{script}\necho "{end[:2]}""{end[2:]}"; }}\n'.encode()
        while True:
            now_ns = self._clock.now()
            if asked.answer is not None and 0 < asked.breaks_off_ns <= now_ns:
                asked.answer, asked.ask_ns, asked.breaks_off_ns = None, now_ns, 0
            if asked.answer is None and now_ns >= asked.ask_ns:
                is_reset = self._is_astray
                self._link.write(next(self._resets) if is_reset else question)
                asked.ask_ns = self._clock.now() + (RESET_NS if is_reset else asked.patience_ns)
                if not is_reset:
                    asked.patience_ns = min(2 * asked.patience_ns, MAX_ASK_AGAIN_NS)
                self._is_astray = not is_reset
            next_ns = asked.ask_ns if asked.answer is None else asked.breaks_off_ns or deadline_ns
            lines = iter(self._lines(min(next_ns, deadline_ns)))
            for line in lines:
                line = _ESCAPES.sub("", line)
                if line.endswith(begin) and _is_mark(begin, line):
                    asked.answer, asked.answer_bytes = [], 0
                elif asked.answer is not None and line.endswith(end) and _is_mark(end, line):
                    self._is_astray = False
                    for after in lines:
                        self._keep(after)
                    return asked.answer
                elif asked.answer is None:
                    self._keep(line)
                else:
                    if asked.breaks_off_ns:
                        asked.breaks_off_ns = self._clock.now() + asked.patience_ns
                    asked.answer.append(line)
                    asked.answer_bytes += len(line) + 1
                    if asked.answer_bytes > MAX_ANSWER_BYTES:
                        raise WireError(
                            f"{self._link.name}: an answer of more than {MAX_ANSWER_BYTES} bytes"
                        )
            if self._clock.now() >= deadline_ns:
                self._open = asked
                what = (
                    "no answer"
                    if asked.answer is None
                    else f"the answer broke off after {asked.answer_bytes} bytes"
                )
                raise RigError(
                    f"{self._link.name}: {what} from the shell; is it a root shell on this line?"
                )

    def await_line(self, wanted: Callable[[str], bool], deadline_ns: Ns) -> str | None:
        """The first line outside of answers that is ``wanted``, kept or still to come; None at the
        deadline."""
        while True:
            for index, line in enumerate(self.kept):
                if wanted(line):
                    self.forget(index + 1)
                    return line
            if self._clock.now() >= deadline_ns:
                return None
            for line in self._lines(deadline_ns):
                self._keep(line)

    def forget(self, count: int) -> None:
        """The oldest ``count`` lines that were kept."""
        for _ in range(count):
            self._kept_bytes -= len(self.kept.popleft()) + 1

    def _keep(self, line: str) -> None:
        """With the line's end counted: lines that are empty take their place, too."""
        self.kept.append(line)
        self._kept_bytes += len(line) + 1
        while self._kept_bytes > MAX_KEPT_BYTES:
            self.forget(1)

    def _lines(self, until_ns: Ns) -> list[str]:
        """The whole lines that one read completes."""
        data = self._link.read(READ_BYTES, until_ns)
        self._held += data
        *whole, rest = self._held.split(b"\n")
        if len(rest) > MAX_ANSWER_BYTES:
            raise WireError(f"{self._link.name}: a line of more than {MAX_ANSWER_BYTES} bytes")
        self._held = bytearray(rest)
        return [bytes(line).strip(b"\r").decode("utf-8", "replace") for line in whole]


def _is_mark(mark: str, line: str) -> bool:
    return _PROMPTS.fullmatch(line.removesuffix(mark)) is not None
