"""Table of the self-describing host block: every 512-byte sector that the stamped writer writes
says what it is."""

import struct
from typing import Final

MAGIC: Final = b"FFSTAMP1"
SECTOR_BYTES: Final = 512
HEADER: Final = struct.Struct("<8sIIQQQQ")
"""magic, volume, seed (low 32 bits), lba (sector number), write_id, write_lba (first sector of the
write), time_ns."""
FIELDS: Final = ("magic", "volume", "seed", "lba", "write_id", "write_lba", "time_ns")
FILL_BYTES: Final = SECTOR_BYTES - HEADER.size - 4
"""Then a fill that only seed and write_id decide."""
CRC: Final = struct.Struct("<I")
"""Last: CRC-32C over the 508 bytes before it."""

assert HEADER.size + FILL_BYTES + CRC.size == SECTOR_BYTES
