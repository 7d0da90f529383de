"""The driver on instruments of several dialects, over a real connection."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from freezeframe.drivers.power.scpi_supply import ScpiSupply
from freezeframe.firmware_sim.scpi import DIALECTS, Dialect, Rail, Scpi
from freezeframe.harness.errors import RigError


@dataclass
class Load:
    changes: list[bool] = field(default_factory=list)

    def apply(self, powered: bool) -> None:
        self.changes.append(powered)

    def draws(self) -> bool:
        return True


@dataclass
class Instrument:
    """One client; its answers leave in pieces of one byte."""

    dialect: Dialect
    loads: dict[int, Load] = field(default_factory=lambda: {1: Load(), 2: Load()})
    lines: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=self._serve, args=(listener,))
            thread.start()
            try:
                yield f"TCPIP::127.0.0.1::{listener.getsockname()[1]}::SOCKET"
            finally:
                thread.join(30)

    def heard(self, data: bytes) -> bytes:
        return data

    def _serve(self, listener: socket.socket) -> None:
        scpi = Scpi({number: Rail(load) for number, load in self.loads.items()}, self.dialect)
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(4096):
                self.lines += data.decode().splitlines()
                answer = scpi.feed(self.heard(data))
                for at in range(len(answer)):
                    connection.sendall(answer[at : at + 1])


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_every_dialect(dialect: Dialect) -> None:
    instrument = Instrument(dialect)
    with instrument.served() as resource, ScpiSupply(resource) as supply:
        assert "SimSupply" in supply.identify()
        supply.set_output("primary", True)
        assert (supply.output("primary"), supply.output("secondary")) == (True, False)
        assert supply.measure("primary") == (pytest.approx(12.0), pytest.approx(0.8))
        supply.set_output("primary", False)
        assert not supply.output("primary")
        assert supply.measure("primary")[0] == pytest.approx(dialect.residual_v)
    assert instrument.loads[1].changes == [True, False]
    assert len(instrument.lines) < 50


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_every_dialect_refuses(dialect: Dialect) -> None:
    """Silence about errors is worth something only when an error is heard."""
    instrument = Instrument(dialect)
    with instrument.served() as resource, ScpiSupply(resource, volts=24.0) as supply:
        with pytest.raises(RigError, match=r"refuses 'VOLT 24.000,\(@1\)': -222"):
            supply.set_output("primary", True)
        assert not supply.output("primary")
    assert instrument.loads[1].changes == []


@dataclass
class Capped(Instrument):
    """Takes less than it is asked for, and says nothing."""

    asked: bytes = b""
    taken: bytes = b""

    def heard(self, data: bytes) -> bytes:
        return data.replace(self.asked, self.taken)


@pytest.mark.parametrize(
    ("asked", "taken", "said"),
    [(b"VOLT 12.000", b"VOLT 10.000", "took 10 for 'VOLT 12"), (b"CURR 2.000", b"CURR 0.500", "took 0.5 for 'CURR 2")],
)  # fmt: skip
def test_a_limit_that_the_instrument_did_not_take_switches_nothing_on(
    asked: bytes, taken: bytes, said: str
) -> None:
    instrument = Capped(DIALECTS["SCPI-1999"], asked=asked, taken=taken)
    with instrument.served() as resource, ScpiSupply(resource, limit_a=2.0) as supply:
        with pytest.raises(RigError, match=said):
            supply.set_output("primary", True)
        assert not supply.output("primary")
    assert instrument.loads[1].changes == []


def test_an_output_that_stays_on_is_not_off() -> None:
    instrument = Instrument(replace(DIALECTS["SCPI-1999"], residual_v=11.9))
    with (
        instrument.served() as resource,
        pytest.raises(RigError, match=r"measures 11\.90 V at 0\.00 A, not at most 3\.00 V and off"),
        ScpiSupply(resource, safe_state="leave") as supply,
    ):
        supply.set_output("primary", False)


def test_an_output_that_says_on_is_not_off() -> None:
    instrument = Instrument(replace(DIALECTS["SCPI-1999"], off="1"))
    with (
        instrument.served() as resource,
        pytest.raises(RigError, match=r"measures 0\.00 V at 0\.00 A, not at most 3\.00 V and off"),
        ScpiSupply(resource, safe_state="leave") as supply,
    ):
        supply.set_output("primary", False)


def test_a_dialect_that_nobody_knows_is_named_at_once() -> None:
    instrument = Instrument(replace(DIALECTS["SCPI-1999"], no_error="all is well"))
    with (
        instrument.served() as resource,
        pytest.raises(
            RigError, match="answers 'all is well' to 'SYST:ERR\\?', which is not understood"
        ),
    ):
        ScpiSupply(resource)
    assert instrument.lines == ["SYST:ERR?"]
