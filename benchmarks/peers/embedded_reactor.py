"""pytest-embedded's ``dut.expect_exact``, as a test: control descriptor and time limit in the
environment."""

import os
import sys


def test_react(dut):
    control = int(os.environ["CONTROL_FD"])
    print("ready", file=sys.__stdout__, flush=True)
    os.write(int(os.environ["READY_FD"]), b"ready\n")
    while True:
        dut.expect_exact("Digest integrity check FAILED", timeout=3600)
        os.write(control, b"F" * 50)
