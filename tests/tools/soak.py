"""A soak: ``python tests/tools/soak.py --minutes 60 --seed 1``, or ``make soak MINUTES=60``.

A watch of a simulated pair runs as a real process while disturbances (``soakdisturb``) and true faults come
one after the other, drawn by the seed. Checked: every fault gives an incident that is complete and judged
right; nothing else is acted on; every disturbance is reported; the consoles' record holds each byte that
the watch was given, except in marked gaps; the watch is ready again within 2 s of what had gone being
there again; memory and handles stay flat; the host reads what was acknowledged. Prints a table. Exit
status: 1 when anything was not so, with the command that repeats it."""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

from soakbench import SECTORS, Line, SoakBench, wait_for
from soakdisturb import Disturber, Done
from soaklines import LIMIT_S, ends_with, holes
from truths import TRUTHS

from freezeframe.harness.bench import registry
from freezeframe.harness.core.blocks.blockstamp import decode
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.errors import HarnessError
from freezeframe.harness.incidents.inquest import verdict_of
from freezeframe.harness.incidents.store import StoredIncident
from freezeframe.harness.roles import HostPort
from freezeframe.harness.wire.control import Op

FAULTS: Final = (
    "bit_flip_receiver", "bit_flip_sender", "neg_ack", "late_ack", "lost_ack", "repeated_ack", "wrong_barrier_count",
)  # fmt: skip
"""Those that a watch sees at once."""
COMPANIONS: Final = (
    "", "both sides trigger", "warmstart frame lost", "warmstart answer lost", "set cut", "set damaged",
    "control gone in recovery", "console flooded in recovery", "reflex killed in recovery",
    "linkwatch killed in recovery", "watch killed in recovery",
)  # fmt: skip
"""What disturbs the recovery of a fault."""
PER_WATCH: Final = 4
"""Faults of one watch: the storm guard has a pause after the third save. The next watch knows nothing of it."""
REARM_S: Final = 2.0
DISTURBANCES_PER_MIN: Final = 200 / 60
FAULTS_PER_MIN: Final = 30 / 60
HOLE_BYTES: Final = 64 * (64 << 10)
"""A killed reflex loses at most 64 reads."""
NEWEST_BYTES: Final = 256
"""Of a console, by which it is seen that its newest byte is recorded: some lines, each with its number."""
GROWTH_KIB: Final = 40 << 10
GROWTH_HANDLES: Final = 6


@dataclass
class Tally:
    """What has come of it."""

    done: list[Done] = field(default_factory=list)
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    """(kind, companion, what is wrong with its incident; "": nothing)."""
    fault_rearms_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost_bytes: int = 0
    carried_bytes: int = 0
    growths: list[tuple[str, int, int]] = field(default_factory=list)
    """(process, KiB, handles) from the first to the last look at one watch."""


