"""Benches with less than two full sides, and which scenarios a bench can play: said before anything is
opened."""

from pathlib import Path

import pytest

from freezeframe.harness.bench.benchfile import builtin_folder, load_bench, load_scenario
from freezeframe.harness.bench.checks import check, unplayable, unwritable

BENCH = """
[bench]
name = "lab"
[primary]
driver = "sim_array"
serial_number = "P-1"
console = "/dev/ttyUSB0"
control = "/dev/ttyUSB1"
{primary}
[secondary]
driver = "{driver}"
serial_number = "S-1"
console = "/dev/ttyUSB2"
control = "{control}"
{secondary}
[link]
interface = "eth1"
[policy]
rules = ["{rules}"]
{more}
"""
NBD = 'host = "nbd://10.0.0.1:10809"'
IMAGE = 'host = "/images/p.img"\nhost_driver = "image"'
MEANT = "[workload]\nbytes_mib = 1"


def bench_file(
    folder: Path, *, primary: str = NBD, secondary: str = NBD, more: str = "", driver: str = "sim_array",
    control: str = "/dev/ttyUSB3",
) -> Path:  # fmt: skip
    path = folder / "lab.toml"
    rules = builtin_folder() / "rules" / "sim.toml"
    path.write_text(
        BENCH.format(
            primary=primary, secondary=secondary, more=more, driver=driver, control=control, rules=rules
        )
    )  # fmt: skip
    return path


def said(path: Path, name: str) -> list[tuple[str, str]]:
    return [(one.status, one.detail) for one in check(path) if one.name == name]


def test_two_full_sides_have_nothing_to_be_said_of(tmp_path: Path) -> None:
    path = bench_file(tmp_path, more=MEANT)
    assert said(path, "workload") == [] and unwritable(load_bench(path)) == ""
    assert not [one for one in check(path) if one.status == "problem"]


@pytest.mark.parametrize(
    ("primary", "words"),
    [("", "[primary] names none: it can be watched only"), (IMAGE, "its driver image only reads")],
)
def test_a_workload_on_what_nobody_can_write_is_refused(
    primary: str, words: str, tmp_path: Path
) -> None:
    meant = bench_file(tmp_path, primary=primary, more=MEANT)
    ((status, detail),) = said(meant, "workload")
    assert status == "problem" and words in detail
    # Without a [workload] the bench may be meant for watch.
    ((status, detail),) = said(bench_file(tmp_path, primary=primary), "workload")
    assert status == "warning" and words in detail
    assert words in unwritable(load_bench(meant))


def test_a_secondary_without_a_host_may_be_run(tmp_path: Path) -> None:
    path = bench_file(tmp_path, secondary="", more=MEANT)
    assert load_bench(path).secondary.host is None and unwritable(load_bench(path)) == ""


def test_a_bench_says_which_built_in_scenarios_it_can_play(tmp_path: Path) -> None:
    said_of = dict(said(bench_file(tmp_path), "built-in scenarios"))
    assert "clean" in said_of["ok"] and "lost_write" in said_of["ok"]
    assert (
        said_of["warning"] == "hung_warmstart cannot run: needs on_hung_warmstart = 'power-cycle'"
    )
    linux = said(bench_file(tmp_path, driver="linux_drbd"), "built-in scenarios")
    (why,) = [detail for _, detail in linux if "cannot arm faults" in detail]
    assert "lost_write" in why and why.endswith(
        "the secondary's driver linux_drbd cannot arm faults"
    )
    assert any("clean" in detail and status == "ok" for status, detail in linux)


def test_a_break_needs_a_driver_that_sends_one(tmp_path: Path) -> None:
    def with_break(driver: str) -> Path:
        path = bench_file(tmp_path, driver=driver)
        path.write_text(
            path.read_text().replace("[policy]\n", '[policy]\non_hung_warmstart = "break"\n')
        )
        return path

    assert said(with_break("sim_array"), "driver of secondary") == [("ok", "sim_array")]
    assert said(with_break("linux_drbd"), "driver of secondary") == [
        ("problem",
         "driver 'linux_drbd': sends no BREAK; allowed for on_hung_warmstart: 'power-cycle', 'give-up'")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted((builtin_folder() / "scenarios").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_simulated_bench_plays_all(path: Path) -> None:
    assert unplayable(load_bench("sim"), load_scenario(path)) == ""


def test_a_line_of_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = bench_file(tmp_path, control="exec:no-such-tool sol activate")
    assert said(path, "control of secondary") == [
        ("problem", "exec:no-such-tool sol activate: no-such-tool is not installed on this machine")
    ]
    assert said(bench_file(tmp_path, control="exec:cat"), "control of secondary") == []
