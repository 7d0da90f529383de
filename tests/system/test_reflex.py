"""The reflex as a real process over real PTYs."""

import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from chatter import Script, chatter
from reflex_bench import FRAMES, LIMIT_S, RULES, Bench, Line, link_trigger

from freezeframe.harness.core import events
from freezeframe.harness.core.console.rules import ConsoleRule
from freezeframe.harness.core.events import NS_PER_S
from freezeframe.harness.edge.processes import Child
from freezeframe.harness.watch.reflex_io import NewLine, ReflexConfig, StreamConfig
from freezeframe.harness.watch.reflex_record import UNRECORDED

pytestmark = pytest.mark.system


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.reflex.kill_if_running()
    for line in (*made.console.values(), *made.control.values()):
        line.close()
    os.close(made.trigger_read)
    os.close(made.trigger_write)


def test_a_literal_split_byte_by_byte_triggers_once(bench: Bench) -> None:
    bench.arm()
    before_ns = time.monotonic_ns()
    text = b"[   1.5] block drbd0: Digest integrity check FAILED: 128s +4096\r\n"
    for at in range(len(text)):
        bench.console["secondary"].say(text[at : at + 1])
    for side in events.SIDES:
        assert bench.control[side].hear(len(FRAMES["console"][side])) == FRAMES["console"][side]
    assert bench.recorded("secondary", len(text)) == text
    bench.stop()

    (trigger,) = bench.until(events.Trigger)
    assert (trigger.rule, trigger.source, trigger.side) == ("digest", "console", "secondary")
    assert trigger.offset_bytes == text.index(b"FAILED") + len(b"FAILED")
    assert trigger.excerpt == text[: trigger.offset_bytes]
    assert trigger.instruct == ["primary", "secondary"]
    sent = bench.until(events.FrameSent, 2)
    assert [(one.side, one.seq, one.frame) for one in sent] == [
        ("primary", 10, FRAMES["console"]["primary"]),
        ("secondary", 11, FRAMES["console"]["secondary"]),
    ]
    moments = [
        before_ns,
        trigger.t_arrival_ns,
        trigger.t_match_ns,
        sent[0].t_ns,
        sent[0].t_done_ns,
        sent[1].t_ns,
    ]
    assert moments == sorted(moments)
    assert bench.log("secondary") == text
    assert all(line.is_silent() for line in bench.control.values())


def test_what_is_rehearsed_between_the_reads_goes_nowhere_and_disarms_nothing(bench: Bench) -> None:
    def writes_for_lines(said: int) -> int:
        """Write calls of the reflex for 300 lines, each recorded before the next; ``said``: bytes
        before them."""
        before = writes_of(bench.reflex.pid)
        for number in range(1, 301):
            bench.console["primary"].say(b"all is well\r\n")
            bench.recorded("primary", said + 13 * number)
        return writes_of(bench.reflex.pid) - before

    disarmed = writes_for_lines(0)
    bench.arm()
    armed = writes_for_lines(3900)
    assert armed > disarmed + 150  # times are written, too: one call in 50 ms
    assert all(line.is_silent() for line in (*bench.control.values(), *bench.console.values()))
    bench.console["secondary"].say(b"Digest integrity check FAILED\r\n")
    for side in events.SIDES:
        assert bench.control[side].hear(len(FRAMES["console"][side])) == FRAMES["console"][side]
    bench.until(events.FrameSent, 2)
    assert writes_for_lines(7800) < armed - 150
    bench.stop()
    assert bench.count(events.FrameSent) == 2 and bench.count(events.Trigger) == 1
    assert all(line.is_silent() for line in bench.control.values())


