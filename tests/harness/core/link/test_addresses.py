"""Addresses are compared as addresses."""

import pytest

from freezeframe.harness.core.link.addresses import canonical


@pytest.mark.parametrize(
    ("written", "one"),
    [
        ("FD00::0A63:0001", "fd00::a63:1"),
        ("fd00:0::a63:1", "fd00::a63:1"),
        ("::ffff:10.99.0.1", "10.99.0.1"),
        ("::FFFF:0A63:0001", "10.99.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("10.99.0.1", "10.99.0.1"),
        ("", ""),
        ("a name", "a name"),
    ],
)
def test_however_it_is_written(written: str, one: str) -> None:
    assert canonical(written) == one
