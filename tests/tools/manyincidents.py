"""Make a folder of many small incidents, and time the commands on it:

python tests/tools/manyincidents.py DIR [COUNT]
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

RULES = ("digest-failed", "link-neg-ack", "link-late-ack", "ping-timeout", "kernel-panic")
WORDS = ("resync", "warmstart", "digest", "barrier", "timeout", "carrier", "bitmap")


def make(folder: Path, count: int) -> None:
    """Make ``count`` incidents over a hundred days, of 5 rules on 3 benches, each with two
    consoles."""
    for number in range(count):
        at_s = 1_760_000_000 + number * 864
        clock = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_s))
        path = folder / f"{clock}-{number:08x}"
        for side in ("primary", "secondary"):
            (path / side).mkdir(parents=True)
            word = WORDS[(number + len(side)) % len(WORDS)]
            (path / side / "console.log").write_text(
                f"[ {number}.5] block drbd0: {word} {number}\n"
            )
        rule = RULES[number % len(RULES)]
        record = {
            "format": 4, "id": path.name, "incident_id_hex": f"{number:08x}" + "0" * 24,
            "outcome": ("fail", "pass", "inconclusive")[number % 3], "bench": f"bench{number % 3}",
            "created": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at_s)), "seed": number,
            "clock": {"wall_ns": at_s * 10**9, "monotonic_ns": 10**9, "error_ns": 0},
            "trigger": {
                "rule": rule, "source": "link", "side": "secondary", "detail": f"{rule} of write {number}",
                "offset_bytes": 1, "t_arrival_ns": 10**9, "t_match_ns": 10**9, "t_frame_done_ns": 10**9 + 50_000,
            },
            "notes": [f"number {number}"],
        }  # fmt: skip
        (path / "incident.json").write_text(json.dumps(record))


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    if not folder.exists():
        make(folder, count)
    commands = (
        "list --json",
        "list --kind kernel-panic",
        "search bitmap",
        "stats",
        "show last",
        "show last",
    )
    for command in ("list --json (the index is made)", *commands):
        argv = [
            sys.executable,
            "-m",
            "freezeframe.harness.cli",
            *command.split(" (")[0].split(),
            "--out",
            str(folder),
        ]
        began_s = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(argv, capture_output=True, timeout=600)
        took_s = time.monotonic() - began_s
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # On a loaded machine the processor time says more than the clock.
        spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{took_s:6.2f} s  {spent_s:6.2f} s of processor  exit {done.returncode}  "
            f"{len(done.stdout):>9} bytes  {command}"
        )


if __name__ == "__main__":
    main()
