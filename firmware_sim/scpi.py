"""The bench supply's command interpreter: SCPI lines in, answers out, rails switched. No I/O.

Rails belong to the instrument and are shared by all clients; the error queue and the selected
output belong to one client's ``Scpi``. Headers are taken in short and long form, in any case,
several a line with ``;``.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from freezeframe.harness.wire import scpi

IDENTITY: Final = "FreezeFrame,SimSupply,FFSIM-PSU,1.0"
LOAD_A: Final = 0.8
"""What a running controller draws."""
MAX_ERROR_TEXT: Final = 80
_CHANNEL: Final = re.compile(r",?\s*\(@\s*(\d{1,3})\s*\)$")
_NUMBER: Final = re.compile(
    r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})(E[+-]?\d{1,2})?$", re.IGNORECASE
)


class Load(Protocol):
    """What hangs on a rail."""

    def apply(self, powered: bool) -> None:
        """Power comes or goes; called with each change. OSError when the load cannot be started."""
        ...

    def draws(self) -> bool:
        """Whether it runs; a load that has ended by itself draws nothing."""
        ...


@dataclass
class Rail:
    """One output: its settings, and the load behind it."""

    load: Load
    volts: float = scpi.NOMINAL_V
    limit_a: float = scpi.NOMINAL_LIMIT_A
    on: bool = False
    powered: bool = False
    """Whether the load has enough to run; follows from the settings in ``settle``."""

    def settle(self) -> None:
        """Let the load feel the settings. OSError when it cannot be started: the rail is then on
        without a load."""
        powered = self.on and self.volts >= scpi.BROWN_OUT_V and self.limit_a >= LOAD_A
        if powered != self.powered:
            self.powered = powered
            self.load.apply(powered)

    def measure(self) -> tuple[float, float]:
        """Volts and amperes at the terminals. A load that wants more than the limit pulls the
        voltage down."""
        if not self.on:
            return 0.0, 0.0
        if self.volts >= scpi.BROWN_OUT_V and self.limit_a < LOAD_A:
            return self.volts * self.limit_a / LOAD_A, self.limit_a
        return self.volts, LOAD_A if self.powered and self.load.draws() else 0.0


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How an instrument words its answers; the default is SCPI-1999's."""

    no_error: str = scpi.NO_ERROR
    on: str = "1"
    off: str = "0"
    number: str = "{:.3f}"
    """Of settings."""
    volts: str = "{:.3f}"
    amperes: str = "{:.3f}"
    """Of measured values."""
    terminator: str = scpi.TERMINATOR
    residual_v: float = 0.0
    """Measured at an output that is off."""


SCPI_1999: Final = Dialect()
DIALECTS: Final[Mapping[str, Dialect]] = {
    "SCPI-1999": SCPI_1999,
    "signed, exponents": Dialect(
        no_error='+0,"No error"', number="{:+.8E}", volts="{:+.8E}", amperes="{:+.8E}"
    ),
    "no comma": Dialect(no_error="0  No Error"),
    "words": Dialect(no_error="No Error", on="ON", off="OFF"),
    "units": Dialect(number="{:.3f}", volts="{:.3f}V", amperes="{:.3f}A"),
    "units apart": Dialect(on="+1", off="+0", volts="{:.2f} V", amperes="{:.2f} A"),
    "CR LF": Dialect(terminator="\r\n", no_error='0, "no error"'),
    "residual volts": Dialect(on="on", off="off", residual_v=1.7),
    "everything": Dialect(
        no_error="0  No Error", on="ON", off="OFF", volts="{:.4f}V", amperes="{:.4f}A", terminator="\r\n",
        residual_v=0.9,
    ),
}  # fmt: skip
"""Seen in the field, each by itself and together."""


class _Refused(Exception):
    """A command's error number, for the queue."""

    def __init__(self, code: int) -> None:
        self.code = code


