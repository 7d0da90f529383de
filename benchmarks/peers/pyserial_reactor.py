"""pyserial's readline(timeout=0.1): CONSOLE_TTY CONTROL_FD."""

import os
import sys

import serial

control = int(sys.argv[2])
port = serial.Serial(sys.argv[1], 115200, timeout=0.1)
print("ready", flush=True)
while True:
    if b"Digest integrity check FAILED" in port.readline():
        os.write(control, b"F" * 50)
