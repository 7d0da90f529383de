"""Every single byte of a write of 4 KiB and of 64 KiB, changed once: is it found on the link?

    python tests/tools/byterun.py

Changed after its digest was made, the digest does not fit; changed before, the digest fits and the
stamps of the host's writer do not.
"""

import sys
from typing import Final

from crc32c import crc32c

from freezeframe.harness.core.blocks.blockstamp import stamp
from freezeframe.harness.core.link.stampwatch import SoleWriter, StampWatch

SIZES: Final = (4 << 10, 64 << 10)
LBA, SEED, VOLUME = 64, 7, 1


def missed(size_bytes: int, places: range) -> list[int]:
    """The bytes whose change is not found by the digest, or not by the stamps."""
    good = stamp(VOLUME, SEED, 5, LBA, size_bytes // 512, 1_000)
    right = crc32c(good)
    watch = StampWatch(SoleWriter(VOLUME, SEED, 0, 1 << 20), same_addresses=True)
    bad, found = bytearray(good), []
    for at in places:
        bad[at] ^= 1 + at % 255
        crc = crc32c(bytes(bad))
        fault = watch.judge(LBA, bytes(bad), crc)
        if crc == right or fault is None:
            found.append(at)
        bad[at] = good[at]
    assert watch.judge(LBA, good, right) is None, "what was written is not hit"
    return found


def main() -> int:
    every = {size: missed(size, range(size)) for size in SIZES}
    for size, found in every.items():
        print(f"{size} bytes: each changed once, {len(found)} not found {found[:10]}")
    return 1 if any(every.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
