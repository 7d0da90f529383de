"""The state record: everything a controller knows about itself at one time
(``wire.rootcause.STATE_KEYS``)."""

from itertools import islice
from typing import Any, Final

import cbor2

from freezeframe.firmware_sim.managed import Managed
from freezeframe.harness.wire.rootcause import LAST_WRITES, STATE_KEYS

MAX_RUNS: Final = 4096
"""Maximum number of out-of-sync runs listed; ``dirty_blocks`` is always exact."""
_LISTS: Final = ("last_writes", "bitmap")
"""Lists of a record shortened first: the oldest writes, the highest runs."""


def state_record(controller: Managed) -> dict[str, object]:
    """The full record, for a root cause data set."""
    peer, store = controller.peer, controller.store
    bitmap = store.metadata.bitmap
    values: dict[str, object] = {
        "role": int(peer.role),
        "pair_state": int(peer.pair_state),
        "conn": int(peer.conn),
        "disk": int(peer.disk),
        "peer_disk": int(peer.peer_disk),
        "uuids": list(store.metadata.uuids),
        "dirty_blocks": bitmap.count,
        "epoch": peer.epoch,
        "epoch_writes": peer.epoch_writes,
        "queues": {"host_requests": controller.host_requests, **peer.queues()},
        "cache": {
            "dirty_bytes": store.dirty_bytes,
            "dirty_extents": store.dirty_extents,
            "flushes": store.flushes,
        },
        "last_writes": [list(write) for write in peer.last_writes][-LAST_WRITES:],
        "bitmap": [list(run) for run in islice(bitmap.runs(), MAX_RUNS)],
        "diagnostics": _diagnostics(controller),
        "faults": controller.faults.armed(),
        "boot_epoch": controller.boot_epoch,
        "uptime_ns": controller.trace.uptime_ns,
        "protocol_version": peer.agreed_version,
    }
    return {key: values[key] for key in STATE_KEYS}


def _diagnostics(controller: Managed) -> dict[str, object]:
    """What the firmware counts about itself."""
    return {
        "self_test": "pass",
        "phase": controller.phase.value,
        "host_sessions": controller.host.sessions,
        "host_writes": controller.host_writes,
        "unscrubbed_blocks": controller.store.unscrubbed_blocks,
        "scrub_mismatches": controller.scrub.mismatches,
        "damaged_blocks": [list(one) for one in controller.scrub.damaged],
        "sets_kept": len(controller.sets.entries()),
    }


def live_record(record: dict[str, Any], max_bytes: int) -> bytes:
    """The record as CBOR in at most ``max_bytes``: its lists are halved until it fits."""
    # A set has room for the damaged blocks, a reply does not.
    diagnostics = {
        key: value for key, value in record["diagnostics"].items() if key != "damaged_blocks"
    }
    record = record | {"diagnostics": diagnostics}
    encoded: bytes = cbor2.dumps(record)
    while len(encoded) > max_bytes:
        longest = max(_LISTS, key=lambda key: len(record[key]))
        kept = len(record[longest]) // 2
        if not kept and not record[longest]:
            # Only the fault plan can be this long; a healthy controller has none.
            record = record | {"faults": []}
        elif longest == "last_writes":
            record = record | {longest: record[longest][len(record[longest]) - kept :]}
        else:
            record = record | {longest: record[longest][:kept]}
        encoded = cbor2.dumps(record)
    return encoded
