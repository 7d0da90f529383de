"""Two benches of one name are two, and the same bench file is the same bench after each restart."""

from pathlib import Path

from freezeframe.harness.bench.benchfile import builtin_folder, load_bench, load_scenario
from freezeframe.harness.bench.benchid import name_of

SIM = (builtin_folder() / "sim.toml").read_text()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def real(lines: str) -> str:
    """The simulated bench's file, on lines of its own."""
    kept = SIM.replace("[simulation]\nsize_mib = 128\n", "").replace("{supply_port}", "5025")
    return kept.replace("{run}", lines)


def test_other_lines_are_another_bench_and_the_rest_of_the_file_tells_nothing(
    tmp_path: Path,
) -> None:
    lab = load_bench(write(tmp_path / "lab.toml", real("/dev/lab")))
    other = load_bench(write(tmp_path / "other.toml", real("/dev/other")))
    assert lab.name == other.name == name_of(lab.id) == name_of(other.id) == "sim"
    assert lab.id != other.id and lab.pair_id == lab.id
    changed = real("/dev/lab").replace("boot_timeout_s = 10", "boot_timeout_s = 11")
    again = load_bench(write(tmp_path / "elsewhere/lab.toml", changed))
    assert again.id == lab.id, "its memory outlives an edit of the policy, and a move"
    renamed = real("/dev/lab").replace('name = "sim"', 'name = "sim-2"')
    assert load_bench(write(tmp_path / "lab.toml", renamed)).id != lab.id
    for side in ("primary", "secondary"):
        for line in ("console", "control"):
            text = real("/dev/lab").replace(f"/dev/lab/{side}.{line}", "/dev/new")
            assert load_bench(write(tmp_path / "lab.toml", text)).id != lab.id


def test_a_pair_that_each_command_makes_anew_is_told_by_its_file(tmp_path: Path) -> None:
    one = load_bench(write(tmp_path / "one/sim.toml", SIM))
    other = load_bench(write(tmp_path / "other/sim.toml", SIM))
    assert len({one.id, other.id, load_bench("sim").id}) == 3
    assert load_bench(tmp_path / "one/sim.toml").id == one.id and one.pair_id == ""
    first, second = (one.resolve(tmp_path / run, 5025) for run in ("first", "second"))
    assert first.id == second.id == one.id
    assert "" != first.pair_id != second.pair_id != ""
    with_workload = first.with_workload(load_scenario("clean").workload)
    assert (with_workload.id, with_workload.pair_id) == (first.id, first.pair_id)
