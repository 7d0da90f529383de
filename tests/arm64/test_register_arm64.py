"""Set-up registers the emulator where nothing has: in a register of the test's own, where the kernel
has them."""

import subprocess
from pathlib import Path

import pytest
from waiting import LIMIT_S

pytestmark = pytest.mark.arm64
REGISTER = Path(__file__).parents[2] / ".ci/register-arm64"
SCRIPT = """
set -e
if ! mount -t binfmt_misc none /proc/sys/fs/binfmt_misc 2>/dev/null; then
    exec ls /proc/sys/fs/binfmt_misc  # an older kernel: set-up has used the machine's
fi
test ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64
"$0" here
"$0" here  # it is there
ls /proc/sys/fs/binfmt_misc
"""


def test_it_registers_once_and_only_where_nothing_is_registered() -> None:
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT, str(REGISTER)],
        capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "qemu-aarch64" in done.stdout.split() and done.stdout.count("registered") <= 1
