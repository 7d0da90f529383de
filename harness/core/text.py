"""Escape text from a device so that a terminal or a report can show it safely; where in somebody's
code an exception was raised; the name that a caller may have meant; a range of sectors in words."""

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final


def escape(text: str | bytes) -> str:
    """Return ``text`` on one line, with each character that a terminal could act on written as
    ``\\xNN`` or ``\\uNNNN``.

    Bytes are decoded as UTF-8; invalid bytes become ``\\xNN``. All characters that Unicode does not
    class as printable are escaped: C0 and C1 controls (ESC, NUL, newlines, CSI), bidirectional and
    other format controls, line and paragraph separators, unusual spaces, lone surrogates, private
    and unassigned code points. A backslash stays one backslash. Printing with rich still needs
    ``markup=False``: ``[...]`` is not escaped.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _escaped(ord(character)) for character in text
    )


def _escaped(code_point: int) -> str:
    named = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}.get(code_point)
    if named is not None:
        return named
    if code_point <= 0xFF:
        return f"\\x{code_point:02x}"
    return f"\\u{code_point:04x}" if code_point <= 0xFFFF else f"\\U{code_point:08x}"


_OURS: Final = str(Path(__file__).resolve().parents[1])


def where_raised(error: BaseException) -> str:
    """ " (driver.py, line 71)": the innermost line of ``error`` that is not of the harness; "" when all
    are."""
    trace = traceback.extract_tb(error.__traceback__)
    found = [one for one in trace if not str(Path(one.filename).resolve()).startswith(_OURS)]
    return f" ({Path(found[-1].filename).name}, line {found[-1].lineno})" if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``, did you mean X?`` with the known names nearest to ``name``; "": none is near."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f", did you mean {' or '.join(near)}?" if near else ""


def sector_range(first: int, count: int | None) -> str:
    """Return ``sectors 17792-17919``; ``sector 17792`` when ``count`` is 1, or not known (None)."""
    last = first + (count or 1) - 1
    return f"sectors {first}-{last}" if last > first else f"sector {first}"


def counted(count: int, noun: str) -> str:
    """Return "1 gap", "2 gaps": the number and its noun, which takes an s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
