"""A SCPI bench supply with an output for each controller, over PyVISA: the ``PowerRail`` role.

Tables of its commands: ``harness/wire/scpi.py``; what it answers, in several dialects:
``scpi_answers``. After every command the instrument's error queue is read, and after a query that
it did not answer; after every switch the voltage is measured. One thread uses one supply: PyVISA sessions are
not to be shared.
"""

import atexit
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from freezeframe.drivers.power import scpi_answers
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.errors import HarnessError, RigError
from freezeframe.harness.wire import scpi

TIMEOUT_S: Final = 3.0
"""For one answer."""
SETTLE_TIMEOUT_S: Final = 3.0
"""For the measured voltage to follow an output that was switched."""
SETTLE_POLL_S: Final = 0.02
TOLERANCE: Final = 0.05
"""Of the set voltage: the measured one must be this near."""
RESIDUE: Final = 0.25
"""Of the set voltage: an output that is off may measure up to this, from its capacitors and from
what the controller's other lines feed back. No controller runs on it."""
MIN_MEASUREMENTS: Final = 3
"""Before an output is given up, however slowly the instrument answers."""
MAX_ANSWER_BYTES: Final = 1024
MAX_QUEUED_ERRORS: Final = 2 * scpi.MAX_ERRORS


T = TypeVar("T")


