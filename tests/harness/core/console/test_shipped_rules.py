"""The rule files that come with the project: each rule speaks on its line, and is silent on one that
is nearly it; and what real consoles amount to. Every line is looked for whole, byte by byte and in
odd pieces, and the plain matcher agrees."""

import gzip
from pathlib import Path

import pytest

from freezeframe.harness.core.console.recheck import recheck
from freezeframe.harness.core.console.rules import ConsoleRule, parse_rules
from freezeframe.harness.core.console.triggers import Scanner
from freezeframe.harness.core.verdict.deviceclock import lines
from freezeframe.harness.core.verdict.signature import normalised

BENCH_RULES = Path(__file__).parents[4] / "bench_configs" / "rules"
CONSOLES = Path(__file__).parents[3] / "golden" / "field" / "consoles"


def rules_of(*files: str) -> tuple[ConsoleRule, ...]:
    return tuple(
        rule
        for file in files
        for rule in parse_rules((BENCH_RULES / file).read_text(), file).console
    )


DRBD, DIED = rules_of("drbd.toml"), rules_of("node-died.toml")


def names(rules: tuple[ConsoleRule, ...], stream: bytes) -> list[str]:
    """Of the hits, in order."""
    told = set()
    for size in (1, 7, 4096):
        scanner = Scanner(rules, {"c": "secondary"})
        hits = [
            (rules[hit.rule].name, hit.end_offset_bytes)
            for at in range(0, len(stream), size)
            for hit in scanner.feed("c", stream[at : at + size], 0)
        ]
        told.add(tuple(hits))
    assert len(told) == 1
    assert recheck(rules, "secondary", stream, [(0, 0)], hits).agrees
    return [name for name, _ in hits]


DRBD_LINES = {
    "digest-failed": (
        "drbd r0/0 drbd0: Digest integrity check FAILED: 1280s +65536",
        "drbd r0/0 drbd0: Digest integrity checks: none failed",
    ),
    "receive-error": ("drbd0: error receiving Data, l: 4120!", "drbd0: error receiving data from l: 4120!"),
    "out-of-sync": ("block drbd0: Out of sync: start=8, size=8 (sectors)", "block drbd0: out of sync: 8"),
    "bad-barrier-ack": ("drbd r0: BAD! BarrierAck #7 received, expected #6!", "drbd r0: BarrierAck #7"),
    "unknown-request": (
        "block drbd0: got_BlockAck: failed to find request 0xffff8880, sector 8s",
        "block drbd0: failed to find request of sector 8s",
    ),
    "protocol-error": (
        "drbd r0 ctl-a: conn( Connected -> ProtocolError ) peer( Primary -> Unknown )",
        "drbd r0 ctl-a: conn( ProtocolError -> Unconnected )",
    ),
    "remote-timeout": (
        "block drbd0: Remote failed to finish a request within 4188ms > ko-count (2) * timeout",
        "block drbd0: Remote finished a request within 4188ms",
    ),
    "ping-timeout": ("drbd u12 nodeA: PingAck did not arrive in time.", "drbd u12: PingAck arrived in time."),
    "send-timeout": (
        "drbd r0 ctl-b: [drbd_s_r0/812] sending time expired, ko = 1",
        "drbd r0: [drbd_w_r0/134] sock_sendmsg time expired, ko = 12",
    ),
    "connection-timeout": (
        "block drbd0: peer( Secondary -> Unknown ) conn( Connected -> Timeout ) pdsk( UpToDate -> DUnknown )",
        "block drbd0: conn( Timeout -> Unconnected )",
    ),
    "state-change-timeout": (
        "drbd r0: Two-phase commit 411107339 timeout", "drbd r0: Two-phase commit: not woken up in time",
    ),
    "wrong-packet": (
        "drbd r0: Wrong magic value 0x00000000 in protocol version 101",
        "drbd r0: Wrong magic value 0x47455420 in protocol version 80",
    ),
    "beyond-end": ("block drbd0: request from peer beyond end of local disk: 8s", "block drbd0: end of local disk"),
    "logic-bug": (
        "drbd u12215/0 drbd854: drbd_req_destroy: Logic BUG rq_state: (0:2, 1:4), completion_ref = 1",
        "drbd r0: a new logic, no bug",
    ),
    "assertion": (
        "drbd pvc-3892ecbd/0 drbd1438: ASSERTION i >= 0 FAILED in put_ldev", "drbd r0: ASSERTION i >= 0 holds",
    ),
    "split-brain": (
        "block drbd0: Split-Brain detected but unresolved, dropping connection!", "block drbd0: no Split-Brain",
    ),
    "unrelated-data": ("drbd r0/0 drbd0 b: Unrelated data, aborting!", "drbd r0/0: Unrelated"),
    "disk-failed": (
        "block drbd0: Local IO failed in drbd_request_endio. Detaching...", "block drbd0: Local IO failed",
    ),
    "disk-detached": ("block drbd0: disk( UpToDate -> Failed )", "block drbd0: disk( Failed -> Diskless )"),
    "local-io-error": ("block drbd0: local WRITE IO error sector 2048+8 on vdb", "block drbd0: local WRITE IO"),
    "metadata-io-error": ("block drbd0: meta data update failed!", "block drbd0: meta data updated"),
}  # fmt: skip

