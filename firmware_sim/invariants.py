"""What must hold in every run of the ``World``, as plain functions: each returns its violations,
none when all is well.

A healthy pair keeps all of ``CHECKS``; each mutant breaks at least one.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import cbor2
import zstandard

from freezeframe.firmware_sim.world import SERIAL_NUMBERS, SIDES, World
from freezeframe.harness.wire.control import IDENTITY, MAX_SET_BYTES, REPLY, STATUS, Op, SetKind
from freezeframe.harness.wire.rootcause import RECORD, EventCode

Check = Callable[[World], list[str]]

_ERROR_LINE: Final = re.compile(
    r"BAD!|FAILED|FIXME|error receiving|Out of sync|failed|did not arrive|Split-Brain|StandAlone \)|refused"
)
_BANNER: Final = re.compile(r"boot epoch (\d+)")


def host_never_failed(world: World) -> list[str]:
    """Every host request ended well."""
    return [
        f"host {item.kind} {item.number} failed with {item.error}"
        for item in world.requests
        if item.error
    ]


def host_was_answered(world: World) -> list[str]:
    """No host request was forgotten."""
    return [
        f"host {item.kind} {item.number} was never answered"
        for item in world.requests
        if not item.done
    ]


def acks_follow_stores(world: World) -> list[str]:
    """Protocol C: when the host hears that a write is done, the secondary has it."""
    return [
        f"write {item.number} was acknowledged before the secondary had it"
        for item in world.acked_early
    ]


def acked_writes_are_kept(world: World) -> list[str]:
    """The primary returns the acknowledged data, or that of a later write to the same range."""
    expected = bytearray(world.size_bytes)
    for item in world.requests:
        if item.done and not item.error and item.kind in ("write", "trim"):
            end = item.offset_bytes + item.length_bytes
            expected[item.offset_bytes : end] = item.data or bytes(item.length_bytes)
    found = world.content("primary")
    wrong = [
        at
        for at in range(0, world.size_bytes, 512)
        if found[at : at + 512] != expected[at : at + 512]
    ]
    return (
        [f"{len(wrong)} sectors differ from what was acknowledged, first {wrong[0] // 512}"]
        if wrong
        else []
    )


def sides_agree(world: World) -> list[str]:
    """At rest in full duplex both volumes are equal."""
    if not world.full_duplex:
        return ["the pair is not full duplex"]
    return (
        [] if world.content("primary") == world.content("secondary") else ["the two volumes differ"]
    )


def consoles_tell_no_error(world: World) -> list[str]:
    return [
        f"{side}: {line}"
        for side in SIDES
        for line in world.console(side).splitlines()
        if _ERROR_LINE.search(line)
    ]


def boot_epochs_rise(world: World) -> list[str]:
    """Each boot has a higher epoch than the one before."""
    found = []
    for side in SIDES:
        epochs = [int(epoch) for epoch in _BANNER.findall(world.console(side))]
        if any(later <= earlier for earlier, later in pairwise(epochs)):
            found.append(f"{side}: boot epochs {epochs}")
    return found


def each_answers_as_itself(world: World) -> list[str]:
    """Every identification names the controller that it came from."""
    found = []
    for side in SIDES:
        for frames in world.nodes[side].replies.values():
            for frame in frames:
                if (
                    frame.type == Op.IDENTIFY | REPLY
                    and len(frame.payload) == STATUS.size + IDENTITY.size
                ):
                    name = (
                        IDENTITY.unpack_from(frame.payload, STATUS.size)[1].rstrip(b"\0").decode()
                    )
                    if name != SERIAL_NUMBERS[side]:
                        found.append(f"{side} answered as {name}")
    return found


def event_logs_are_continuous(world: World) -> list[str]:
    """A set's event log has no hole, ends with what caused it, and goes on in the next set of the
    same power-on."""
    found = []
    for side in SIDES:
        ends: list[int] = []
        for content in sets_of(world, side):
            header = content["header"]
            seqs = [record[0] for record in RECORD.iter_unpack(content["events"])]
            if seqs != list(range(header["first_seq"], header["next_seq"])):
                found.append(f"{side}: set {header['set_id']}: records do not follow each other")
            causes = [
                record
                for record in RECORD.iter_unpack(content["events"])
                if record[2] == _cause(header)
            ]
            if not causes or causes[-1][5] != header["set_id"]:
                found.append(f"{side}: set {header['set_id']}: its cause is not in its event log")
            ends.append(header["next_seq"])
        if any(later <= earlier for earlier, later in pairwise(ends)):
            found.append(f"{side}: the event log began anew: {ends}")
    return found


def _cause(header: dict[str, Any]) -> EventCode:
    return EventCode.WARMSTART if header["kind"] == SetKind.WARMSTART else EventCode.STATE_SAVE


def sets_of(world: World, side: str) -> list[dict[str, Any]]:
    """The sets that a side holds, decoded, oldest first."""
    store = world.controller(side).sets
    blobs = [store.read(entry.set_id) for entry in store.entries()]
    unpack = zstandard.ZstdDecompressor()
    return [
        cbor2.loads(unpack.decompress(blob, max_output_size=MAX_SET_BYTES))
        for blob in blobs
        if blob is not None
    ]


CHECKS: Final[tuple[Check, ...]] = (
    host_never_failed,
    host_was_answered,
    acks_follow_stores,
    acked_writes_are_kept,
    sides_agree,
    consoles_tell_no_error,
    boot_epochs_rise,
    each_answers_as_itself,
    event_logs_are_continuous,
)


def violations(world: World) -> dict[str, list[str]]:
    """Name of each check that is violated -> its violations."""
    results = {check.__name__: check(world) for check in CHECKS}
    return {name: found for name, found in results.items() if found}
