"""The serial driver's counters: as a C compiler lays the kernel's structure out, what grew between two
readings, and in words."""

import ctypes
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from freezeframe.harness.core.lineerrors import COUNTERS, LineErrors

COUNT: Final = st.integers(0, 2**32 - 1)
ERRORS: Final = st.builds(
    LineErrors, framing=COUNT, overruns=COUNT, parity=COUNT, breaks=COUNT, buffer_overruns=COUNT
)


class Counters(ctypes.Structure):
    """``struct serial_icounter_struct`` of include/uapi/linux/serial.h."""

    names = ("cts", "dsr", "rng", "dcd", "rx", "tx", "frame", "overrun", "parity", "brk", "buf_overrun")  # fmt: skip
    _fields_ = (*((name, ctypes.c_uint) for name in names), ("reserved", ctypes.c_int * 9))


@given(st.lists(COUNT, min_size=11, max_size=11), st.integers(-(2**31), 2**31 - 1))
def test_the_kernels_structure_is_decoded(counts: list[int], reserved: int) -> None:
    written = Counters(*counts, (ctypes.c_int * 9)(*[reserved] * 9))
    read = LineErrors.decode(bytes(written))
    assert read.framing == written.frame and read.overruns == written.overrun
    assert read.parity == written.parity and read.breaks == written.brk
    assert read.buffer_overruns == written.buf_overrun


@pytest.mark.parametrize("size", [0, 1, 44, COUNTERS.size - 1, COUNTERS.size + 1])
def test_other_bytes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no counters of a serial line"):
        LineErrors.decode(bytes(size))


@given(ERRORS, st.lists(st.integers(0, 2**31 - 1), min_size=5, max_size=5))
def test_what_grew_is_found_although_a_counter_of_32_bits_wraps(
    before: LineErrors, grown: list[int]
) -> None:
    counts = zip(structs.astuple(before), grown, strict=True)
    names = LineErrors.__struct_fields__
    now = [(count + more) % 2**32 for count, more in counts]
    found = LineErrors(**dict(zip(names, now, strict=True))).since(before)
    assert list(structs.astuple(found)) == grown


def test_a_counter_that_was_set_back_counts_from_zero() -> None:
    assert LineErrors(overruns=3).since(LineErrors(overruns=5000)).overruns == 3


def test_breaks_lose_nothing_and_all_else_is_named() -> None:
    assert LineErrors().losses == LineErrors(breaks=9).losses == ""
    errors = LineErrors(framing=1, overruns=2, parity=3, breaks=4, buffer_overruns=5)
    assert errors.losses == "1 framing, 2 overruns, 3 parity, 5 buffer overruns"
    assert errors.plus(LineErrors(overruns=2)).overruns == 4
