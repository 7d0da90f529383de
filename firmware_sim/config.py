"""Configuration of a simulated controller."""

from dataclasses import dataclass
from typing import Final

from freezeframe.firmware_sim.drbd_contract import PeerConfig
from freezeframe.harness.wire.control import SERIAL_NUMBER_BYTES

BOOT_NS: Final = 300_000_000
"""From power-on, or the end of the old boot, to the banner."""


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Identity and settings of one controller."""

    side: str
    """primary | secondary: the role it takes at its first boot."""
    serial_number: str
    """ASCII, at most 16 bytes."""
    peer: PeerConfig
    boot_ns: int = BOOT_NS
    autonomic: bool = False
    seed: int = 0
    """Seed of the UUIDs of this controller. Serial number and boot epoch are added, so that no
    UUID repeats."""
    wall_offset_ns: int = 0
    """Wall clock minus the clock of the argument ``now``."""

    def __post_init__(self) -> None:
        raw = self.serial_number.encode("ascii")
        if not 1 <= len(raw) <= SERIAL_NUMBER_BYTES:
            raise ValueError(f"serial number must have 1 to {SERIAL_NUMBER_BYTES} characters")
