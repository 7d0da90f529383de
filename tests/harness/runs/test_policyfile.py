"""What a watch persists is there whole, or the version before is."""

from pathlib import Path

import pytest
from full_disk import full_disk

from freezeframe.harness.bench.benchfile import Bench, builtin_folder, load_bench
from freezeframe.harness.core.policy import Machine, Settings
from freezeframe.harness.core.policy import messages as m
from freezeframe.harness.core.policy.messages import Saved
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.runs.policyfile import (
    ArmedIncident,
    ArmedIncidents,
    PolicyFile,
    WatchStart,
)

INCIDENTS = {"000001": ArmedIncident(incident_id_hex="00" * 16, folder="/x", frames_hex={})}


@pytest.mark.parametrize("room_bytes", [0, 1, 50, 200])
def test_a_disk_that_takes_a_part_leaves_the_version_before(
    room_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: the part took the place of the whole, and a killed watch was not continued."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file, saved = PolicyFile(load_bench("sim")), Saved(wanted=True, arming=7)
    file.write(saved, INCIDENTS)
    with full_disk(room_bytes), pytest.raises(RigError, match="would not survive a kill"):
        file.write(Saved(wanted=True, arming=8), INCIDENTS)
    assert file.read() == (saved, INCIDENTS)
    assert [one.name for one in file.path.parent.iterdir()] == [file.path.name]
    file.write(Saved(wanted=True, arming=9), INCIDENTS)
    assert file.read() == (Saved(wanted=True, arming=9), INCIDENTS)


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"", "damaged"), (b"{}", "damaged"), (b"\xff" * 9, "damaged"), (None, "Is a directory")],
)
def test_a_memory_that_cannot_be_read_opens_the_breaker(
    data: bytes | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: it counted as none, and a bench whose breaker had opened was armed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    bench = load_bench("sim")
    path = PolicyFile(bench).path
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    saved = ArmedIncidents(bench).read()
    assert saved is not None and saved.was_killed
    assert saved.broken.startswith(f"its memory {path}") and why in saved.broken
    machine = Machine(Settings(serial_numbers={"primary": "P", "secondary": "S"}), 0, saved)
    machine.step(0, m.BenchArmed(who="anna", closes_breaker=False))
    assert machine.status.is_breaker_open and str(path) in machine.status.why
    kept = path.with_name(f"{path.name}.unreadable")
    assert kept.exists() and not path.exists()
    assert not WatchStart.TYPED.closes_breaker(was_killed=saved.was_killed)


def lab(path: Path, lines: str) -> Bench:
    source = builtin_folder()
    text = (source / "sim.toml").read_text().replace("[simulation]\nsize_mib = 128\n", "")
    path.write_text(text.replace("{run}", lines).replace("{supply_port}", "5025"))
    return load_bench(path)


def test_two_benches_of_one_name_have_a_memory_each_that_outlives_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = (lab(tmp_path / f"{name}.toml", f"/dev/{name}") for name in ("one", "other"))
    broken = Saved(broken="12 saves in one hour")
    ArmedIncidents(one).write(broken)
    assert ArmedIncidents(other).read() is None
    assert ArmedIncidents(load_bench(one.path)).read() == broken


def test_the_memory_of_an_earlier_version_is_taken_over_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open breaker stays open over the upgrade."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = (lab(tmp_path / f"{name}.toml", f"/dev/{name}") for name in ("one", "other"))
    broken = Saved(broken="12 saves in one hour")
    PolicyFile(one).write(broken, {})
    old = PolicyFile(one).path.with_name("sim.policy.json")
    PolicyFile(one).path.rename(old)
    assert ArmedIncidents(load_bench("sim")).read() is None, "it is made anew by each command"
    assert ArmedIncidents(one).read() == broken and not old.exists()
    assert ArmedIncidents(other).read() is None
    assert ArmedIncidents(one).read() == broken


@pytest.mark.parametrize(
    ("is_service", "dry_run", "arm", "after_an_end", "after_a_kill"),
    [
        (False, False, False, True, False),
        (True, False, False, False, False),
        (False, True, False, False, False),
        (True, True, False, False, False),
        (False, False, True, True, True),
        (True, False, True, True, True),
    ],
)
def test_only_a_person_closes_the_breaker(
    is_service: bool, dry_run: bool, arm: bool, after_an_end: bool, after_a_kill: bool
) -> None:
    start = WatchStart.of(is_service=is_service, dry_run=dry_run, arm=arm)
    assert start.closes_breaker(was_killed=False) is after_an_end
    assert start.closes_breaker(was_killed=True) is after_a_kill


@pytest.mark.parametrize("is_service", [True, False])
def test_a_dry_run_arms_nobody(is_service: bool) -> None:
    with pytest.raises(UsageError, match="--arm: a dry run arms nobody"):
        WatchStart.of(is_service=is_service, dry_run=True, arm=True)