class Soak:
    """One soak in ``folder``."""

    def __init__(self, folder: Path, seed: int, only: str = "", rearm_s: float = REARM_S) -> None:
        """``only``: one kind of disturbance; ``rearm_s``: how long the watch may take to be armed again."""
        self.tally = Tally()
        self._rng = random.Random(seed)
        self._bench = SoakBench(folder, seed)
        self._disturber = Disturber(self._bench, self._rng)
        self._only, self._rearm_s = only, rearm_s
        self._expected: list[tuple[float, float]] = []
        """Times in which an action is right."""
        self._folders: dict[str, tuple[str, Path]] = {}
        """Name -> (when it was made, path), of all that were ever seen."""
        self._kept: dict[Path, dict[Side, bytes]] = {}
        self._usage: list[dict[str, tuple[int, int]]] = []
        self._bag: list[str] = []
        self._companions: list[str] = []
        self._kinds: list[str] = []
        self._lines: list[Line] = []

    def run(self, minutes: float) -> None:
        bench = self._bench
        try:
            self._start()
            bench.host.resume()
            if not wait_for(lambda: bench.host.acknowledged_count > 50):
                raise AssertionError("the host cannot write")
            end_s = time.monotonic() + 60 * minutes
            while time.monotonic() < end_s and not self._is_broken():
                for _ in range(PER_WATCH):
                    for _ in range(7):
                        if time.monotonic() < end_s:
                            self._disturb()
                    if time.monotonic() < end_s:
                        self._be_armed()
                        self._fault()
                    self._be_armed()
                self._stop()
                self._start()
            self._stop()
            bench.host.pause()
            self._read_back()
        finally:
            self._check_record()
            bench.close()

    def _is_broken(self) -> bool:
        """What follows a watch that is gone would be wrong for that reason alone."""
        return self._bench.watch.process.poll() is not None or len(self.tally.wrong) > 20

    def _next(self, bag: list[str], among: list[str]) -> str:
        if not bag:
            bag += self._rng.sample(among, len(among))
        return bag.pop()

    # --- one watch ------------------------------------------------------------------------------------------
    def _start(self) -> None:
        self._bench.start_watch()
        if self._bench.watch.await_ready() is None:
            self.tally.wrong.append("the watch did not become ready")
        self._usage.clear()

    def _look(self) -> None:
        """Note the folders, and what the processes use."""
        self._usage.append(self._bench.watch.usage())
        for path in self._bench.out_dir.glob("2*"):
            if path.name not in self._folders:
                with contextlib.suppress(OSError, ValueError):
                    made = json.loads((path / "incident.json").read_text())["created"]
                    self._folders[path.name] = (made, path)
        for made, path in self._folders.values():
            if not path.is_dir() and path not in self._kept:
                self.tally.wrong.append(f"{path.name}, made {made}, was removed")
                self._kept[path] = {}

    def _stop(self) -> None:
        bench = self._bench
        wait_for(self._is_recorded, 20)
        self._look()
        for _, path in sorted(self._folders.values())[-3:]:
            self._kept[path] = {side: _console(path, side) for side in SIDES}
        for side in SIDES:
            bench.consoles[side].mark("the watch is stopped")
        status = bench.watch.end()
        if status not in (0, 1, 4):
            self.tally.wrong.append(f"the watch ended with exit status {status}")
        self._close_books()
        bench.forget()

    def _close_books(self) -> None:
        bench = self._bench
        for line in bench.watch.lines:
            is_right = any(begin <= line.t_s <= end for begin, end in self._expected)
            if line.event == "trigger" and line.fields["acted"] and not is_right:
                self.tally.wrong.append(f"false action: {line.fields}")
        for name in {name for one in self._usage for name in one}:
            seen = [one[name] for one in self._usage if name in one]
            if len(seen) >= 6:
                first, last = seen[1], seen[-1]
                self.tally.growths.append((name, last[0] - first[0], last[1] - first[1]))

    def _is_recorded(self) -> bool:
        """Whether what was carried last is on the disk; what was lost before does not come any more."""
        self._look()
        newest_first = [path for _, path in sorted(self._folders.values(), reverse=True)]
        return all(
            ends_with(
                (self._record(path, side) for path in newest_first),
                bytes(self._bench.consoles[side].carried[-NEWEST_BYTES:]),
            )
            for side in SIDES
        )

    def _record(self, path: Path, side: Side) -> bytes:
        return _console(path, side) if path.is_dir() else self._kept.get(path, {}).get(side, b"")

    # --- what is done to it ---------------------------------------------------------------------------------
    def _be_armed(self) -> None:
        """Not in a pause of the storm guard."""
        if self._bench.is_paused:
            self._stop()
            self._start()

    def _disturb(self) -> None:
        kinds = [self._only] if self._only else [*self._disturber.kinds, "watch killed"]
        kind = self._next(self._bag, kinds)
        begun_s = time.monotonic()
        is_kill = kind == "watch killed"
        done = self._kill_watch(Done(kind)) if is_kill else self._disturber.play(kind)
        if done.may_act:
            self._expected.append((begun_s, done.over_s + 5))
        self.tally.done.append(done)
        self._look()
        slow = done.rearmed_s is not None and done.rearmed_s > self._rearm_s
        if done.missing or slow:
            what = done.missing or f"ready {done.rearmed_s:.2f} s after it was there again"
            self.tally.wrong.append(f"{done.kind} ({done.detail}): {what}")
        _say(done.kind, done.detail, done.rearmed_s, done.missing)

    def _kill_watch(self, done: Done) -> Done:
        done.begun_s = time.monotonic()
        for side in SIDES:
            self._bench.consoles[side].mark("the watch is killed")
        self._bench.watch.kill()
        self._close_books()
        self._start()
        if self._bench.watch.said("the process before was killed", 0, LIMIT_S) is None:
            done.missing = "the kill was not reported"
        done.over_s = time.monotonic()
        return done

    def _fault(self) -> None:
        bench, kind = self._bench, self._next(self._kinds, list(FAULTS))
        companion = self._next(self._companions, list(COMPANIONS))
        side: Side = "primary" if kind == "bit_flip_sender" else "secondary"
        bench.host.resume()
        since, begun_s = len(bench.watch.lines), time.monotonic()
        plan = {
            "kind": kind,
            "side": side,
            "at_write": 3,
            "count": 1,
            "delay_ms": 2000 * (kind == "late_ack"),
        }
        self._before(companion)
        self._expected.append((begun_s, begun_s + 3600))
        wrong = (
            ""
            if bench.arm_fault(side, self._rng.getrandbits(31), [plan])
            else "it could not be armed"
        )
        acted = bench.watch.find(
            lambda one: one.event == "trigger" and one.fields["acted"], since, 60
        )
        if acted is None:
            wrong = (
                wrong
                or f"nobody was instructed: {[one.text for one in bench.watch.lines[since:]][-5:]}"
            )
        else:
            since = self._during(companion, since)
            found = bench.watch.find(
                lambda one: one.event == "incident" and bool(one.fields["trigger"]), since, LIMIT_S
            )
            wrong = wrong or (judged(kind, found) if found else "there is no incident of it")
        for adapter in bench.controls.values():
            adapter.carry_all()
        ready = bench.watch.await_ready()
        wrong = wrong or ("" if ready else f"not ready again: {bench.watch.lines[-1].fields}")
        wait_for(bench.is_whole)
        self._expected[-1] = (begun_s, time.monotonic())
        self._look()
        ends = [one.t_s for one in bench.watch.lines if one.event == "step"]
        if ready and ends:
            self.tally.fault_rearms_s.append(max(0.0, ready.t_s - ends[-1]))
        self.tally.faults.append((kind, companion, wrong))
        if companion:
            self.tally.done.append(Done(companion, is_silent=True, over_s=time.monotonic()))
        if wrong:
            self.tally.wrong.append(f"fault {kind} with {companion or 'nothing else'}: {wrong}")
        _say(f"FAULT {kind}", companion, None, wrong)

    def _before(self, companion: str) -> None:
        secondary = self._bench.controls["secondary"]
        frames = (Op.WARMSTART, Op.STATE_SAVE)
        match companion:
            case "warmstart frame lost":
                # After the rehearsals, which are frames of the same kind.
                secondary.lose_requests(1, frames)
            case "warmstart answer lost":
                secondary.lose_replies(1, frames)
            case "set cut":
                secondary.lose_replies(6, (Op.READ_SET,))
            case "set damaged":
                self._damage_set()

    def _damage_set(self) -> None:
        """One answer of the set's has another byte, under a right checksum of its own."""
        adapter = self._bench.controls["secondary"]
        left = [1]

        def change(frame: Any) -> Any:
            if frame.type & 0x7F != Op.READ_SET or not left[0] or len(frame.payload) < 100:
                return frame
            left[0] -= 1
            body = bytearray(frame.payload)
            body[-1] ^= 0x20
            return type(frame)(frame.type, frame.flags, frame.seq, bytes(body))

        adapter.change_reply = change

    def _during(self, companion: str, since: int) -> int:
        """Returns where in the watch's lines the incident is to be looked for."""
        bench = self._bench
        match companion:
            case "both sides trigger":
                bench.consoles["primary"].say(
                    b"\r\nblock drbd0: Digest integrity check FAILED: 64s +4096\r\n"
                )
            case "control gone in recovery":
                bench.controls["primary"].unplug()
                wait_for(lambda: False, 0.5)
                bench.controls["primary"].plug()
            case "console flooded in recovery":
                bench.consoles["secondary"].say(5000 * b"[ 99.5] usb 1-1: new device\r\n")
            case "reflex killed in recovery" | "linkwatch killed in recovery":
                for side in SIDES:
                    bench.consoles[side].mark(companion)
                pid = bench.watch.child(companion.partition(" ")[0])
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
            case "watch killed in recovery":
                self._kill_watch(Done(companion))
                return 0
        return since

    # --- what is checked at the end -------------------------------------------------------------------------
    def _check_record(self) -> None:
        with contextlib.suppress(OSError):
            self._look()
        for side in SIDES:
            adapter = self._bench.consoles[side]
            recorded = b"".join(
                self._record(path, side) for _, path in sorted(self._folders.values())
            )
            lost, wrong = holes(bytes(adapter.carried), recorded, adapter.marks, HOLE_BYTES)
            self.tally.carried_bytes += len(adapter.carried)
            self.tally.lost_bytes += lost
            self.tally.wrong += [f"record of the {side}'s console: {one}" for one in wrong]

    def _read_back(self) -> None:
        """No acknowledged write may be lost."""
        if not wait_for(self._bench.is_whole):
            self.tally.wrong.append("the pair is not in full duplex at the end")
            return
        host = self._bench.host
        try:
            port = registry.load("nbd", HostPort)(host._url)
            for sector, allowed in list(host.acknowledged.items()):
                seen = decode(port.read(512 * sector, 512 * SECTORS)[:512])
                found = seen.write_id if seen is not None else 0
                if found not in allowed:
                    self.tally.wrong.append(f"sector {sector}: write {found}, not one of {allowed}")
            port.close()
        except HarnessError as error:
            self.tally.wrong.append(f"the volume cannot be read: {error}")


