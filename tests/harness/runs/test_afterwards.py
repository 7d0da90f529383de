"""What is made of the records once their watchers have stopped."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import SIDES, FrameFailed, FrameSent, Side
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.runs.afterwards import time_warmstarts

BOOTS = b"boot of "


@pytest.mark.parametrize("sides", [(), ("primary",), ("secondary",), SIDES])
def test_a_warmstart_is_timed_where_the_bench_still_names_a_control_line(
    sides: tuple[Side, ...], tmp_path: Path
) -> None:
    """Seen: a line that was taken out of the bench file between two starts ended the second."""
    incident = Incident.create(tmp_path, bench="b", seed=0)
    for side in SIDES:
        line = BOOTS + side.encode() + b"\n"
        incident.console_path(side).write_bytes(line)
        incident.console_times_path(side).write_bytes(struct.pack("<QQ", 9_000, 0))
        incident.acted(FrameFailed(t_ns=1, side=side, error="no line"))
        incident.acted(FrameSent(t_ns=2, side=side, seq=1, t_done_ns=4_000, frame=b"frame"))
    opened = SimpleNamespace(
        controllers={side: SimpleNamespace(warmstart_line=BOOTS) for side in sides}
    )
    time_warmstarts(incident, cast(OpenBench, opened))
    timed = {one["side"]: one.get("warmstart_us") for one in incident.record["actions"]}
    assert timed == {side: 5.0 if side in sides else None for side in SIDES}
    incident.finish("fail")
