"""When a warmstart began, as its console tells: the first line that says so, read after its control
frame went out."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from freezeframe.harness.core.events import Ns


def began_ns(
    data: bytes, reads: Sequence[tuple[Ns, int]], pattern: bytes, after_ns: Ns
) -> Ns | None:
    """``data``: the whole record; ``reads``: (t_ns, offset of its first byte) of each read, in
    order. When the read returned that completed the first match behind ``after_ns``; None: there is
    none."""
    first = bisect_left(reads, (after_ns, 0))
    if first == len(reads):
        return None
    starts = [offset for _, offset in reads]
    # A line may have begun in the read before.
    begin = data.rfind(b"\n", 0, starts[first]) + 1
    for match in re.finditer(pattern, data[begin:]):
        end = begin + match.end()
        if end > starts[first]:
            return reads[bisect_right(starts, end - 1) - 1][0]
    return None
