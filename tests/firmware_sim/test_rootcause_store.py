import hashlib
from pathlib import Path

import cbor2
import pytest
import zstandard

from freezeframe.firmware_sim.rootcause import KEPT_SETS, FileNvram, MemoryNvram, NoSpace, SetStore
from freezeframe.harness.wire.control import SetKind
from freezeframe.harness.wire.rootcause import FORMAT, HEADER_KEYS, SET_KEYS, STATE_KEYS


def header(store: SetStore, kind: SetKind = SetKind.WARMSTART) -> dict[str, object]:
    values = dict.fromkeys(HEADER_KEYS, 0) | {
        "set_id": store.next_id, "kind": kind, "reason": 1, "incident_id": bytes(16), "boot_epoch": 7,
    }  # fmt: skip
    return {key: values[key] for key in HEADER_KEYS}


STATE = dict.fromkeys(STATE_KEYS, 0)


def test_a_set_is_zstd_of_cbor_with_the_keys_of_the_table() -> None:
    store = SetStore(MemoryNvram())
    entry = store.add(header(store), STATE, b"events")
    blob = store.read(entry.set_id)
    assert blob is not None
    assert hashlib.sha256(blob).digest() == entry.sha256
    raw = zstandard.ZstdDecompressor().decompress(blob)
    assert len(raw) == entry.raw_bytes == zstandard.frame_content_size(blob)
    content = cbor2.loads(raw)
    assert tuple(content) == SET_KEYS
    assert content["format"] == FORMAT
    assert content["events"] == b"events"


def test_sets_outlive_the_controller(tmp_path: Path) -> None:
    store = SetStore(FileNvram(tmp_path))
    first = store.add(header(store), STATE, b"1")
    second = store.add(header(store), STATE, b"2")
    store.free(second.set_id)
    again = SetStore(FileNvram(tmp_path))
    assert again.entries() == [first]
    assert again.next_id == second.set_id + 1, "an id is never used twice"


def test_a_set_stored_half_is_not_listed(tmp_path: Path) -> None:
    store = SetStore(FileNvram(tmp_path))
    entry = store.add(header(store), STATE, b"1")
    (tmp_path / f"set-{entry.set_id + 1:08x}.new").write_bytes(b"half")
    assert SetStore(FileNvram(tmp_path)).entries() == [entry]
    assert not list(tmp_path.glob("*.new"))


def test_a_damaged_set_is_listed_as_incomplete(tmp_path: Path) -> None:
    store = SetStore(FileNvram(tmp_path))
    entry = store.add(header(store), STATE, b"1" * 1000)
    path = tmp_path / f"set-{entry.set_id:08x}"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    (tmp_path / "set-000000ff").write_bytes(b"\xff not cbor")
    listed = SetStore(FileNvram(tmp_path)).entries()
    assert [(item.set_id, item.complete) for item in listed] == [(entry.set_id, False)]


def test_a_full_store_refuses_saves_and_gives_up_the_oldest_for_a_warmstart() -> None:
    store = SetStore(MemoryNvram())
    for _ in range(KEPT_SETS):
        store.add(header(store, SetKind.STATE_SAVE), STATE, b"")
    with pytest.raises(NoSpace):
        store.add(header(store, SetKind.STATE_SAVE), STATE, b"")
    added = store.add(header(store), STATE, b"")
    ids = [item.set_id for item in store.entries()]
    assert ids == [*range(2, KEPT_SETS + 1), added.set_id]
