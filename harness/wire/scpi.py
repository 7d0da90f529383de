"""Table of the SCPI commands of the bench supply (SCPI-1999 DCPSUPPLY subset, two outputs,
LF-terminated over TCP)."""

from typing import Final

OUTPUTS: Final = {"primary": 1, "secondary": 2}
TERMINATOR: Final = "\n"
IDENTIFY: Final = "*IDN?"
RESET: Final = "*RST"
ERROR_QUERY: Final = "SYST:ERR?"
SELECT: Final = "INST:NSEL {output}"
OUTPUT: Final = "OUTP {on:d},(@{output})"
OUTPUT_QUERY: Final = "OUTP? (@{output})"
VOLTAGE: Final = "VOLT {volts:.3f},(@{output})"
VOLTAGE_QUERY: Final = "VOLT? (@{output})"
CURRENT_LIMIT: Final = "CURR {amperes:.3f},(@{output})"
CURRENT_LIMIT_QUERY: Final = "CURR? (@{output})"
MEASURE_VOLTAGE: Final = "MEAS:VOLT? (@{output})"
MEASURE_CURRENT: Final = "MEAS:CURR? (@{output})"
NO_ERROR: Final = '0,"No error"'
VOLTAGE_MAX_V: Final = 15.0
CURRENT_MAX_A: Final = 5.0
NOMINAL_V: Final = 12.0
NOMINAL_LIMIT_A: Final = 3.0
BROWN_OUT_V: Final = 10.0
"""Below this a controller loses its power."""
MAX_LINE_BYTES: Final = 256
"""Longer lines are refused with -363 and dropped."""
MAX_ERRORS: Final = 20
"""Length of the error queue; the last entry then says -350."""
ERRORS: Final = {
    -102: "Syntax error",
    -113: "Undefined header",
    -108: "Parameter not allowed",
    -109: "Missing parameter",
    -222: "Data out of range",
    -240: "Hardware error",
    -350: "Queue overflow",
    -363: "Input buffer overrun",
}
