"""labgrid's ConsoleExpect over its SerialDriver: CONSOLE_TTY CONTROL_FD."""

import os
import sys

from labgrid import Target
from labgrid.driver import SerialDriver
from labgrid.resource import RawSerialPort

control = int(sys.argv[2])
target = Target("bench")
RawSerialPort(target, "console", port=sys.argv[1], speed=115200)
driver = SerialDriver(target, "serial")
target.activate(driver)
print("ready", flush=True)
while True:
    driver.expect("Digest integrity check FAILED", timeout=3600)
    os.write(control, b"F" * 50)