def _console(path: Path, side: Side) -> bytes:
    found = b""
    for name in ("console.old.log", "console.log"):
        with contextlib.suppress(OSError):
            found += (path / side / name).read_bytes()
    return found


def judged(kind: str, found: Line) -> str:
    """What is wrong with the incident of that fault; "": it is complete and judged right."""
    fields = found.fields
    if fields["outcome"] != "fail":
        return f"its outcome is {fields['outcome']}: {fields['reasons']}"
    incomplete = [side for side in SIDES if not fields["sets"].get(side, {}).get("complete")]
    if incomplete:
        return f"no set of {' and '.join(incomplete)}: {fields['sets']}, {fields['reasons']}"
    stored = StoredIncident.open(Path(fields["incident"]))
    if stored.altered():
        return f"altered: {stored.altered()}"
    verdict = verdict_of(stored)
    said = (verdict.stage, verdict.kind, verdict.side)
    if not verdict.conclusive:
        return f"the verdict is not conclusive: {verdict.reason} {fields['incident']}"
    return "" if said == TRUTHS[kind] else f"the verdict is {said}, it was {TRUTHS[kind]}"


def _say(kind: str, detail: str, rearmed_s: float | None, wrong: str) -> None:
    after = "" if rearmed_s is None else f"ready after {rearmed_s:.2f} s"
    print(
        f"{time.strftime('%H:%M:%S')} {kind:28} {detail:30} {after} {wrong and 'WRONG: ' + wrong}",
        flush=True,
    )


