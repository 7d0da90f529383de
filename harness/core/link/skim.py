"""The loops over every frame: in C where the module was built, else in Python; ``NATIVE`` tells
which."""

from typing import TYPE_CHECKING

from freezeframe.harness.core.link.skimpure import (
    BAD,
    GOOD,
    NEVER,
    TIMESTAMPS_OFF,
    UNFINISHED,
    ZERO,
    Buffer,
    Run,
    blocks,
    encode,
    run_of,
    signed,
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

        if not hasattr(Skimmer, "next_data"):
            raise ImportError(
                "the C module was built from older sources: .ci/setup builds it again"
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
    "BAD", "GOOD", "NATIVE", "NEVER", "TIMESTAMPS_OFF", "UNFINISHED", "ZERO", "Buffer", "Fill", "HalfState",
    "Run", "Skimmer", "blocks", "encode", "judge_sum", "ring_block", "run_of", "signed", "survey",
]  # fmt: skip
