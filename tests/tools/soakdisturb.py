"""The disturbances of a soak. Each is done to a watch that is ready, undone, and waited for until the watch
is ready again. ``reported``: what the watch must say of it; None: a healthy watch need not notice."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from soakbench import SoakBench, wait_for
from soaklines import noise

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.wire.control import Op, PairState

REPORT_S: Final = 30.0
"""For the watch to report a disturbance; a hang, not speed."""
PLAIN: Final = b"[ 1234.567890] eth0: link is up, 1000 Mbit/s, full duplex\r\n"
ASKED: Final = (Op.IDENTIFY, Op.PRINT, Op.LIST_SETS, Op.GET_STATE)
STRANGER: Final = "FFSIM-X-9999"


@dataclass
class Done:
    """One disturbance that is over."""

    kind: str
    detail: str = ""
    begun_s: float = 0.0
    over_s: float = 0.0
    missing: str = ""
    """What was to be reported and was not; "": nothing."""
    back_s: float | None = None
    """When what had gone was there again; None: nothing had gone."""
    rearmed_s: float | None = None
    """From then to the line that says ready."""
    may_act: bool = False
    """The device itself reports a failure, so that an incident is right."""
    is_silent: bool = False
    """Nothing has to be reported: no bench notices it, or it is repaired without a trace."""


class Disturber:
    """``pick`` a kind and play it."""

    def __init__(self, bench: SoakBench, rng: random.Random) -> None:
        self._bench, self._rng = bench, rng
        self.kinds: dict[str, Callable[[Done], None]] = {
            "console gone": self._console_gone,
            "console gone for long": self._console_gone_long,
            "control gone": self._control_gone,
            "control gone for long": self._control_gone_long,
            "console and control gone": self._both_gone,
            "console garbled": self._garbled,
            "console split": self._split,
            "console stalled": self._stalled,
            "console flooded": self._flooded,
            "console interleaved": self._interleaved,
            "reboot": self._reboot,
            "reboot unseen": self._reboot_unseen,
            "power cut of one": self._power_one,
            "power cut of both": self._power_both,
            "link down": self._link_down,
            "link cut one way": lambda done: self._link(done, "cut", 0.3),
            "link duplicates": lambda done: self._link(done, "duplicate", 2.0),
            "link reorders": lambda done: self._link(done, "reorder", 2.0),
            "link drops": lambda done: self._link(done, "drop", 2.0),
            "control frame lost": self._frame_lost,
            "control answers lost": self._answers_lost,
            "wrong serial": self._wrong_serial,
            "reflex killed": lambda done: self._killed(done, "reflex", "reflex process"),
            "linkwatch killed": lambda done: self._killed(done, "linkwatch", "link capture"),
        }
        if bench.has_disk:
            self.kinds |= {"low disk": self._low_disk, "full disk": self._full_disk}

    def play(self, kind: str) -> Done:
        """Do it, undo it, and wait until the watch is ready again."""
        bench, done = self._bench, Done(kind)
        done.begun_s = time.monotonic()
        bench.host.resume()
        self.kinds[kind](done)
        for side in SIDES:
            bench.controls[side].carry_all()
        ready = bench.watch.await_ready()
        if ready is None:
            done.missing = done.missing or f"not ready again: {bench.watch.lines[-1].fields}"
        elif done.back_s is not None:
            armed = bench.watch.armed_since(done.begun_s)
            done.rearmed_s = max(0.0, armed.t_s - done.back_s) if armed else None
        done.over_s = time.monotonic()
        return done

    # --- helpers --------------------------------------------------------------------------------------------
    def _side(self, done: Done) -> Side:
        side = self._rng.choice(SIDES)
        done.detail = side
        return side

    def _await(self, done: Done, since: int, *patterns: str) -> None:
        for pattern in patterns:
            if self._bench.watch.said(pattern, since, REPORT_S) is None:
                done.missing = f"no report like {pattern!r}"

    def _since(self) -> int:
        return len(self._bench.watch.lines)

    def _hold(self, seconds: float) -> None:
        """Let the disturbance last: this is its length, not a wait for something."""
        wait_for(lambda: False, seconds)

    # --- consoles and control lines -------------------------------------------------------------------------
    def _gone(self, done: Done, lines: tuple[str, ...], seconds: float) -> None:
        side, since = self._side(done), self._since()
        adapters = [
            self._bench.consoles[side] if line == "console" else self._bench.controls[side]
            for line in lines
        ]
        for one in adapters:
            one.unplug()
        names = ["console" if line == "console" else "control line" for line in lines]
        self._await(done, since, *(f"{side} {name}: " for name in names))
        self._hold(seconds)
        for one in adapters:
            one.plug()
        done.back_s = time.monotonic()
        self._await(done, since, *(f"{side} {name}: there again" for name in names))

    def _console_gone(self, done: Done) -> None:
        self._gone(done, ("console",), self._rng.uniform(0.2, 1.5))

    def _console_gone_long(self, done: Done) -> None:
        self._gone(done, ("console",), self._rng.uniform(8, 12))

    def _control_gone(self, done: Done) -> None:
        self._gone(done, ("control",), self._rng.uniform(0.2, 1.5))

    def _control_gone_long(self, done: Done) -> None:
        self._gone(done, ("control",), self._rng.uniform(8, 12))

    def _both_gone(self, done: Done) -> None:
        self._gone(done, ("console", "control"), self._rng.uniform(0.5, 2))

    def _garbled(self, done: Done) -> None:
        side, since = self._side(done), self._since()
        adapter = self._bench.consoles[side]
        adapter.change = noise(self._rng)
        adapter.say(adapter.change(40 * PLAIN))
        self._await(done, since, "console full of garbage")
        adapter.change = bytes
        adapter.say(b"\r\n")

    def _split(self, done: Done) -> None:
        adapter, done.is_silent = self._bench.consoles[self._side(done)], True
        adapter.pieces = 1
        adapter.say(20 * PLAIN)
        self._hold(3)
        adapter.pieces = 0

    def _stalled(self, done: Done) -> None:
        side, since = self._side(done), self._since()
        self._bench.consoles[side].stall()
        self._await(done, since, f"{side}.*did not come in")
        self._bench.consoles[side].flow()
        done.back_s = time.monotonic()

    def _flooded(self, done: Done) -> None:
        adapter, done.is_silent = self._bench.consoles[self._side(done)], True
        for _ in range(8):
            adapter.say(8000 * PLAIN)

    def _interleaved(self, done: Done) -> None:
        adapter, done.is_silent = self._bench.consoles[self._side(done)], True

        def between(data: bytes) -> bytes:
            at = self._rng.randrange(len(data) + 1)
            return data[:at] + b"[cpu1] " + PLAIN[: self._rng.randrange(len(PLAIN))] + data[at:]

        adapter.change = between
        self._hold(3)
        adapter.change = bytes
        adapter.say(b"\r\n")

    # --- power ----------------------------------------------------------------------------------------------
    def _powered(self, done: Done, sides: tuple[Side, ...], seconds: float) -> None:
        """``back`` is when the watch has the answers of both that the pair is in full duplex."""
        bench, since = self._bench, self._since()
        bench.host.pause()  # with a write under way the survivor would report a failure
        begun_s = time.monotonic()
        for side in sides:
            bench.power(side, on=False)
        self._hold(seconds)
        for side in sides:
            bench.power(side, on=True)
        self._await(done, since, *(f"{side}.*(restarted|boot epoch)" for side in sides))
        done.back_s = self._whole_since(begun_s, sides)
        if done.back_s is None:
            done.missing = "the pair did not come back to full duplex"
        bench.host.resume()

    def _whole_since(self, begun_s: float, restarted: tuple[Side, ...]) -> float | None:
        """When the last of both answered the watch, in its new boot, that all is well."""
        bench = self._bench
        old = {
            side: [
                seen.boot_epoch for t_s, seen in bench.controls[side].identities if t_s < begun_s
            ][-1:]
            for side in SIDES
        }

        def times() -> list[float]:
            found = []
            for side in SIDES:
                good = (
                    t_s
                    for t_s, seen in bench.answers_since(side, begun_s)
                    if seen.pair_state == PairState.FULL_DUPLEX
                    and (side not in restarted or [seen.boot_epoch] != old[side])
                    and t_s > self._last_bad(side, begun_s)
                )
                found.append(next(good, -1.0))
            return found

        return max(times()) if wait_for(lambda: min(times()) > 0) else None

    def _last_bad(self, side: Side, begun_s: float) -> float:
        bad = [
            t_s
            for t_s, seen in self._bench.answers_since(side, begun_s)
            if seen.pair_state != PairState.FULL_DUPLEX
        ]
        return bad[-1] if bad else 0.0

    def _reboot(self, done: Done) -> None:
        self._powered(done, (self._side(done),), 0.05)

    def _reboot_unseen(self, done: Done) -> None:
        """Its boot banner does not come in."""
        side = self._side(done)
        adapter = self._bench.consoles[side]
        adapter.change = lambda data: b""
        self._powered(done, (side,), 0.05)
        adapter.change = bytes
        done.back_s = time.monotonic()

    def _power_one(self, done: Done) -> None:
        self._powered(done, (self._side(done),), self._rng.uniform(1, 4))

    def _power_both(self, done: Done) -> None:
        self._powered(done, SIDES, self._rng.uniform(0.2, 3))

    # --- the link -------------------------------------------------------------------------------------------
    def _link_down(self, done: Done) -> None:
        """The pair's own ping may run into it: then the devices report a failure."""
        bench, side, since = self._bench, self._side(done), self._since()
        done.may_act = True
        bench.host.pause()
        bench.ends[side].set("down")
        self._await(done, since, "the link is down|a failure of the link")
        bench.ends[side].set("up")
        wait_for(bench.is_whole)
        bench.host.resume()

    def _link(self, done: Done, how: str, seconds: float) -> None:
        done.is_silent = True
        with self._bench.ends[self._side(done)].disturbed(how):
            self._hold(seconds)

    # --- control frames -------------------------------------------------------------------------------------
    def _frame_lost(self, done: Done) -> None:
        """One; the driver repeats it."""
        done.is_silent = True
        side, lost = self._side(done), self._rng.choice(ASKED[:2])
        if self._rng.random() < 0.5:
            self._bench.controls[side].lose_requests(1, (lost,))
        else:
            self._bench.controls[side].lose_replies(1, (lost,))
        self._hold(3)

    def _answers_lost(self, done: Done) -> None:
        side, since = self._side(done), self._since()
        self._bench.controls[side].lose_replies(10_000, ASKED)
        self._await(done, since, f"{side}: .*(does not answer|no answer|not answer)")
        self._bench.controls[side].carry_all()
        done.back_s = time.monotonic()

    def _wrong_serial(self, done: Done) -> None:
        side, since = self._side(done), self._since()
        self._bench.controls[side].answer_as(STRANGER)
        self._await(done, since, f"(another device answers: |leads to .*){STRANGER}")
        self._bench.controls[side].carry_all()
        done.back_s = time.monotonic()

    # --- the watch's own machine ----------------------------------------------------------------------------
    def _killed(self, done: Done, name: str, part: str) -> None:
        bench, since = self._bench, self._since()
        pid = bench.watch.child(name)
        if pid is None:
            done.missing = f"there is no {name}"
            return
        for side in SIDES:
            bench.consoles[side].mark(f"{name} killed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._await(done, since, f"{part}: ")
        back = bench.watch.said(f"{part}: there again", since, REPORT_S)
        done.missing = done.missing or ("" if back else f"{part} did not come back")
        done.back_s = back.t_s if back else None

    def _fill(self, done: Done, free_mib: int, pattern: str) -> None:
        bench, since = self._bench, self._since()
        left = os.statvfs(bench.out_dir)
        ballast = bench.out_dir.parent / "ballast"
        taken = left.f_bavail * left.f_frsize - (free_mib << 20)
        try:
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, taken))
            self._await(done, since, pattern)
        finally:
            ballast.unlink()
        done.back_s = time.monotonic()
        self._await(done, since, f"{pattern}over")

    def _low_disk(self, done: Done) -> None:
        self._fill(done, 600, "little disk space: ")

    def _full_disk(self, done: Done) -> None:
        self._fill(done, 60, "no disk space for two sets: ")