def table(tally: Tally, minutes: float) -> str:
    rows = [
        f"{'disturbance':30} {'times':>5} {'reported':>9} {'ready again after, s (median, max)':>35}"
    ]
    by_kind: dict[str, list[Done]] = defaultdict(list)
    for done in tally.done:
        by_kind[done.kind].append(done)
    for kind, ones in sorted(by_kind.items()):
        times = [one.rearmed_s for one in ones if one.rearmed_s is not None]
        reported = sum(1 for one in ones if not one.missing)
        said = "no need" if all(one.is_silent for one in ones) else f"{reported} of {len(ones)}"
        spread = f"{statistics.median(times):.2f} {max(times):.2f}" if times else "-"
        rows.append(f"{kind:30} {len(ones):5} {said:>9} {spread:>35}")
    right = sum(1 for one in tally.faults if not one[2])
    rearms = tally.fault_rearms_s or [0.0]
    rows += [
        f"disturbances: {len(tally.done)} in {minutes:.1f} minutes",
        f"true faults: {len(tally.faults)}, incidents complete and judged right: {right}; ready again after the "
        f"last step of the recovery, s: median {statistics.median(rearms):.2f}, max {max(rearms):.2f}",
        f"false actions: {sum(one.startswith('false action') for one in tally.wrong)}",
        f"consoles: {tally.carried_bytes} bytes given to the watch, {tally.lost_bytes} not recorded, all in marked gaps"
        if not any(one.startswith("record") for one in tally.wrong)
        else "consoles: bytes are missing outside of marked gaps",
    ]  # fmt: skip
    for name in sorted({one[0] for one in tally.growths}):
        grown = [one for one in tally.growths if one[0] == name]
        rows.append(
            f"{name}: memory from the first to the last look at one watch at most {max(one[1] for one in grown):+d} "
            f"KiB, handles {max(one[2] for one in grown):+d}"
        )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb a watch for a long time.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="one kind of disturbance")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    options = parser.parse_args()
    # A shell's & leaves it ignored, also for the watch, which ends by it.
    for number in (signal.SIGINT, signal.SIGTERM):  # the pair ends with us
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="freezeframe-soak-"))
    begun_s = time.monotonic()
    try:
        soak = Soak(folder, options.seed, options.only)
        soak.run(options.minutes)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    tally, minutes = soak.tally, (time.monotonic() - begun_s) / 60
    for name, kib, handles in tally.growths:
        if kib > GROWTH_KIB or handles > GROWTH_HANDLES:
            tally.wrong.append(f"{name} grew by {kib} KiB and {handles} handles")
    wanted = (DISTURBANCES_PER_MIN * options.minutes, FAULTS_PER_MIN * options.minutes)
    if len(tally.done) < wanted[0] or len(tally.faults) < int(wanted[1]):
        tally.wrong.append(
            f"too few: {len(tally.done)} disturbances, {len(tally.faults)} faults; wanted {wanted}"
        )
    print(table(tally, minutes))
    for one in tally.wrong:
        print(f"WRONG: {one}")
    if tally.wrong:
        only = f" --only '{options.only}'" if options.only else ""
        print(
            f"repeat it: python tests/tools/soak.py --minutes {options.minutes:g} --seed {options.seed}{only}"
        )
    if options.keep:
        print(f"kept: {folder}")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
