"""The streaming scanner against an obviously right matcher over the whole stream."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.console.recheck import recheck
from freezeframe.harness.core.console.rules import ConsoleRule, parse_rules
from freezeframe.harness.core.console.triggers import Hit, Scanner
from freezeframe.harness.core.events import SIDES, Side

RULES = (
    ConsoleRule(name="literal", literal="FAILED"),
    ConsoleRule(name="self-overlapping", literal="ABA"),
    ConsoleRule(name="of regex characters", literal="a.$"),
    ConsoleRule(name="with NUL", literal="\0F"),
    ConsoleRule(name="one side", literal="B", side="secondary"),
    ConsoleRule(name="many ends", regex=r"A\d+"),
    ConsoleRule(name="line end", regex=r"D$"),
    ConsoleRule(name="line start", regex=r"^F"),
    ConsoleRule(name="noise", regex=r"[\x80-\xff]{2,}"),
    ConsoleRule(name="garble in between", regex=r"F[\s\S]{0,4}D"),
    ConsoleRule(name="torn apart", literal="AFBD", interleaved=True),
    ConsoleRule(name="torn between words", literal="A B", interleaved=True),
)
ALPHABET = [
    b"A", b"B", b"D", b"F", b"1", b"2", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\0", b"\x80", b"\xff", b"a.$", b"FAILED",
    b"\x1b[1;31m", b"\x1b", b"[0m", b"[    1.000000] ", b"[ C1] ", b"[  OK  ] ",
]  # fmt: skip


def as_read(stream: bytes) -> tuple[bytes, list[int]]:
    """The text, and the raw offset behind each of its bytes."""
    text, ends, at, previous = bytearray(), [], 0, 0
    while at < len(stream):
        if found := re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]+[0-~]|[0-Z\\^-~])").match(
            stream, at
        ):
            at = found.end()
            continue
        byte, at = stream[at], at + 1
        if byte not in b"\r\n":
            text.append(byte)
            ends.append(at)
        elif previous != 0x0D:
            text.append(0x0A)
            ends.append(at)
        previous = byte
    return bytes(text), ends


def is_tear(tear: bytes, literal: bytes, cut: int) -> bool:
    """Whether another writer's text, and no more, may be this."""
    stamped = re.fullmatch(rb"((?:[^\n]*\n)+)(?:\[    1\.000000\](?:\[ C1\])? ?|)", tear)
    if stamped and stamped[1].count(b"\n") <= 3:
        return True
    if b"\n" in tear:
        return False
    in_word = literal[cut - 1 : cut + 1].isalnum() and tear.lower()[-1:] not in (
        b"",
        literal.lower()[cut - 1 : cut],
    )
    return bool(in_word) or tear.startswith((b"[    1.000000]", b"[  OK  ]"))


def ends_torn(literal: bytes, text: bytes) -> bool:
    return any(
        is_tear(text[at + cut : len(text) - len(literal) + cut], literal, cut)
        for cut in range(1, len(literal))
        for at in range(len(text) - len(literal))
        if text.startswith(literal[:cut], at) and text.endswith(literal[cut:])
    )


def expected(rules: tuple[ConsoleRule, ...], side: Side, stream: bytes) -> set[tuple[int, int]]:
    """(rule, end) of every hit: each prefix of the stream, or of its text, is asked whether the rule
    matches at its very end."""
    hits = set()
    text, raw_ends = as_read(stream)
    for index, rule in enumerate(rules):
        if rule.side not in (side, "any"):
            continue
        literal = rule.literal.encode()
        if literal:
            for data, offsets in ((stream, range(1, len(stream) + 1)), (text, raw_ends)):
                hits |= {
                    (index, offsets[end - 1])
                    for end in range(1, len(data) + 1)
                    if data[:end].endswith(literal)
                }
            if not rule.interleaved:
                continue
        line_of_last = -1
        pattern = re.compile(rule.regex.replace("$", r"(?=\n)").encode(), re.MULTILINE)
        for end in range(1, len(text) + 1):
            if literal:
                is_whole = text[:end].endswith(literal)
                if not is_whole and not ends_torn(literal, text[:end]):
                    continue
            elif not any(_ends_at(pattern, text, start, end) for start in range(end)):
                continue
            line = text[: end - 1].count(b"\n")
            if line != line_of_last:
                hits.add((index, raw_ends[end - 1]))
            line_of_last = line
    return hits


def _ends_at(pattern: re.Pattern[bytes], stream: bytes, start: int, end: int) -> bool:
    """Whether some match from ``start`` can end at ``end`` (a greedy one may stop later: the rest
    is hidden)."""
    behind = stream[end : end + 1] if b"(?=" in pattern.pattern else b""
    match = pattern.match(stream[:end] + behind, start)
    return match is not None and match.end() == end


CONSOLES: dict[str, Side] = {side: side for side in SIDES}


