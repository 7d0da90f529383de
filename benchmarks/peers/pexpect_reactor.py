"""pexpect with its default settings: CONSOLE_TTY CONTROL_FD."""

import os
import sys

import pexpect.fdpexpect

console = os.open(sys.argv[1], os.O_RDONLY | os.O_NOCTTY)
control = int(sys.argv[2])
child = pexpect.fdpexpect.fdspawn(console, timeout=None)
print("ready", flush=True)
while True:
    child.expect_exact(b"Digest integrity check FAILED")
    os.write(control, b"F" * 50)
