"""The public modules: their names, what importing them costs, and the checks of
``freezeframe.testing`` against objects that break their role."""

import subprocess
import sys
from importlib import import_module

import pytest

from freezeframe import testing
from freezeframe.driver import PowerRail, RigError, Side, UsageError

PUBLIC = ("freezeframe", "freezeframe.driver", "freezeframe.link", "freezeframe.testing")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists(name: str) -> None:
    module = import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None, public
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def imported(statement: str) -> set[str]:
    """The modules of a fresh interpreter after ``statement``."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    return set(done.stdout.split())


HEAVY = {"scapy", "pydantic", "hyperscan", "serial", "pyvisa", "msgspec"}


@pytest.mark.parametrize(
    "statement", ["import freezeframe.fixtures.plugin", "import freezeframe, freezeframe.link"]
)
def test_importing_the_plugin_or_the_link_loads_nothing_heavy(statement: str) -> None:
    assert imported(statement) & (HEAVY | {"freezeframe.harness"}) == set()


def test_a_name_loads_its_module_when_it_is_used() -> None:
    assert "pydantic" in imported("from freezeframe import FaultTable")
    assert "scapy" in imported("from freezeframe.link import Drbd")


def test_the_public_names_are_the_private_ones() -> None:
    """`except RigError` of a driver catches what the harness raises."""
    from freezeframe import RigError as public
    from freezeframe.harness.errors import RigError as private

    assert public is private is RigError


# --- freezeframe.testing ---------------------------------------------------------------------------
class Volume:
    """A HostPort in memory; ``fault`` names what it does wrong."""

    def __init__(self, fault: str = "") -> None:
        self.size_bytes = 1_000 if fault == "size" else 2 << 20
        self.data = bytearray(2 << 20)
        self.fault = fault

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        if offset_bytes + length_bytes > len(self.data) and self.fault != "end":
            raise UsageError("beyond the end")
        if self.fault == "short":
            length_bytes -= 1
        if self.fault == "text":
            return "text"  # type: ignore[return-value]
        if self.fault == "raises":
            return bytes(1 // 0)
        return bytes(self.data[offset_bytes : offset_bytes + length_bytes])

    def write(self, offset_bytes: int, data: bytes, *, fua: bool = False) -> None:
        if offset_bytes + len(data) > len(self.data) and self.fault != "end of writes":
            raise UsageError("beyond the end")
        if self.fault == "fua" and fua:
            return
        if self.fault == "wraps" and offset_bytes >= 1 << 20:
            self.data[:512] = data[:512][::-1]
        if self.fault == "large" and len(data) > 65536:
            data = data[:65536]
        if self.fault == "overwrite" and any(self.data[offset_bytes : offset_bytes + len(data)]):
            return
        self.data[offset_bytes : offset_bytes + len(data)] = data

    def flush(self) -> None:
        if self.fault == "flush":
            raise RigError("cannot flush")

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        self.data[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    def close(self) -> None: ...


def test_a_volume_passes() -> None:
    testing.check_host_port(Volume())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("size", "multiple of 512"),
        ("large", "1048576 bytes at offset 0"),
        ("fua", "with fua"),
        ("wraps", "leaves the others"),
        ("overwrite", "overwritten sector"),
        ("end", "read beyond the end"),
        ("end of writes", "write beyond the end"),
        ("short", r"511 bytes|read back"),
        ("text", r"read\(\) returned str"),
        ("raises", r"read\(\) raised ZeroDivisionError"),
    ],
)
def test_a_wrong_volume_is_named(fault: str, words: str) -> None:
    with pytest.raises(testing.ConformanceError, match=words):
        testing.check_host_port(Volume(fault))


def test_an_error_of_the_volume_itself_comes_through() -> None:
    with pytest.raises(RigError, match="cannot flush"):
        testing.check_host_port(Volume("flush"))


class Supply:
    def __init__(self, fault: str = "") -> None:
        self.on = {"primary": True, "secondary": True}
        self.fault = fault

    def identify(self) -> str:
        return "" if self.fault == "nameless" else "supply"

    def set_output(self, side: Side, on: bool) -> None:
        if self.fault == "toggles":
            on = not self.on[side]
        if self.fault != "stuck":
            self.on[side] = on
        if self.fault == "both":
            self.on = {"primary": on, "secondary": on}

    def output(self, side: Side) -> bool:
        return "on" if self.fault == "a word" else self.on[side]  # type: ignore[return-value]

    def measure(self, side: Side) -> tuple[float, float]:
        if self.fault == "a number":
            return 12.0  # type: ignore[return-value]
        return (12.0, 0.4) if self.on[side] or self.fault == "blind" else (0.01, 0.0)

    def close(self) -> None: ...


def test_a_supply_passes_and_is_left_on() -> None:
    supply: PowerRail = Supply()
    testing.check_power_rail(supply, "primary")
    assert supply.output("primary")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nameless", "identify"),
        ("stuck", r"output\(\) returns False"),
        ("toggles", r"output\(\) returns False"),
        ("blind", "measured: 12.0 V"),
        ("both", "leaves the output of the secondary as it is"),
        ("a number", r"measure\(\) returned float"),
        ("a word", r"output\(\) returned str"),
    ],
)
def test_a_wrong_supply_is_named(fault: str, words: str) -> None:
    with pytest.raises(testing.ConformanceError, match=words):
        testing.check_power_rail(Supply(fault), "primary")