def found(rules: tuple[ConsoleRule, ...], side: Side, chunks: list[bytes]) -> list[Hit]:
    scanner = Scanner(rules, CONSOLES)
    return [hit for chunk in chunks for hit in scanner.feed(side, chunk, 0)]


def pairs(hits: list[Hit]) -> list[tuple[int, int]]:
    return sorted((hit.rule, hit.end_offset_bytes) for hit in hits)


def test_a_line_that_systemd_began_holds_no_rest_of_a_torn_text() -> None:
    rules = (ConsoleRule(name="torn", literal="check FAILED", interleaved=True),)
    for stamp, is_torn in (("[  OK  ]", False), ("[    1.000000]", True), ("", True)):
        stream = f"check\r\n{stamp} FAILED\r\n".encode()
        assert bool(found(rules, "primary", [stream])) is is_torn
        assert bool(expected(rules, "primary", stream)) is is_torn


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(ALPHABET), max_size=40), st.data())
def test_same_hits_whole_byte_by_byte_and_split(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts) + b"\n"  # which leaves no terminal sequence open
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    for side in SIDES:
        right = sorted(expected(RULES, side, stream))
        assert pairs(found(RULES, side, [stream])) == right
        assert (
            pairs(found(RULES, side, [stream[at : at + 1] for at in range(len(stream))])) == right
        )
        assert pairs(found(RULES, side, chunks)) == right


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(ALPHABET), max_size=40))
def test_rehearsals_between_the_chunks_strike_for_nobody_and_change_no_hit(
    parts: list[bytes],
) -> None:
    rules = (*RULES, ConsoleRule(name="at each letter", regex=r"[A-Z]+"))
    strikes: list[int] = []
    pretended: list[int] = []
    scanner = Scanner(rules, CONSOLES, strike=strikes.append)
    hits = []
    for part in parts:
        scanner.rehearse(pretended.append)
        hits += scanner.feed("secondary", part, 0)
    assert hits == found(rules, "secondary", parts)
    assert strikes == [hit.rule for hit in hits if rules[hit.rule].is_plain]
    assert len(pretended) == len(parts)  # whatever else the rules find in that text


def test_without_a_plain_rule_nothing_is_rehearsed() -> None:
    pretended: list[int] = []
    scanner = Scanner((ConsoleRule(name="a", regex="x+"),), CONSOLES)
    scanner.rehearse(pretended.append)
    assert pretended == [] and scanner.feed("primary", b"x", 0) == [Hit(0, 1)]


def test_every_border_inside_a_match() -> None:
    stream = b"x" * 300 + b"Digest integrity check FAILED" + b"y" * 300
    rules = (ConsoleRule(name="a", literal="Digest integrity check FAILED"),)
    for cut in range(len(stream) + 1):
        assert found(rules, "primary", [stream[:cut], stream[cut:]]) == [Hit(0, 329)]


TORN = (ConsoleRule(name="a", literal="Digest integrity check FAILED", interleaved=True),)
LINE = b"[    1.000000] block drbd0: Digest integrity check FAILED: 8s\r\n"
TEXT_AT = LINE.index(b"Digest")
OTHERS = (
    b"[    0.900000] cpu 1: all well\r\n",
    b"\r\n[    1.000001] ", b"\r\n[    1.000001][ T1826] ", b"\r\r\n<4>[    1.000001] ", b"\r[    1.000001]",
    b"\r\n[    1.000001][    C3] other: x\r\n[    1.000002][    T1] ",
    b"\n[Tue Nov 24 16:34:22 2026] ", b"\nNov 24 16:34:22 node-b kernel: ",
    b"\nNov 24 16:34:22 node-b kernel: [    1.000001] ",
    b"[  OK  ] Started foo.service.", b"[\x1b[0;32m  OK  \x1b[0m] Started foo.service.\r\n",
    b"[FAILED] Failed to start foo.service.", b"[    0.900000] cpu 1: all well",
)  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_a_text_that_another_writer_tears_apart(other: bytes) -> None:
    for at in range(TEXT_AT + 1, TEXT_AT + 29):
        torn = LINE[:at] + other + LINE[at:]
        right = [Hit(0, torn.rindex(b": 8s"))]
        assert found(TORN, "primary", [torn]) == right
        assert found(TORN, "primary", [torn[n : n + 1] for n in range(len(torn))]) == right
        assert recheck(TORN, "primary", torn, [(0, 0)], [("a", right[0].end_offset_bytes)]).agrees


def test_any_text_in_the_midst_of_a_word() -> None:
    for at in range(TEXT_AT + 1, TEXT_AT + 29):
        torn = LINE[:at] + b"login: " + LINE[at:]
        is_in_word = b" " not in LINE[at - 1 : at + 1]
        assert len(found(TORN, "primary", [torn])) == is_in_word, torn


