"""Stands for the supervisor of a run: decodes every event of the reflex, arms again after each
frame.

Events on the standard input, commands on the standard output.
"""

import os
import sys
import time

from benchmarks.consoles_common import FRAME
from freezeframe.harness.core import events


def main() -> None:
    decoder = events.Decoder()
    arm = events.encode(
        events.Arm(t_ns=time.monotonic_ns(), frames={"console": {"primary": FRAME}})
    )
    os.write(1, arm)
    while data := os.read(0, 1 << 16):
        for event in decoder.feed(data):
            if isinstance(event, events.FrameSent):
                os.write(1, arm)


if __name__ == "__main__":
    sys.exit(main())
