"""What comes out of a port is text, noise or nothing; nothing goes in unless it is named."""

import contextlib
import os
import pty
import random
import select
import threading
import tty
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.harness.core.console.textscore import ENOUGH_BYTES, looks_like_text, text_share
from freezeframe.harness.edge.portscan import PROBE, hear

BANNER = b"U-Boot 2023.01\r\nHit any key to stop autoboot\r\n"


@pytest.fixture
def line() -> Iterator[tuple[int, str]]:
    """(the device's end, the port's name)"""
    main, other = pty.openpty()
    tty.setraw(other)
    yield main, os.ttyname(other)
    os.close(main)
    os.close(other)


@contextlib.contextmanager
def talking(main: int, said: bytes) -> Iterator[None]:
    """A device that says it again and again: what it said before the port was opened is lost."""
    done = threading.Event()

    def talk() -> None:
        while not done.wait(0.01):
            with contextlib.suppress(BlockingIOError):  # nobody reads just now
                os.write(main, said)

    os.set_blocking(main, False)
    talks = threading.Thread(target=talk)
    talks.start()
    try:
        yield
    finally:
        done.set()
        talks.join(60)


def arrived(main: int) -> bytes:
    return os.read(main, 4096) if select.select([main], [], [], 0)[0] else b""


def test_a_banner_is_heard_and_nothing_is_written(line: tuple[int, str]) -> None:
    main, name = line
    with talking(main, BANNER):
        heard = hear(name, 60.0)
    assert (heard.kind, heard.baud) == ("text", 115200)
    assert heard.excerpt in ("Hit any key to stop autoboot", "U-Boot 2023.01")
    assert arrived(main) == b""


def test_a_silent_port_is_tried_once_and_not_written_to(line: tuple[int, str]) -> None:
    main, name = line
    heard = hear(name, 0.05)
    assert (heard.kind, heard.baud) == ("silent", 115200)
    assert arrived(main) == b""


def test_noise_is_no_text_at_any_rate(line: tuple[int, str]) -> None:
    main, name = line
    with talking(main, random.Random(1).randbytes(400)):
        heard = hear(name, 0.5, bauds=(115200, 9600))
    assert (heard.kind, heard.baud) == ("noise", 9600) and heard.excerpt.endswith("of them text")
    assert arrived(main) == b""


def test_a_named_port_is_probed_and_its_prompt_heard(line: tuple[int, str]) -> None:
    main, name = line

    def board() -> None:
        assert select.select([main], [], [], 60)[0] and os.read(main, 10) == PROBE
        os.write(main, b"\r\nlocalhost login: \x1b[2J")

    answers = threading.Thread(target=board)
    answers.start()
    heard = hear(name, 5.0, probe=True)
    answers.join(60)
    assert heard.kind == "text" and heard.excerpt == "localhost login: \\x1b[2J"


def test_a_port_that_cannot_be_opened_says_why() -> None:
    heard = hear("/dev/there-is-none", 1.0)
    assert heard.kind == "closed" and "/dev/there-is-none" in heard.excerpt


@given(st.binary(max_size=300))
def test_the_share_is_a_share(data: bytes) -> None:
    assert 0.0 <= text_share(data) <= 1.0
    assert not looks_like_text(data[: ENOUGH_BYTES - 1])


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=20), st.integers(0, 2**32)
)
def test_printable_text_is_text_and_random_bytes_are_not(text: str, seed: int) -> None:
    assert looks_like_text(text.encode()) and looks_like_text(text.encode() + "äß漢".encode())
    assert not looks_like_text(random.Random(seed).randbytes(400))