@pytest.mark.parametrize(
    "text",
    [
        b"Digest is fine\n integral check FAILED\n",
        b"Digest integrity check of 3 blocks: none FAILED\n",
        b"Digest integrity\ncheck\nFAILED\n",
        b"Digest i\na\nb\nc\nntegrity check FAILED",
        b"ntegrity check FAILED\nDigest i\n",
        b"Digest i, no digest integrity check FAILED\n",
        b"Digest i\n(ntegrity check FAILED)",
    ],
)
def test_what_is_not_torn_but_another_text(text: bytes) -> None:
    assert found(TORN, "primary", [text]) == []
    both = text + b"\n" + LINE
    assert found(TORN, "primary", [both]) == [Hit(0, both.rindex(b": 8s"))]


def test_another_disk_that_failed_is_not_a_torn_text() -> None:
    rules = (ConsoleRule(name="a", literal="local disk failed", interleaved=True),)
    for text in (b"local disk ok, remote disk failed\n", b"local d, other disk failed\n"):
        assert found(rules, "primary", [text]) == []
    assert found(rules, "primary", [b"local di\n[    1.000001] sk failed\n"]) == [Hit(0, 33)]


COLOURED = b"\x1b[31mDigest integ\x1b[0mrity\x1b(B check FAILED\x1b[m: 8s\r\n"


@pytest.mark.parametrize("is_read", [False, True])
def test_colours_inside_a_text(is_read: bool) -> None:
    """Also in a console's first one, and where nothing but literals is looked for."""
    rules = (ConsoleRule(name="a", literal="Digest integrity check FAILED"),)
    rules += (ConsoleRule(name="b", regex="^nothing$"),) * is_read
    for before in (b"", b"x\r\n", b"Digest integrity check FAILED\r\n", b"\x1b[0m" + b"y" * 500):
        stream = before + COLOURED + b"Digest integrity check FAILED\r\n"
        last = len(before) + COLOURED.index(b"\x1b[m")
        right = [Hit(0, 29)] * (b"Digest" in before) + [Hit(0, last), Hit(0, len(stream) - 2)]
        for size in (1, 2, 3, 7, 64, len(stream)):
            chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
            assert found(rules, "primary", chunks) == right


@pytest.mark.parametrize(
    "end", [b"\r", b"\n", b"\r\n", b"\r\r\n", b"\r\r\r\n", b"\x1b[0m\r\n", b"\r\x1b[0m\n"]
)
def test_borders_of_lines(end: bytes) -> None:
    rules = (
        ConsoleRule(name="end", regex=r"check FAILED: \d+s \+\d+$"),
        ConsoleRule(name="begin", regex=r"^block drbd\d+: Digest"),
        ConsoleRule(name="empty line", regex=r"a\n\n"),
        ConsoleRule(name="two lines", regex=r"a\r\nb"),
        ConsoleRule(name="whole line", regex=r"^[^b]*$"),
    )
    line = b"block drbd0: Digest integrity check FAILED: 72304s +4096"
    stream = b"x, b" + end + line + end + b"a" + end + b"b" + end
    for size in (1, 2, 5, len(stream)):
        chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
        names = [rules[hit.rule].name for hit in found(rules, "primary", chunks)]
        assert names == ["begin", "end", "whole line", "two lines"]


def test_two_consoles_are_two_streams() -> None:
    scanner = Scanner((ConsoleRule(name="a", literal="FAILED"),), CONSOLES)
    assert scanner.feed("primary", b"FAI", 0) == []
    assert scanner.feed("secondary", b"LED", 0) == []
    assert scanner.feed("primary", b"LED", 0) == [Hit(0, 6)]


def test_no_rules_no_hits() -> None:
    assert Scanner((), CONSOLES).feed("primary", b"FAILED", 0) == []


def test_many_rules_at_once() -> None:
    rules = tuple(ConsoleRule(name=f"r{n}", literal=f"error {n:04d}") for n in range(1000))
    hits = found(rules, "primary", [b"".join(b"error %04d\r\n" % n for n in range(1000))])
    assert [hit.rule for hit in hits] == list(range(1000))