DIED_LINES = {
    "kernel-panic": (
        "Kernel panic - not syncing: Fatal exception in interrupt",
        "Kernel panic - not syncing: sysrq triggered crash",
    ),
    "kernel-bug": ("kernel BUG at mm/slub.c:4321!", "a kernel BUG at mm/slub.c"),
    "kernel-oops": ("Oops: 0002 [#1] PREEMPT SMP NOPTI", "Oops: it says nothing"),
    "hung-task": (
        "INFO: task drbd_w_r0:134 blocked for more than 120 seconds.", "INFO: task drbd_w_r0:134 unblocked",
    ),
    "soft-lockup": (
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/1:0:812]", "soft lockup detector: on",
    ),
    "hard-lockup": (
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 1", "NMI watchdog: Enabled. Permanently consumes one counter",
    ),
    "workqueue-lockup": (
        "BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 33s!", "workqueue: pool cpus=1",
    ),
    "rcu-stall": (
        "rcu: INFO: rcu_preempt self-detected stall on CPU", "rcu: Hierarchical RCU implementation.",
    ),
    "machine-check": (
        "mce: [Hardware Error]: CPU 3: Machine Check Exception: 5 Bank 4: be00000000800400",
        "mce: [Hardware Error]: Machine check events logged",
    ),
    "watchdog-unfed": ("watchdog0: pretimeout event", "watchdog0: hardware watchdog started"),
    "watchdog-left-running": (
        "watchdog: watchdog0: watchdog did not stop!", "watchdog: watchdog0: nowayout prevents watchdog being stopped!",
    ),
}  # fmt: skip

