"""What a station says of itself that JSON could not carry as it is."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from freezeframe.harness.core.events import NS_PER_S, PowerSample
from freezeframe.harness.core.livestatus import LiveStatus, Supply, decode, encode
from freezeframe.harness.runs.livestation import _side


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_a_supply_answers_that_is_no_number_reaches_who_looks(value: float) -> None:
    """Seen: `top` took the watch for one of another version."""
    nothing_known: Any = SimpleNamespace(presence=SimpleNamespace(parts={}, sides={}))
    sample = PowerSample(t_ns=0, side="primary", volts=value, amperes=0.5, error_ns=0)
    one = _side(nothing_known, "primary", sample, NS_PER_S)
    status = LiveStatus(
        utc="", bench="lab", command="watch", pid=1, who="", started_utc="", age_s=0.0,
        sides={"primary": one},
    )  # fmt: skip
    seen = decode(encode(status))
    assert isinstance(seen, LiveStatus)
    assert seen.sides["primary"].supply == Supply(volts=None, amperes=0.5, age_s=1.0)
