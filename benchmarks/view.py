"""The live view of ``freezeframe run``, as load beside a benchmark: the standard error is a
terminal."""

import sys
import time

from freezeframe.harness.bench.benchfile import MIB
from freezeframe.harness.cli.runs import RunView

TOTAL = 4096 * MIB


def main() -> None:
    view, done = RunView(quiet=False), 0
    while True:
        done = (done + MIB) % TOTAL
        view.progress(done, TOTAL)
        if done % (64 * MIB) == 0:
            view.phase(f"{done // MIB} MiB are acknowledged")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
