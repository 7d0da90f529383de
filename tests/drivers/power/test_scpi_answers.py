"""Answers of supplies in the dialects of the field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeframe.drivers.power.scpi_answers import is_no_error, number, switch


@pytest.mark.parametrize(
    "answer",
    ['0,"No error"', '+0,"No error"', "0  No Error", "0", "+0", "-0", "No error", "NO ERROR", '"No error"', "0 , ok"],
)  # fmt: skip
def test_no_error(answer: str) -> None:
    assert is_no_error(answer)


@pytest.mark.parametrize(
    "answer", ['-222,"Data out of range"', "-113  Undefined header", "101,x", "5"]
)
def test_an_error(answer: str) -> None:
    assert not is_no_error(answer)


@pytest.mark.parametrize("answer", ["", "ok", "0.5", "12.000V", "error 0"])
def test_what_is_no_entry_of_an_error_queue(answer: str) -> None:
    with pytest.raises(ValueError, match="no entry of an error queue"):
        is_no_error(answer)


@given(
    st.floats(-1000, 1000),
    st.sampled_from(["{:.6f}", "{:+.8E}", "{:.6f}V", "{:.6f} A", "{:+.6E}VDC"]),
)
def test_numbers(value: float, form: str) -> None:
    assert number(form.format(value)) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    ("answer", "value"), [("400mA", 0.4), ("12000 mV", 12.0), (".5", 0.5), ("3.", 3.0)]
)
def test_prefixes(answer: str, value: float) -> None:
    assert number(answer) == pytest.approx(value)


@pytest.mark.parametrize(
    "answer",
    ["", "nan", "inf", "twelve", "9.91E37", "9.9E37", "-9.9E+37", "12,5", "0x1", "1 2", "1V2"],
)
def test_what_is_not_a_number(answer: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        number(answer)


def test_switches() -> None:
    assert [switch(one) for one in ("1", "ON", "on", '"ON"', "+1", "1.0")] == [True] * 6
    assert [switch(one) for one in ("0", "OFF", "Off", "+0", "0.000")] == [False] * 5
    for wrong in ("2", "", "maybe", "0.5", "CV"):
        with pytest.raises(ValueError, match=r"is not a number|neither on nor off"):
            switch(wrong)
