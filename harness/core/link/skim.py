"""The loops over every frame: in C where the module was built, else in Python; ``NATIVE`` tells
which."""

from typing import TYPE_CHECKING

from freezeframe.harness.core.link.skimpure import Buffer, Run, blocks, encode, run_of

if TYPE_CHECKING:
    from freezeframe.harness.core.link.skimpure import Fill, HalfState, Skimmer, ring_block, survey

    NATIVE: bool
else:
    try:
        from freezeframe.harness.core.link._native import (
            Fill,
            HalfState,
            Skimmer,
            ring_block,
            survey,
        )

        NATIVE = True
    except ImportError:
        from freezeframe.harness.core.link.skimpure import (
            Fill,
            HalfState,
            Skimmer,
            ring_block,
            survey,
        )

        NATIVE = False

__all__ = [
    "NATIVE", "Buffer", "Fill", "HalfState", "Run", "Skimmer", "blocks", "encode", "ring_block",
    "run_of", "survey",
]  # fmt: skip