FURTHER = (
    (DRBD, "send-timeout", "node-b kernel: drbd0: [kjournald/10662] sock_sendmsg time expired, ko = 4294967295"),
    (DRBD, "send-timeout", "drbd0: [w/1] sock_sendmsg time expired, ko = 0"),
    (DRBD, "receive-error", "drbd r0 ctl-a: error receiving P_DATA, e: -22 l: 65540!"),
    (DRBD, "disk-failed", "drbd r0/0 drbd0: Local IO failed in drbd_endio_write_sec_final."),
    (DRBD, "assertion", "drbd0: ASSERT( mdev->state.conn < Connected ) in drbd_receiver.c:3210"),
    (DRBD, "state-change-timeout", "drbd r0: State change failed: Timeout in operation"),
    (DRBD, "connection-timeout", "drbd r0 ctl-b: conn( Connected -> Timeout ) peer( Secondary -> Unknown )"),
    (DIED, "kernel-bug", "kernel BUG at put_page_testzero+0x12/0x30 [drbd] [verbose debug info unavailable]"),
    (DIED, "kernel-bug", "BUG: kernel NULL pointer dereference, address: 0000000000000008"),
    (DIED, "kernel-bug", "Unable to handle kernel paging request at virtual address ffff000012345678"),
    (DIED, "kernel-oops", "Internal error: Oops: 0000000096000004 [#1] SMP"),
    (DIED, "kernel-oops", "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP PTI"),
    (DIED, "rcu-stall", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"),
    (DIED, "kernel-panic", "Kernel panic - not syncing: softlockup: hung tasks"),
    (DIED, "hung-task", "INFO: task jbd2/drbd0-8:900 blocked in I/O wait for more than 245 seconds."),
)  # fmt: skip


def test_each_rule_has_its_lines() -> None:
    assert set(DRBD_LINES) == {rule.name for rule in DRBD}
    assert set(DIED_LINES) == {rule.name for rule in DIED}


@pytest.mark.parametrize(
    ("rules", "name", "line"),
    [
        *((DRBD, name, line) for name, (line, _) in DRBD_LINES.items()),
        *((DIED, name, line) for name, (line, _) in DIED_LINES.items()),
        *FURTHER,
    ],
)
def test_speech(rules: tuple[ConsoleRule, ...], name: str, line: str) -> None:
    stamps = (b"[    1.000000] ", b"[    1.000000][    T1] ", b"Apr 27 15:46:45 node-b kernel: ")
    ends = (b"\r\n", b"\r\r\n", b"\r")
    stream = b"".join(stamp + line.encode() + end for stamp in stamps for end in ends)
    assert names(rules, stream) == [name] * 9


def test_silence() -> None:
    nearly = [line for _, line in (DRBD_LINES | DIED_LINES).values()]
    stream = b"".join(b"[    1.000000] " + line.encode() + b"\r\n" for line in nearly)
    assert names(DRBD + DIED, stream) == []


def test_what_a_healthy_pair_prints_too_is_reported_and_instructs_nobody() -> None:
    """Online verify on a busy volume, an ordered detach, and a shutdown in order that leaves the watchdog
    running."""
    instructed = {rule.name: rule.instruct for rule in DRBD + DIED}
    assert instructed.pop("out-of-sync") == ()
    assert instructed.pop("disk-detached") == ()
    assert instructed.pop("watchdog-left-running") == ()
    assert set(instructed.values()) == {None}, "all others: the bench's policy"


@pytest.mark.parametrize(
    ("file", "hits"),
    [
        ("drbd9-clean-a", []),
        ("drbd9-clean-b", []),
        ("drbd9-digest-a", []),
        ("drbd9-digest-b", ["digest-failed", "receive-error", "protocol-error"]),
    ],
)
def test_consoles_of_a_real_drbd_9_pair(file: str, hits: list[str]) -> None:
    stream = gzip.decompress((CONSOLES / f"{file}.raw.log.gz").read_bytes())
    assert names(DRBD + DIED, stream) == hits


BORDERS = (
    ConsoleRule(name="end-of-line", regex=r"check FAILED: \d+s \+\d+$"),
    ConsoleRule(name="begin-of-line", regex=r"^block drbd\d+: Digest"),
    ConsoleRule(name="torn", literal="Digest integrity check FAILED", interleaved=True),
)


@pytest.mark.parametrize(
    ("file", "hits"),
    [
        ("console-ko-count-0", ["send-timeout"]),
        ("console-printk-caller", ["digest-failed", "torn", "end-of-line"] * 2),
        ("console-cr-cr-lf", ["begin-of-line", "digest-failed", "torn", "end-of-line"]),
        ("console-cr-only", ["begin-of-line", "digest-failed", "torn", "end-of-line"]),
        ("console-torn", ["digest-failed", "torn", "end-of-line"] * 2),
    ],
)
def test_consoles_from_the_field(file: str, hits: list[str]) -> None:
    assert names(DRBD + BORDERS, (CONSOLES / f"{file}.log").read_bytes()) == hits


def test_a_console_with_callers_has_times_and_one_kind() -> None:
    log = (CONSOLES / "console-printk-caller.log").read_bytes()
    assert [one.uptime_ns for one in lines(log, [(1, 0)])] == [1_000_000_000, 1_000_001_000]
    assert len({normalised(line) for line in log.decode().splitlines()}) == 1
