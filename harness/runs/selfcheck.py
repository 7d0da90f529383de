"""Proof that the watching works: canary lines before the run, and the recorded bytes searched once
more after it."""

import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from freezeframe.harness.core.console.recheck import Recheck, recheck
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import READ_TIME, Ns, Side, Trigger
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import RigError

CANARY: Final = "freezeframe canary "
CANARY_RULE: Final = ConsoleRule(name="freezeframe-canary", literal=CANARY, instruct=())
"""In force beside the bench's rules; recorded only, nobody is instructed."""
BOOT_RULE_PREFIX: Final = "freezeframe-boot-"
CANARY_TIMEOUT_S: Final = 3.0
MAX_RECHECKED_BYTES: Final = 256 << 20
"""Of a console's record: some seconds of plain searching a rule."""
REGEXES_S: Final = 20.0
"""Of processor time, for all regexes of one console."""
NS_PER_US: Final = 1_000


def is_own_rule(name: str) -> bool:
    """Whether a hit is the harness's own affair, and no finding: a canary, a boot banner."""
    return name == CANARY_RULE.name or name.startswith(BOOT_RULE_PREFIX)


def own_rules(boot_lines: Mapping[Side, bytes]) -> tuple[ConsoleRule, ...]:
    """The rules in force beside the bench's: canaries, and each device type's first line of a boot
    (a regex; empty: it has none). Nobody is instructed for them."""
    boots = tuple(
        ConsoleRule(
            name=f"{BOOT_RULE_PREFIX}{side}", side=side, regex=line.decode("ascii"), instruct=()
        )
        for side, line in boot_lines.items()
        if line
    )
    return (CANARY_RULE, *boots)


class Canaries:
    """Lines that the controllers are asked to print: each must come back as a trigger of
    CANARY_RULE."""

    def __init__(self) -> None:
        self._asked_ns: dict[Side, Ns] = {}
        self.record: dict[str, Any] = {}
        """For incident.json, a side: seen, and how long from the request to the match, or why there
        was none."""

    def text(self, side: Side) -> str:
        """A new line for that console."""
        self.record[side] = {"seen": False}
        self._asked_ns[side] = time.monotonic_ns()
        return CANARY + secrets.token_hex(4)

    def impossible(self, side: Side, why: str) -> None:
        """No line came of it: that its console is heard is not proved."""
        self._asked_ns.pop(side, None)
        self.record[side] = {"seen": False, "reason": escape(why)}

    def heard(self, trigger: Trigger) -> dict[str, Any] | None:
        """Returns what the record has of it now; None: nobody had asked for that line."""
        asked_ns = self._asked_ns.pop(trigger.side, None)
        if asked_ns is None:
            return None
        self.record[trigger.side] = heard = {
            "seen": True,
            "round_trip_us": (trigger.t_match_ns - asked_ns) // NS_PER_US,
            "arrival_to_match_us": (trigger.t_match_ns - trigger.t_arrival_ns) / NS_PER_US,
        }
        return heard

    @property
    def missing(self) -> list[Side]:
        return list(self._asked_ns)


def recheck_console(
    rules: Sequence[ConsoleRule], side: Side, log: Path, times: Path, triggers: Sequence[Trigger]
) -> Recheck:
    """The whole record of one console. RigError: it is too large or cannot be read."""
    recorded = read_console(log, times)
    seen = [
        (one.rule, one.offset_bytes)
        for one in triggers
        if one.source == "console" and one.side == side
    ]
    return recheck(rules, side, *recorded, seen, Limit(REGEXES_S))


class Limit:
    """Of the processor time of all regexes of one console: ``re`` may take for ever where Hyperscan
    does not. Its clock is looked at by ``re`` itself, as by any Python code; signals are the main
    thread's, elsewhere no regex is judged."""

    def __init__(self, cpu_s: float) -> None:
        self._left_s = cpu_s

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if self._left_s <= 0 or threading.current_thread() is not threading.main_thread():
            raise TimeoutError
        before = signal.signal(signal.SIGVTALRM, _too_long)
        signal.setitimer(signal.ITIMER_VIRTUAL, self._left_s)
        try:
            yield
        finally:
            try:
                self._left_s = signal.setitimer(signal.ITIMER_VIRTUAL, 0)[0]
            finally:
                signal.signal(signal.SIGVTALRM, before)


def _too_long(_number: int, _frame: object) -> None:
    raise TimeoutError


def read_console(log: Path, times: Path) -> tuple[bytes, list[tuple[Ns, int]]]:
    """The bytes, and (t_ns, offset of its first byte) of each read. RigError: it is too large or
    cannot be read."""
    try:
        size = log.stat().st_size
        if size > MAX_RECHECKED_BYTES:
            raise RigError(
                f"it has {size} bytes, and at most {MAX_RECHECKED_BYTES >> 20} MiB are searched"
            )
        data, raw = log.read_bytes(), times.read_bytes()
    except OSError as error:
        raise RigError(f"it cannot be read: {error}") from error
    whole = len(raw) // READ_TIME.size * READ_TIME.size
    return data, list(READ_TIME.iter_unpack(raw[:whole]))
