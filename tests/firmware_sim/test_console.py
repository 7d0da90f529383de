from hypothesis import given
from hypothesis import strategies as st

from freezeframe.firmware_sim.console import Console, printable

MS = 1_000_000


def console() -> Console:
    return Console("host", lambda line: line)


def test_a_line_carries_the_uptime() -> None:
    log = console()
    log.boot(1_000_000_000)
    log.set_time(9_296_893_000)
    log.line("block drbd0: hello")
    assert log.take_output() == b"[    8.296893] block drbd0: hello\r\n"
    assert log.take_output() == b""


@given(st.text())
def test_no_text_reaches_the_line_unescaped(text: str) -> None:
    shown = printable(text)
    assert all(0x20 <= byte < 0x7F for byte in shown)


def test_plain_text_is_kept() -> None:
    assert printable("block drbd0: 128s +4096") == b"block drbd0: 128s +4096"
    assert printable("a\0b\n\x7fé") == b"a\\x00b\\x0a\\x7f\\xe9"


def test_activity_is_told_after_128_writes_or_250_ms() -> None:
    log = console()
    log.boot(0)
    log.set_time(100 * MS)
    for _ in range(127):
        log.count_write(4096)
    log.tick()
    assert log.take_output() == b""
    assert log.next_deadline() == 350 * MS
    log.count_write(4096)
    log.tick()
    assert log.take_output() == b"[    0.100000] host: 128 writes, 524288 bytes\r\n"
    log.count_write(512)
    log.set_time(349 * MS)
    log.tick()
    assert log.take_output() == b""
    log.set_time(350 * MS)
    log.tick()
    assert log.take_output() == b"[    0.350000] host: 1 writes, 512 bytes\r\n"
    assert log.next_deadline() is None


def test_a_storm_of_writes_does_not_flood_the_uart() -> None:
    log = console()
    log.boot(0)
    lines = 0
    for ms in range(1000):
        log.set_time(ms * MS)
        for _ in range(200):
            log.count_write(4096)
        log.tick()
        lines += log.take_output().count(b"\r\n")
    assert 20 <= lines <= 51


def test_a_boot_starts_the_uptime_anew() -> None:
    log = console()
    log.boot(0)
    log.count_write(512)
    log.boot(5_000 * MS)
    assert log.next_deadline() is None
    log.line("x")
    assert log.take_output() == b"[    0.000000] x\r\n"
