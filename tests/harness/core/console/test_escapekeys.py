"""Keys of a console that is written to: whatever the split, the same goes to the device."""

import random

import pytest

from freezeframe.harness.core.console.escapekeys import ConsoleKey, EscapeKeys, Typed


def fed(*pieces: bytes) -> list[Typed]:
    """What came out, with neighbouring bytes joined."""
    keys, found = EscapeKeys(), []
    for piece in pieces:
        for one in keys.feed(piece):
            if isinstance(one, bytes) and found and isinstance(found[-1], bytes):
                found[-1] += one
            else:
                found.append(one)
    return found


def test_what_each_key_is() -> None:
    assert fed(b"reboot\r\x03\x1b[A") == [b"reboot\r\x03\x1b[A"], (
        "Ctrl-C and arrows are the device's"
    )
    assert fed(b"q\x14q") == [b"q", ConsoleKey.QUIT]
    assert fed(b"\x14b\x14?\x14x\x14\x1b") == [
        ConsoleKey.BREAK, ConsoleKey.HELP, ConsoleKey.HELP, ConsoleKey.HELP
    ]  # fmt: skip
    assert fed(b"a\x14\x14b") == [b"a\x14b"]
    assert fed(b"1\x141\x149\x140") == [b"1", 1, 9, ConsoleKey.HELP]
    assert fed(b"ab\x14") == [b"ab"], "a letter is still to come"


@pytest.mark.parametrize("seed", range(30))
def test_a_split_changes_nothing(seed: int) -> None:
    dice = random.Random(seed)
    data = bytes(dice.choice(b"\x14\x14qb?1\r\xff\x00z") for _ in range(200))
    cuts = sorted(dice.randrange(len(data)) for _ in range(dice.randrange(40)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert fed(*pieces) == fed(data)