BENCH_RULES = Path(__file__).parents[4] / "bench_configs" / "rules"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"block drbd0: Digest integrity check FAILED: 128s +4096", "digest-failed"),
        (b"block drbd0: Out of sync: start=8, size=8 (sectors)", "out-of-sync"),
        (
            b"block drbd0: BAD! BarrierAck #7 received with n_writes=3, expected n_writes=2!",
            "bad-barrier-ack",
        ),
        (
            b"drbd r0: Remote failed to finish a request within 4188ms > ko-count (2) * timeout",
            "remote-timeout",
        ),
        (b"drbd r0: error receiving Data, e: -5 l: 4100!", "receive-error"),
        (b"drbd r0: PingAck did not arrive in time.", "ping-timeout"),
        (b"drbd r0: got_BlockAck: failed to find request 0x1f00, sector 8s", "unknown-request"),
        (b"block drbd0: local disk failed: Input/output error", "disk-error"),
        (b"ordinary \x85\x91 noise", "console-garbled"),
    ],
)
def test_rules_of_the_simulated_bench(line: bytes, name: str) -> None:
    files = [
        parse_rules((BENCH_RULES / file).read_text(), file) for file in ("sim.toml", "garble.toml")
    ]
    rules = tuple(rule for one in files for rule in one.console)
    hits = found(rules, "secondary", [b"[    1.000000] " + line + b"\r\n"])
    assert [rules[hit.rule].name for hit in hits] == [name]


GOLDEN_DRBD = Path(__file__).parents[3] / "golden" / "drbd"
REAL_CONSOLES = sorted(GOLDEN_DRBD.glob("*.raw.log"))
REAL_HITS = {
    "cycle-mtu1500-b": ["digest-failed", "receive-error", "protocol-error"],
    "integrity-mtu1500-b": ["digest-failed", "receive-error", "protocol-error"],
}
"""Node B took the flipped bit; node A's console holds nothing of ours, not even when it panics and
reboots."""


@pytest.mark.parametrize("path", REAL_CONSOLES, ids=lambda path: path.name)
@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096, 1 << 20])
def test_consoles_of_real_nodes(path: Path, chunk_bytes: int) -> None:
    rules = parse_rules((BENCH_RULES / "drbd.toml").read_text(), "drbd.toml").console
    stream = path.read_bytes()
    hits = found(
        rules,
        "secondary",
        [stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes)],
    )
    assert [rules[hit.rule].name for hit in hits] == REAL_HITS.get(path.name.partition(".")[0], [])


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"block drbd0: Out of sync: start=128, size=8 (sectors)", "out-of-sync"),
        (b"drbd r0: BAD! BarrierAck #7 received, expected #6!", "bad-barrier-ack"),
        (
            b"drbd r0: BAD! BarrierAck #7 received with n_writes=3, expected n_writes=2!",
            "bad-barrier-ack",
        ),
        (
            b"block drbd0: got_BlockAck: failed to find request 0xffff8880, sector 8s",
            "unknown-request",
        ),
        (
            b"block drbd0: Remote failed to finish a request within 4188ms > ko-count (2) * timeout",
            "remote-timeout",
        ),
        (b"drbd r0: PingAck did not arrive in time.", "ping-timeout"),
        (b"drbd r0: [drbd_w_r0/134] sock_sendmsg time expired, ko = 1", "send-timeout"),
        (b"drbd r0: Wrong magic value 0x00000000 in protocol version 101", "wrong-packet"),
        (b"block drbd0: Split-Brain detected but unresolved, dropping connection!", "split-brain"),
        (b"drbd r0/0 drbd0 b: Unrelated data, aborting!", "unrelated-data"),
        (b"block drbd0: disk( UpToDate -> Failed ) ", "disk-detached"),
        (b"block drbd0: local WRITE IO error sector 2048+8 on vdb", "local-io-error"),
        (b"block drbd0: meta data update failed!", "metadata-io-error"),
    ],
)
def test_lines_of_the_kernel_source(line: bytes, name: str) -> None:
    rules = parse_rules((BENCH_RULES / "drbd.toml").read_text(), "drbd.toml").console
    hits = found(rules, "primary", [b"[    1.000000] " + line + b"\r\n"])
    assert [rules[hit.rule].name for hit in hits] == [name]


REAL_FAILURES = GOLDEN_DRBD / "node-failures.log"
REAL_RULES = {
    "digest-failed", "receive-error", "bad-barrier-ack", "protocol-error", "remote-timeout", "ping-timeout",
    "connection-timeout", "wrong-packet", "beyond-end", "unknown-request", "split-brain", "unrelated-data",
}  # fmt: skip


def test_lines_that_a_real_node_printed_when_its_peer_misbehaved() -> None:
    """Each rule that is marked "seen" has its line among those, or in the captures above."""
    text = (BENCH_RULES / "drbd.toml").read_text()
    rules = parse_rules(text, "drbd.toml").console
    hits = found(rules, "secondary", [REAL_FAILURES.read_bytes().replace(b"\n", b"\r\n")])
    assert {rules[hit.rule].name for hit in hits} == REAL_RULES
    assert set(re.findall(r'name = "([\w-]+)" # seen', text)) <= REAL_RULES


def test_no_warning_before_the_last_one() -> None:
    rules = parse_rules((BENCH_RULES / "drbd.toml").read_text(), "drbd.toml").console
    assert found(rules, "primary", [b"drbd r0: [w/1] sock_sendmsg time expired, ko = 12\r\n"]) == []