class ScpiSupply:
    """The supply at the VISA address ``resource``, for example
    ``TCPIP::192.168.1.20::5025::SOCKET``.

    ``volts`` and ``limit_a`` are set before an output goes on. ``safe_state``: what ``close``
    leaves, "off" = both outputs off, "leave" = as they are; it is reached too when the interpreter
    ends without ``close``.
    """

    def __init__(
        self,
        resource: str,
        *,
        volts: float = scpi.NOMINAL_V,
        limit_a: float = scpi.NOMINAL_LIMIT_A,
        safe_state: Literal["off", "leave"] = "off",
    ) -> None:
        self.resource = resource
        self._volts = volts
        self._limit_a = limit_a
        self._safe_state = safe_state
        self._session: Any = None
        self._is_owed_answer = False
        """A query was interrupted (Ctrl-C): its answer may still come and would be taken for the
        next one's."""
        self._manager: Any = None
        self._open()
        atexit.register(self._close_at_exit)
        try:
            self._read_errors()
        except HarnessError:
            self._release()
            raise

    # --- the role -----------------------------------------------------------------------------------------

    def identify(self) -> str:
        return self._ask(scpi.IDENTIFY)

    def set_output(self, side: Side, on: bool) -> None:
        """Switch ``side``'s output and wait until the measured voltage agrees. RigError when it
        does not in time."""
        number = scpi.OUTPUTS[side]
        if on:
            self._set(scpi.VOLTAGE, scpi.VOLTAGE_QUERY, number, self._volts)
            self._set(scpi.CURRENT_LIMIT, scpi.CURRENT_LIMIT_QUERY, number, self._limit_a)
        self._tell(scpi.OUTPUT.format(on=on, output=number))
        self._settle(side, on)

    def output(self, side: Side) -> bool:
        query = scpi.OUTPUT_QUERY.format(output=scpi.OUTPUTS[side])
        return self._read(query, scpi_answers.switch)

    def measure(self, side: Side) -> tuple[float, float]:
        number = scpi.OUTPUTS[side]
        volts = self._read(scpi.MEASURE_VOLTAGE.format(output=number), scpi_answers.number)
        query = scpi.MEASURE_CURRENT.format(output=number)
        return volts, self._read(query, scpi_answers.number)

    def close(self) -> None:
        """Reach the safe state and release the instrument. RigError when the safe state is not
        certain."""
        if self._session is None:
            return
        failures = []
        if self._safe_state == "off":
            for side in SIDES:
                try:
                    self.set_output(side, False)
                except HarnessError as error:
                    failures.append(f"{side}: {error}")
        self._release()
        if failures:
            raise RigError(
                f"power supply {self.resource} may still be on, switch it off by hand: {'; '.join(failures)}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except RigError as failure:
            if error is None:
                raise
            # The first error stays the one that is reported; this one travels with it.
            error.add_note(str(failure))

    # --- inside -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._is_owed_answer = False
        with self._translated(
            "cannot be opened: check the address, the cable, and that no other program holds it"
        ):
            # PyVISA takes 0.3 s to import: only a bench that has a supply pays for it.
            import pyvisa

            self._manager = pyvisa.ResourceManager("@py")
            try:
                self._session = self._manager.open_resource(
                    self.resource,
                    read_termination=scpi.TERMINATOR,
                    write_termination=scpi.TERMINATOR,
                    timeout=TIMEOUT_S * 1000,
                    open_timeout=int(TIMEOUT_S * 1000),
                )
            except BaseException:
                self._manager.close()
                raise

    def _release(self) -> None:
        atexit.unregister(self._close_at_exit)
        session, self._session = self._session, None
        with contextlib.suppress(RigError), self._translated("cannot be closed"):
            session.close()
            self._manager.close()

    def _close_at_exit(self) -> None:
        # Nobody is left to catch an error: the interpreter prints it, which is all that can be
        # done.
        self.close()

    @contextlib.contextmanager
    def _translated(self, trouble: str) -> Iterator[None]:
        """The one place where PyVISA's errors become ours."""
        try:
            yield
        except HarnessError:
            raise
        except Exception as error:
            # PyVISA and its backends raise VisaIOError, OSError, ValueError and bare Exception.
            raise RigError(
                f"power supply {self.resource} {trouble} ({type(error).__name__}: {error})"
            ) from error

    def _write(self, command: str) -> None:
        if self._session is None:
            raise RigError(f"power supply {self.resource} is closed")
        if self._is_owed_answer:
            with contextlib.suppress(RigError), self._translated("cannot be closed"):
                self._session.close()
                self._manager.close()
            self._open()
        with self._translated(f"does not take {command!r}: check its power and the network"):
            self._session.write(command)

    def _query(self, command: str) -> str:
        try:
            self._write(command)
            with self._translated(f"does not answer {command!r}: check its power and the network"):
                answer: bytes = self._session.read_bytes(MAX_ANSWER_BYTES, break_on_termchar=True)
                return answer.decode("ascii", "replace").strip()
        except HarnessError:
            raise
        except BaseException:
            self._is_owed_answer = True
            raise

    def _tell(self, command: str) -> None:
        self._write(command)
        self._read_errors(command)

    def _ask(self, command: str) -> str:
        try:
            return self._query(command)
        except RigError:
            # An instrument that refuses a query does not answer it; its error queue says why.
            self._read_errors(command)
            raise

    def _read_errors(self, command: str = "") -> None:
        """Empty the instrument's error queue. RigError when it held an error and ``command`` is
        what we just said; errors of before our time are only removed."""
        errors = []
        for _ in range(MAX_QUEUED_ERRORS):
            answer = self._query(scpi.ERROR_QUERY)
            if self._understood(scpi.ERROR_QUERY, answer, scpi_answers.is_no_error):
                break
            errors.append(answer)
        else:
            raise RigError(
                f"power supply {self.resource}: its error queue does not end: {errors[0]}; {errors[-1]}"
            )
        if errors and command:
            raise RigError(f"power supply {self.resource} refuses {command!r}: {'; '.join(errors)}")

    def _understood(self, query: str, answer: str, read: Callable[[str], T]) -> T:
        try:
            return read(answer)
        except ValueError as error:
            raise RigError(
                f"power supply {self.resource} answers {answer!r} to {query!r}, which is not understood: {error}"
            ) from error

    def _read(self, query: str, read: Callable[[str], T]) -> T:
        return self._understood(query, self._ask(query), read)

    def _set(self, command: str, query: str, number: int, value: float) -> None:
        """Set a limit and see that the instrument took it."""
        said = command.format(volts=value, amperes=value, output=number)
        self._tell(said)
        taken = self._read(query.format(output=number), scpi_answers.number)
        if abs(taken - value) > TOLERANCE * value:
            raise RigError(f"power supply {self.resource} took {taken:g} for {said!r}")

    def _settle(self, side: Side, on: bool) -> None:
        until = time.monotonic() + SETTLE_TIMEOUT_S
        for measured in itertools.count(1):
            volts, amperes = self.measure(side)
            if on and abs(volts - self._volts) <= TOLERANCE * self._volts:
                return
            if not on and abs(volts) <= RESIDUE * self._volts and not self.output(side):
                return
            if time.monotonic() > until and measured >= MIN_MEASUREMENTS:
                break
            time.sleep(SETTLE_POLL_S)
        wanted = f"{self._volts:.2f} V" if on else f"at most {RESIDUE * self._volts:.2f} V and off"
        raise RigError(
            f"power supply {self.resource}: output {side} measures {volts:.2f} V at {amperes:.2f} A, "
            f"not {wanted}: check the wiring and the current limit"
        )
