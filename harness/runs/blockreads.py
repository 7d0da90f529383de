"""Reads the failing block from each side whose driver can (``roles.BlockReading``), before the pair
rejoins where the device allows it: a resync overwrites it on one side.

A side that was not instructed is asked at once, in a thread of its own. A side that restarts is asked
once when nothing else can be asked of it, for EARLY_NS at most, and only when its boot loader answers;
else after its root cause data set was pulled, for LATE_NS at most. The recovery's next action waits so
long, and its deadline moves by that (``Recovery.postpone``); a driver that does not return is given up
after the boundary's GRACE_S. When that was, and on which side of the rejoin, the incident says. A read
that fails costs itself.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.core.events import NS_PER_S, Ns, Side, Trigger
from freezeframe.harness.core.failingplace import FailingPlace, failing_place
from freezeframe.harness.core.recovery.messages import (
    Action,
    AwaitBoot,
    AwaitFullDuplex,
    Finish,
    PowerCycle,
    Pull,
    SendBreak,
)
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict.failingblock import BlockRead, FailingBlock, differing
from freezeframe.harness.errors import HarnessError, WireError
from freezeframe.harness.incidents.consoleline import line_of
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import BLOCK
from freezeframe.harness.roles import MAX_BLOCK_READ_BYTES, BlockReading
from freezeframe.harness.wire.blockstamp import SECTOR_BYTES

EARLY_NS: Final = 2 * NS_PER_S
"""For a side that restarts: it cannot be asked for anything else until it has booted."""
LATE_NS: Final = 10 * NS_PER_S
"""For 64 KiB over a line of 115,200 baud, coded: 8 s."""
UNNAMED: Final = "no trigger names a place of the volume"
NOT_ASKED: Final = "it was not asked: the recovery ended before it could answer"


class BlockReads:
    """One incident's. ``before`` is called with each action of its recovery, ``saved`` in a redrive."""

    def __init__(
        self,
        opened: OpenBench,
        incident: Incident,
        triggers: Callable[[], Sequence[Trigger]],
        instructed: Collection[Side],
    ) -> None:
        """``triggers``: those up to now, the incident's own first."""
        self._opened = opened
        self._incident = incident
        self._triggers = triggers
        self._instructed = instructed
        self._place: FailingPlace | None = None
        self._mutex = threading.Lock()
        self._reads: dict[Side, BlockRead] = {}
        self._data: dict[Side, bytes] = {}
        self._tried: set[Side] = set()
        """Asked since its power was last switched."""
        self._threads: dict[Side, threading.Thread] = {}

    def before(self, action: Action) -> None:
        """Do what fits before ``action``, for which the line of its side is free when this returns."""
        match action:
            case AwaitBoot(side=side):
                self._early()
                self._leave(side)
            case Pull(side=side):
                self._leave(side)
            case SendBreak(side=side) | PowerCycle(side=side):
                self._leave(side)
                self._tried.discard(side)
            case AwaitFullDuplex():
                self._ask(self._unread(), LATE_NS)
                self._close()
            case Finish():
                self._close()
            case _:
                pass

    def saved(self) -> None:
        """In a redrive, once both have saved and before the write is sent again over the block."""
        sides = self._unread()
        self._ask(sides, EARLY_NS)
        for side in sides:
            self._leave(side)

    def _unread(self) -> list[Side]:
        for side in list(self._threads):
            self._leave(side)
        return [side for side in self._able() if side not in self._data]

    def _able(self) -> list[Side]:
        found = self._opened.controllers.items()
        return [side for side, one in found if isinstance(one, BlockReading)]

    def _early(self) -> None:
        for side in self._able():
            if side in self._data or side in self._tried:
                continue
            if side not in self._instructed:
                self._ask([side], LATE_NS)
            elif getattr(self._opened.controllers[side], "reads_while_booting", False):
                self._ask([side], EARLY_NS)

    def _ask(self, sides: Collection[Side], limit_ns: Ns) -> None:
        """Each in a thread of its own: the two lines know nothing of each other."""
        if self._place is None and sides:
            self._place = failing_place(
                self._triggers(),
                lambda one: line_of(self._incident.path, one),
                self._opened.bench.link.console_texts,
                MAX_BLOCK_READ_BYTES // SECTOR_BYTES,
            )
        if self._place is None:
            return
        for side in sides:
            self._tried.add(side)
            self._threads[side] = threading.Thread(
                target=self._read,
                args=(side, self._place, limit_ns),
                name=f"block {side}",
                daemon=True,
            )
            self._threads[side].start()

    def _leave(self, side: Side) -> None:
        thread = self._threads.pop(side, None)
        if thread is not None:
            thread.join()

    def _read(self, side: Side, place: FailingPlace, limit_ns: Ns) -> None:
        controller, asked_ns = self._opened.controllers[side], time.monotonic_ns()
        assert isinstance(controller, BlockReading)
        try:
            data = controller.read_blocks(
                place.offset_bytes, place.length_bytes, asked_ns + limit_ns
            )
            read_ns = time.monotonic_ns()
            name = f"{side}/{BLOCK}"
            self._incident.store_copy(name, data)
        except HarnessError as error:
            why = error.what if isinstance(error, WireError) else str(error)
            with self._mutex:
                self._reads[side] = BlockRead(t_asked_ns=asked_ns, reason=escape(why))
            return
        with self._mutex:
            self._data[side] = data
            self._reads[side] = BlockRead(
                path=name, sha256=hashlib.sha256(data).hexdigest(), t_asked_ns=asked_ns, t_read_ns=read_ns,
                is_zero=not any(data),
            )  # fmt: skip

    def _close(self) -> None:
        """Into incident.json, when any driver of the bench can read blocks."""
        for side in list(self._threads):
            self._leave(side)
        able = self._able()
        if not able:
            return
        place, why = self._place, UNNAMED if self._place is None else NOT_ASKED
        reads = {side: self._reads.get(side, BlockRead(reason=why)) for side in able}
        both = list(self._data.values())
        count, first = differing(*both) if len(both) > 1 else (None, None)
        block = FailingBlock(
            sector=place.sector if place is not None else None,
            sectors=place.sectors if place is not None else 0,
            named_by=escape(place.named_by) if place is not None else "",
            sides=reads, bytes_different=count, byte_offset=first,
        )  # fmt: skip
        self._incident.update(failing_block=msgspec.to_builtins(block))
