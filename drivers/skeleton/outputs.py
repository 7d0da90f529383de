"""A made-up supply for the tests: it answers the lines of ``supply.py``, in memory. With none of your own,
delete this file and check the real one with ``freezeframe driver check NAME --bench FILE --overwrite``.
"""

from freezeframe.testing import Case, PowerCase

from .supply import SkeletonSupply


class SupplyInMemory:
    """The connection to a supply, and the supply behind it. Each output has the same load."""

    LOAD_OHM = 24.0

    def __init__(self) -> None:
        self.volts = {"primary": 0.0, "secondary": 0.0}
        self.is_on = {"primary": False, "secondary": False}
        self._answered = b""

    def sendall(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            self._answered += f"{self._answer(*line.split())}\n".encode()

    def recv(self, max_bytes: int) -> bytes:
        data, self._answered = self._answered[:max_bytes], self._answered[max_bytes:]
        return data

    def close(self) -> None: ...

    def _answer(self, verb: str, side: str = "", *values: str) -> str:
        if verb == "who":
            return "skeleton supply, two outputs"
        if side not in self.is_on:
            return f"error no output {side}"
        match verb, values:
            case "limit", (volts, _):
                self.volts[side] = float(volts)
            case "set", (on,):
                self.is_on[side] = on == "1"
            case "get", ():
                return str(int(self.is_on[side]))
            case "measure", ():
                volts_now = self.volts[side] if self.is_on[side] else 0.02
                return f"{volts_now:.3f} {volts_now / self.LOAD_OHM:.3f}"
            case _:
                return f"error unknown line {verb}"
        return "ok"


# --- what `freezeframe driver check` is given ----------------------------------------------------
def cases() -> list[Case]:
    supply = SupplyInMemory()
    rail = SkeletonSupply(
        "memory:1", volts=12.0, limit_a=3.0, safe_state="off", connected=lambda _: supply
    )
    return [PowerCase(rail=rail)]
