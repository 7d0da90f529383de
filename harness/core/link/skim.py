"""The loops over every frame: in C where the module was built, else in Python; ``NATIVE`` tells
which."""

from typing import TYPE_CHECKING

from freezeframe.harness.core.link.skimpure import (
    BAD,
    GOOD,
    NEVER,
    UNFINISHED,
    ZERO,
    Buffer,
    Run,
    blocks,
    encode,
    run_of,
)

if TYPE_CHECKING:
    from freezeframe.harness.core.link.skimpure import (
        Fill,
        HalfState,
        Skimmer,
        judge_sum,
        ring_block,
        survey,
    )

    NATIVE: bool
else:
    try:
        from freezeframe.harness.core.link._native import (
            Fill,
            HalfState,
            Skimmer,
            judge_sum,
            ring_block,
            survey,
        )

        NATIVE = True
    except ImportError:
        from freezeframe.harness.core.link.skimpure import (
            Fill,
            HalfState,
            Skimmer,
            judge_sum,
            ring_block,
            survey,
        )

        NATIVE = False

__all__ = [
    "BAD", "GOOD", "NATIVE", "NEVER", "UNFINISHED", "ZERO", "Buffer", "Fill", "HalfState", "Run",
    "Skimmer", "blocks", "encode", "judge_sum", "ring_block", "run_of", "survey",
]  # fmt: skip