def writes_of(pid: int) -> int:
    """How many write system calls a process has made."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["syscw"])


def cpu_s_of(pid: int) -> float:
    user, system = map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def test_two_triggers_at_once_make_one_action(bench: Bench) -> None:
    bench.arm()
    for side in events.SIDES:
        bench.console[side].say(b"Digest integrity check FAILED second is ill\r\n")
    os.write(bench.trigger_write, events.encode(link_trigger()))
    bench.until(events.Trigger, 5)
    bench.stop()
    assert bench.count(events.FrameSent) == 2
    acted = bench.until(events.FrameSent, 2)[0].frame
    reason = "console" if acted == FRAMES["console"]["primary"] else "link"
    for side in events.SIDES:
        assert bench.control[side].hear(len(FRAMES[reason][side])) == FRAMES[reason][side]
        assert bench.control[side].is_silent()


def test_a_link_trigger_sends_the_frames_of_its_reason(bench: Bench) -> None:
    bench.arm()
    os.write(bench.trigger_write, events.encode(link_trigger(("secondary",))))
    frame = FRAMES["link"]["secondary"]
    assert bench.control["secondary"].hear(len(frame)) == frame
    named = msgspec.structs.replace(link_trigger(("secondary",)), is_cause=True)
    assert bench.until(events.Trigger) == [named]
    bench.stop()
    assert bench.control["primary"].is_silent()


def test_hits_are_told_but_nothing_is_sent_when_disarmed_or_not_instructed(bench: Bench) -> None:
    bench.console["primary"].say(b"Digest integrity check FAILED\r\n")
    bench.until(events.Trigger, 1)
    bench.arm()
    bench.console["primary"].say(b"worth a note\r\n")
    bench.until(events.Trigger, 2)
    assert bench.count(events.Disarmed) == 0
    bench.reflex.send(events.Disarm(t_ns=0))
    bench.until(events.Disarmed)
    os.write(bench.trigger_write, events.encode(link_trigger(())))
    bench.until(events.Trigger, 3)
    bench.console["primary"].say(b"Digest integrity check FAILED\r\n")
    bench.until(events.Trigger, 4)
    assert bench.count(events.FrameSent) == 0
    bench.arm()
    bench.console["primary"].say(b"second is ill, Digest integrity check FAILED\r\n")
    (sent,) = bench.until(events.FrameSent)
    assert sent.side == "secondary"
    bench.until(events.Trigger, 6)
    bench.stop()
    assert bench.count(events.FrameSent) == 1
    assert bench.control["primary"].is_silent()


def test_armed_again_acts_again(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.arm()
        bench.console["secondary"].say(b"second is ill\r\n")
        bench.until(events.FrameSent, number)


def test_an_arming_that_crossed_a_strike_is_ignored(bench: Bench) -> None:
    """Two strikes in a row would be two warmstarts: the second frame was for a boot that is over."""
    # The second was sent before anybody knew that 7 had struck.
    for number, (arming, seen) in enumerate([(7, 0), (8, 6), (9, 7)], 1):
        bench.reflex.send(events.Arm(t_ns=0, frames=FRAMES, arming=arming, seen=seen))
        bench.console["secondary"].say(b"second is ill\r\n")
        bench.until(events.Trigger, number)
    struck = [one.arming for one in bench.until(events.FrameSent, 2)]
    bench.stop()
    assert struck == [7, 9] and bench.count(events.FrameSent) == 2


def test_a_record_is_cut_between_two_reads_and_offsets_count_from_the_cut(bench: Bench) -> None:
    said, whole = b"", b""
    for number in range(20):
        text = b"line %d, second is ill\r\n" % number
        bench.console["secondary"].say(text)
        said += text
        if number % 4 == 3:  # whatever has been read by then
            paths = [str(bench.directory / f"{kind}-{number}") for kind in ("log", "times")]
            record = events.Record(t_ns=0, paths={"secondary console": paths, "link": ["-"]})
            bench.reflex.send(record)
            bench.until(events.Recorded, number // 4 + 1)
    bench.stop()
    files, cuts = [bench.log("secondary")], iter(range(3, 20, 4))
    files += [(bench.directory / f"log-{number}").read_bytes() for number in cuts]
    assert b"".join(files) == said
    at = 0
    for event in bench.seen:
        if isinstance(event, events.Recorded):
            at += 1
        elif isinstance(event, events.Trigger):
            assert files[at][: event.offset_bytes].endswith(b"second is ill")
            whole += event.excerpt[-1:]
    assert len(whole) == 20
    for number in range(3, 20, 4):
        times = (bench.directory / f"times-{number}").read_bytes()
        offsets = [offset for _, offset in struct.iter_unpack("<QQ", times)]
        assert offsets == sorted(offsets) and offsets[:1] in ([], [0])


def test_a_line_that_was_opened_again_is_read_on_and_written_to(bench: Bench) -> None:
    """The record goes on behind what was read before; the other lines are not touched."""
    before, text = bench.console["secondary"], b"second is ill\r\n"
    before.say(b"a line\r\n")
    bench.recorded("secondary", 8)
    os.close(before.device)
    before.device = -1
    (ended,) = bench.until(events.StreamEnded)
    assert ended.stream == "secondary console"
    again, control = Line(), Line()
    message = msgspec.json.encode(
        NewLine(side="secondary", console="secondary console", fds=["console", "control"])
    )
    socket.send_fds(bench.lines, [message], [again.rig, control.rig])
    bench.arm()
    again.say(text)
    assert bench.recorded("secondary", 8 + len(text)) == b"a line\r\n" + text
    (trigger,) = bench.until(events.Trigger)
    assert trigger.offset_bytes == 8 + len(b"second is ill")
    frame = FRAMES["console"]["secondary"]
    assert control.hear(len(frame)) == frame
    bench.stop()
    again.close()
    control.close()


def test_one_console_ends_the_other_goes_on(bench: Bench) -> None:
    bench.arm()
    bench.console["primary"].say(b"last words")
    bench.recorded("primary", 10)
    os.close(bench.console["primary"].device)
    bench.console["primary"].device = -1
    (ended,) = bench.until(events.StreamEnded)
    assert ended.stream == "primary console"
    os.close(bench.trigger_write)
    bench.trigger_write = os.open(os.devnull, os.O_WRONLY)
    assert bench.until(events.StreamEnded, 2)[1].stream == "link triggers"
    bench.console["secondary"].say(b"Digest integrity check FAILED")
    bench.until(events.FrameSent, 2)
    assert bench.log("primary") == b"last words"


def test_a_control_line_that_is_full_is_told_and_the_other_side_still_instructed(
    bench: Bench,
) -> None:
    fill(bench.control["primary"].rig)
    bench.arm()
    bench.console["secondary"].say(b"Digest integrity check FAILED")
    (failed,) = bench.until(events.FrameFailed)
    assert failed.side == "primary"
    (sent,) = bench.until(events.FrameSent)
    assert sent.side == "secondary"


def fill(fd: int) -> None:
    """Write until the line has taken nothing for a while: the kernel moves a PTY's bytes on in the
    background."""
    os.set_blocking(fd, False)
    taken_at = time.monotonic()
    while time.monotonic() < taken_at + 0.1:
        try:
            os.write(fd, bytes(16))
            taken_at = time.monotonic()
        except BlockingIOError:
            select.select([fd], [], [], 0.005)


def test_nonsense_on_the_trigger_pipe_does_not_stop_the_consoles(bench: Bench) -> None:
    os.write(bench.trigger_write, b"\xff" * 64)
    bench.until(events.StreamEnded)
    bench.arm()
    bench.console["secondary"].say(b"Digest integrity check FAILED")
    bench.until(events.FrameSent, 2)


def test_a_flood_is_recorded_byte_exact_while_the_supervisor_sleeps(bench: Bench) -> None:
    """Several MB, nobody reads the event pipe: the record is whole, no trigger is lost, the frame
    goes out at once."""
    bench.arm()
    line = b"[    1.000000] secondary: 128 writes, 8388608 bytes, all well so far \xc3\xa9\r\n"
    flood = line * (6_000_000 // len(line))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    bench.console["secondary"].say(flood + b"Digest integrity check FAILED\r\n" + flood)
    frame = FRAMES["console"]["primary"]
    assert bench.control["primary"].hear(len(frame)) == frame
    bench.console["secondary"].say(b"Digest integrity check FAILED\r\n")
    bench.until(events.Trigger, 2)
    bench.stop()
    whole = (
        flood + b"Digest integrity check FAILED\r\n" + flood + b"Digest integrity check FAILED\r\n"
    )
    assert bench.log("secondary") == whole
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the reflex has ended
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 2 * len(flood) / processor_s > 300_000, "a console may say 300 kB/s"
    offsets = [offset for _, offset in bench.times("secondary")]
    assert offsets[0] == 0 and offsets == sorted(set(offsets))
    assert bench.count(events.Trigger) == 2
    assert bench.count(events.Note) == 0


def test_killed_supervisor_loses_nothing(tmp_path: Path) -> None:
    """kill -9 of the parent while the console talks: what was said before is in the record, and the
    reflex ends."""
    line = Line()
    config = ReflexConfig(
        streams=[
            StreamConfig(
                side="primary",
                fd=line.rig,
                log_path=str(tmp_path / "log"),
                times_path=str(tmp_path / "times"),
            )
        ],
        control={},
        rules=RULES,
        default_instruct=[],
    )
    report_read, report_write = os.pipe()
    parent = os.fork()
    if parent == 0:  # the supervisor: starts the reflex, then hangs
        child = Child(
            "reflex",
            "freezeframe.harness.watch.reflex",
            config,
            stderr_path=tmp_path / "err",
            pass_fds=(line.rig,),
        )
        select.select([child], [], [])
        os.write(report_write, str(child.pid).encode())
        signal.pause()
    os.close(line.rig)
    line.rig = -1
    try:
        assert select.select([report_read], [], [], LIMIT_S)[0]
        reflex = os.pidfd_open(int(os.read(report_read, 20)))
        said = b"".join(b"line %06d\r\n" % number for number in range(20_000))
        line.say(said[:100_000])
        os.kill(parent, signal.SIGKILL)
        line_says_until_closed(line, said[100_000:])
        assert select.select([reflex], [], [], LIMIT_S)[0], "the reflex outlives its supervisor"
        log = (tmp_path / "log").read_bytes()
        assert len(log) >= 100_000
        assert said.startswith(log)
        os.close(reflex)
    finally:
        os.waitpid(parent, 0)
        line.close()
        os.close(report_read)
        os.close(report_write)


def line_says_until_closed(line: Line, data: bytes) -> None:
    """Talk on while somebody listens."""
    sent = 0
    while sent < len(data) and select.select([], [line.device], [], 0.5)[1]:
        try:
            sent += os.write(line.device, data[sent : sent + 1000])
        except OSError:
            return


@pytest.mark.parametrize(
    ("line", "told"),
    [(b"", "no configuration"), (b"{}\n", "missing required field"), (b"\xff\n", "configuration")],
)
def test_a_wrong_configuration_is_one_clear_line(line: bytes, told: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "freezeframe.harness.watch.reflex"],
        input=line,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ran.returncode == 3
    assert ran.stderr.startswith(b"reflex: ") and told in ran.stderr.decode()
    assert ran.stderr.count(b"\n") == 1


def test_says_what_it_could_not_have(tmp_path: Path) -> None:
    """Memory lock and priority are had, or their absence is told: never a silent third."""
    line = Line()
    stream = StreamConfig(
        side="primary", fd=line.rig, log_path=str(tmp_path / "l"), times_path=str(tmp_path / "t")
    )
    config = ReflexConfig(streams=[stream], control={}, rules=[], default_instruct=[])
    child = Child(
        "reflex",
        "freezeframe.harness.watch.reflex",
        config,
        stderr_path=tmp_path / "err",
        pass_fds=(line.rig,),
    )
    try:
        assert select.select([child], [], [], LIMIT_S)[0]
        (ready,) = child.receive()
        assert isinstance(ready, events.ProcessReady)
        policy = os.sched_getscheduler(child.pid)
        assert (policy & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO) != any(
            "SCHED_FIFO" in n for n in ready.notes
        )
        status = Path(f"/proc/{child.pid}/status").read_text()
        is_locked = "VmLck:\t       0 kB" not in status
        assert is_locked != any("memory not locked" in note for note in ready.notes)
    finally:
        child.stop(time.monotonic_ns() + LIMIT_S * NS_PER_S)
        line.close()


def test_times_are_on_disk_soon_and_exact(bench: Bench) -> None:
    """Nobody stops the reflex: what a kill would leave has a time for each read."""
    for number in range(3):
        before_ns = time.monotonic_ns()
        bench.console["primary"].say(b"0123456789")
        bench.recorded("primary", 10 * number + 10)
        deadline = time.monotonic() + LIMIT_S
        while not bench.times("primary") or sum(bench.times("primary")[-1]) < before_ns:
            assert time.monotonic() < deadline, "the time was not written"
            select.select([bench.reflex], [], [], 0.002)
        t_ns, offset = bench.times("primary")[-1]
        assert before_ns <= t_ns <= time.monotonic_ns()
        assert 10 * number <= offset < 10 * number + 10


@pytest.mark.parametrize(("text", "most"), [("never", UNRECORDED), ("x", 1)])
def test_a_console_that_never_pauses_is_recorded_all_the_same(
    tmp_path: Path, text: str, most: int
) -> None:
    """Reads go before the record, but not for ever, and not before a trigger is told."""
    script = Script(chunks=["x"] * 1000, rules=[ConsoleRule(name="rule", literal=text)])
    told, unrecorded_bytes = chatter(tmp_path, script)
    assert unrecorded_bytes == most
    assert sum(isinstance(event, events.Trigger) for event in told) == (1000 if text == "x" else 0)


def test_the_rule_that_strikes_is_told_first(bench: Bench) -> None:
    """A sequence ends before the plain text does; both come in one read, and the search strikes for
    the plain one."""
    rules = [
        ConsoleRule(
            name="sequence", literal="one", then="two", within_ms=1000, instruct=("primary",)
        ),
        ConsoleRule(name="plain", literal="three", instruct=("secondary",)),
    ]
    bench.reflex.send(events.NewRules(t_ns=0, rules=msgspec.json.encode(rules)))
    bench.arm()
    bench.console["primary"].say(b"one two three")
    assert [trigger.rule for trigger in bench.until(events.Trigger, 2)] == ["plain", "sequence"]
    (sent,) = bench.until(events.FrameSent)
    assert sent.side == "secondary"
    assert bench.seen.index(sent) > 1
    bench.arm()
    bench.console["primary"].say(b"one two")
    assert bench.until(events.FrameSent, 2)[1].side == "primary"


def test_the_silence_of_a_console_that_has_ended_keeps_nobody_awake(bench: Bench) -> None:
    heartbeat = ConsoleRule(name="heartbeat", literal="alive", absent_ms=50)
    bench.reflex.send(events.NewRules(t_ns=0, rules=msgspec.json.encode([heartbeat])))
    bench.arm()
    for side, line in bench.console.items():
        line.say(b"alive")
        bench.recorded(side, 5)
    os.close(bench.console["primary"].device)
    bench.console["primary"].device = -1
    bench.until(events.StreamEnded)
    (trigger,) = bench.until(events.Trigger)  # 50 ms later: the other console's
    assert trigger.side == "secondary"
    used_s = cpu_s_of(bench.reflex.pid)
    assert not select.select([bench.reflex], [], [], 0.3)[0]
    assert cpu_s_of(bench.reflex.pid) - used_s < 0.15


def test_silence_is_a_trigger(bench: Bench) -> None:
    heartbeat = ConsoleRule(name="heartbeat", literal="alive", absent_ms=50)
    bench.reflex.send(events.NewRules(t_ns=0, rules=msgspec.json.encode([heartbeat])))
    bench.arm()
    bench.console["primary"].say(b"alive")
    (trigger,) = bench.until(events.Trigger)
    bench.until(events.FrameSent, 2)
    bench.stop()
    ((t_read_ns, _),) = bench.times("primary")
    assert trigger.t_arrival_ns - t_read_ns >= 50_000_000