class Scpi:
    """One client's dialogue. ``feed`` takes bytes as they come and returns the answers' bytes."""

    def __init__(self, rails: Mapping[int, Rail], dialect: Dialect = SCPI_1999) -> None:
        self._rails = rails
        self._dialect = dialect
        self._selected = min(rails)
        self._errors: deque[str] = deque()
        self._held = b""
        self._overrun = False

    def feed(self, data: bytes) -> bytes:
        *lines, self._held = (self._held + data).split(b"\n")
        answers = [self._line(line) for line in lines]
        if len(self._held) > scpi.MAX_LINE_BYTES:
            # Drop what is there and all that follows up to the terminator.
            self._held = b""
            self._overrun = True
        return b"".join(answers)

    def _line(self, line: bytes) -> bytes:
        if self._overrun or len(line) > scpi.MAX_LINE_BYTES:
            self._overrun = False
            self._queue(-363)
            return b""
        answers = []
        for command in line.decode("ascii", "replace").strip().split(";"):
            if not command.strip():
                continue
            try:
                answer = self._command(command.strip())
            except _Refused as refused:
                self._queue(refused.code, command.strip())
                continue
            if answer is not None:
                answers.append(answer)
        return (";".join(answers) + self._dialect.terminator).encode() if answers else b""

    def _queue(self, code: int, context: str = "") -> None:
        if len(self._errors) >= scpi.MAX_ERRORS:
            self._errors[-1] = f'-350,"{scpi.ERRORS[-350]}"'
            return
        # Never a byte that could break out of the quoted answer.
        shown = re.sub(r'[^ -~]|"', "?", context[:MAX_ERROR_TEXT])
        text = f"{scpi.ERRORS[code]};{shown}" if shown else scpi.ERRORS[code]
        self._errors.append(f'{code},"{text}"')

    def _command(self, command: str) -> str | None:
        header, _, rest = command.partition(" ")
        action = HEADERS.get(_short(header))
        if action is None:
            raise _Refused(-113)
        return action(self, rest.strip())

    # --- one method a command; ``rest`` is what stands behind the header ----------------------------------

    def _identify(self, rest: str) -> str:
        _nothing(rest)
        return IDENTITY

    def _reset(self, rest: str) -> None:
        _nothing(rest)
        for rail in self._rails.values():
            rail.on, rail.volts, rail.limit_a = False, scpi.NOMINAL_V, scpi.NOMINAL_LIMIT_A
            rail.settle()

    def _clear(self, rest: str) -> None:
        _nothing(rest)
        self._errors.clear()

    def _complete(self, rest: str) -> str:
        _nothing(rest)
        return "1"

    def _error(self, rest: str) -> str:
        _nothing(rest)
        return self._errors.popleft() if self._errors else self._dialect.no_error

    def _select(self, rest: str) -> None:
        number = _number(rest)
        if number not in self._rails:
            raise _Refused(-222)
        self._selected = int(number)

    def _select_query(self, rest: str) -> str:
        _nothing(rest)
        return str(self._selected)

    def _output(self, rest: str) -> None:
        rail, value = self._rail(rest)
        match value.upper():
            case "1" | "ON":
                rail.on = True
            case "0" | "OFF":
                rail.on = False
            case "":
                raise _Refused(-109)
            case _:
                raise _Refused(-102)
        self._settle(rail)

    def _output_query(self, rest: str) -> str:
        return self._dialect.on if self._queried(rest).on else self._dialect.off

    def _voltage(self, rest: str) -> None:
        rail, value = self._rail(rest)
        rail.volts = _bounded(value, scpi.VOLTAGE_MAX_V)
        self._settle(rail)

    def _voltage_query(self, rest: str) -> str:
        return self._dialect.number.format(self._queried(rest).volts)

    def _current(self, rest: str) -> None:
        rail, value = self._rail(rest)
        rail.limit_a = _bounded(value, scpi.CURRENT_MAX_A)
        self._settle(rail)

    def _current_query(self, rest: str) -> str:
        return self._dialect.number.format(self._queried(rest).limit_a)

    def _measure_voltage(self, rest: str) -> str:
        rail = self._queried(rest)
        volts = rail.measure()[0] if rail.on else self._dialect.residual_v
        return self._dialect.volts.format(volts)

    def _measure_current(self, rest: str) -> str:
        return self._dialect.amperes.format(self._queried(rest).measure()[1])

    # --- helpers ------------------------------------------------------------------------------------------

    def _rail(self, rest: str) -> tuple[Rail, str]:
        """The rail that a channel list names, or the selected one; and what stands before the
        list."""
        found = _CHANNEL.search(rest)
        if found is None:
            if "@" in rest or "(" in rest:
                raise _Refused(-102)
            return self._rails[self._selected], rest
        rail = self._rails.get(int(found[1]))
        if rail is None:
            raise _Refused(-222)
        return rail, rest[: found.start()].strip()

    def _queried(self, rest: str) -> Rail:
        rail, more = self._rail(rest)
        _nothing(more)
        return rail

    def _settle(self, rail: Rail) -> None:
        try:
            rail.settle()
        except OSError as error:
            raise _Refused(-240) from error


def _short(header: str) -> str:
    """A header's canonical form: upper case, no leading colon, each word cut to its SCPI short
    form."""
    query = header.endswith("?")
    words = header.upper().removeprefix(":").removesuffix("?").split(":")
    return ":".join(SHORT_FORMS.get(word, word) for word in words) + ("?" if query else "")


def _nothing(rest: str) -> None:
    if rest:
        raise _Refused(-108)


def _number(text: str) -> float:
    if not text:
        raise _Refused(-109)
    if not _NUMBER.match(text):
        raise _Refused(-102)
    return float(text)


def _bounded(text: str, maximum: float) -> float:
    value = _number(text)
    if not 0 <= value <= maximum:
        raise _Refused(-222)
    return value


SHORT_FORMS: Final = {
    "SYSTEM": "SYST",
    "ERROR": "ERR",
    "OUTPUT": "OUTP",
    "STATE": "STAT",
    "VOLTAGE": "VOLT",
    "CURRENT": "CURR",
    "MEASURE": "MEAS",
    "INSTRUMENT": "INST",
    "NSELECT": "NSEL",
}
HEADERS: Final[dict[str, Callable[[Scpi, str], str | None]]] = {
    "*IDN?": Scpi._identify,
    "*RST": Scpi._reset,
    "*CLS": Scpi._clear,
    "*OPC?": Scpi._complete,
    "SYST:ERR?": Scpi._error,
    "SYST:ERR:NEXT?": Scpi._error,
    "INST:NSEL": Scpi._select,
    "INST:NSEL?": Scpi._select_query,
    "OUTP": Scpi._output,
    "OUTP:STAT": Scpi._output,
    "OUTP?": Scpi._output_query,
    "OUTP:STAT?": Scpi._output_query,
    "VOLT": Scpi._voltage,
    "VOLT?": Scpi._voltage_query,
    "CURR": Scpi._current,
    "CURR?": Scpi._current_query,
    "MEAS:VOLT?": Scpi._measure_voltage,
    "MEAS:CURR?": Scpi._measure_current,
}
