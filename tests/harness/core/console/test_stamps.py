"""Times in front of lines, as the programs that are named write them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.console.stamps import read

NS = 1_000_000_000
WALL = int(datetime(2026, 11, 29, 16, 34, 22, tzinfo=UTC).timestamp()) * NS
TEXT = b"block drbd0: Digest integrity check FAILED: 72304s +4096"
UPTIME = 12 * NS + 345_678_000


@pytest.mark.parametrize(
    ("stamp", "uptime_ns", "wall_ns"),
    [
        (b"", None, None),
        (b"[   12.345678] ", UPTIME, None),
        (b"<4>[   12.345678] ", UPTIME, None),
        (b"[   12.345678][    T1] ", UPTIME, None),
        (b"[   12.345678][ T1826] ", UPTIME, None),
        (b"[   12.345678][    C3] ", UPTIME, None),
        (b"[   12.345678][T12345] ", UPTIME, None),
        (b"kern  :warn  : [   12.345678] ", UPTIME, None),
        (b"\x1b[32m[   12.345678] \x1b[0m\x1b[33m", UPTIME, None),
        (b"[   12.345678 <    0.000012>] ", UPTIME, None),
        (b"[Nov29 16:34] ", None, None),
        (b"[  +0.000012] ", None, None),
        (b"[Sun Nov 29 16:34:22 2026] ", None, WALL),
        (b"[So Nov 29 16:34:22 2026] ", None, WALL),
        ("[\u65e5 Nov 29 16:34:22 2026] ".encode(), None, WALL),
        (b"[2026-11-29 16:34:22] ", None, WALL),
        (b"[2026-11-29 16:34:22.345] [   12.345678] ", UPTIME, WALL + 345_000_000),
        (b"[Sun Nov  9 16:34:22 2026]", None, WALL - 20 * 86_400 * NS),
        (b"[Sun Nov 29 16:34:22 2026] [   12.345678][    T1] ", UPTIME, WALL),
        (b"2026-11-29T16:34:22,345678+00:00 ", None, WALL + 345_678_000),
        (b"Nov 29 16:34:22 node-b kernel: ", None, WALL),
        (b"Nov 29 16:34:22 node-b kernel: [   12.345678] ", UPTIME, WALL),
        (b"<4>Nov 29 16:34:22 node-b kernel: [   12.345678][    C0] ", UPTIME, WALL),
        (b"Nov 29 16:34:22.345678 node-b kernel: ", None, WALL + 345_678_000),
        (b"Nov 29 16:34:22 node-b drbd[812]: ", None, WALL),
        (b"<4>1 2026-11-29T16:34:22.345678Z node-b kernel - - - ", None, WALL + 345_678_000),
        (b'<4>1 2026-11-29T17:34:22+01:00 node-b kernel 1 - [a@1 b="\\]"][c] ', None, WALL),
        (b"2026-11-29T16:34:22+0000 node-b kernel: ", None, WALL),
        (b"2026-11-29T11:34:22.345678-05:00 node-b kernel: ", None, WALL + 345_678_000),
        (b"Sun 2026-11-29 16:34:22 UTC node-b kernel: ", None, WALL),
        (b"[   12.345678] node-b kernel: ", UPTIME, None),
        (b"[   12.345678] node-b drbd[812]: ", UPTIME, None),
        (b"1795970062.345678 node-b kernel: ", None, WALL + 345_678_000),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", [b"", b"\r", b"\r\n", b"\r\r\n"])
def test_stamps(stamp: bytes, uptime_ns: int | None, wall_ns: int | None, end: bytes) -> None:
    found = read(stamp + TEXT + end, year=2026)
    assert (found.rest, found.uptime_ns, found.wall_ns) == (TEXT, uptime_ns, wall_ns)


def test_a_stamp_without_a_year_needs_one() -> None:
    found = read(b"Nov 29 16:34:22 node-b kernel: " + TEXT)
    assert (found.rest, found.wall_ns, found.is_stamped) == (TEXT, None, False)


def test_a_date_that_no_calendar_has_is_no_time() -> None:
    assert read(b"[Sun Nov 39 16:34:22 2026] x").wall_ns is None
    assert read(b"2026-13-01T00:00:00Z node kernel: x").wall_ns is None
    assert read(b"[Sun Nov 29 25:34:22 2026] x").wall_ns is None


@pytest.mark.parametrize(
    "text",
    [
        b"block drbd0: local disk failed", b"[  OK  ] Started foo.service.", b"[1.5] volts on rail 2",
        b"drbd r0: [drbd_w_r0/134] sock_sendmsg time expired, ko = 1", b"March 2026: nothing",
        b"warn: kern: x", b"<none>", b"[    1.23456", b"-- MARK --",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_stamp_is_text(text: bytes) -> None:
    assert (read(text).rest, read(text).is_stamped) == (text, False)
    stamped = read(b"[    1.000000] " + text)
    assert (stamped.rest, stamped.uptime_ns) == (text, NS)


@given(st.binary(max_size=200) | st.text("[]<>0123456789.: TC-+ZNovSun\x1bm", max_size=120).map(str.encode))  # fmt: skip
def test_noise_is_read_without_an_error(line: bytes) -> None:
    found = read(line, year=2026)
    assert len(found.rest) <= len(line)
    assert found.uptime_ns is None or found.uptime_ns >= 0
