"""What a SCPI instrument answers, in the dialects that supplies in the field speak. Pure.

SCPI-1999 wants ``0,"No error"``, ``1``, ``12.000``. Seen are also ``0  No Error``, ``+0,"No error"``, ``No
error``; ``ON`` and ``OFF``; ``12.000V``, ``400 mA``, ``+1.20000000E+01``.
"""

import math
import re
from typing import Final

NOT_A_NUMBER: Final = 9.9e37
"""From here on a value means "overflow" or "not a number" (SCPI-1999, 7.2.1.4)."""
_NO_ERROR: Final = re.compile(r'"?(?:[+-]?0+(?![.\d])|no error\b)', re.IGNORECASE)
_ERROR: Final = re.compile(r'"?[+-]?\d{1,5}(?![.\d])')
_NUMBER: Final = re.compile(
    r"([+-]?(?:\d{1,20}\.?\d{0,20}|\.\d{1,20})(?:[eE][+-]?\d{1,3})?) ?([munk]?)(?:[VA]|VDC|ADC)?"
)
_FACTORS: Final = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "k": 1e3}
_SWITCHES: Final = {"ON": True, "OFF": False}


def is_no_error(answer: str) -> bool:
    """Of an answer to SYST:ERR?; ValueError when it is no entry of an error queue."""
    if _NO_ERROR.match(answer):
        return True
    if not _ERROR.match(answer):
        raise ValueError(f"{answer!r} is no entry of an error queue")
    return False


def number(answer: str) -> float:
    """In volts or amperes. ValueError: it is none, or the instrument could not measure it."""
    found = _NUMBER.fullmatch(answer.strip())
    value = float(found[1]) * _FACTORS[found[2]] if found else math.nan
    if not abs(value) < NOT_A_NUMBER:
        raise ValueError(f"{answer!r} is not a number")
    return value


def switch(answer: str) -> bool:
    """Of an answer to OUTP?. ValueError: it is neither on nor off."""
    word = answer.strip().strip('"').upper()
    if word in _SWITCHES:
        return _SWITCHES[word]
    if (value := number(word)) not in (0, 1):
        raise ValueError(f"{answer!r} is neither on nor off")
    return value == 1
