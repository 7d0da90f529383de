"""A bench file made of answers is read as what was answered, and passes its check."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.checks import check
from freezeframe.harness.bench.newbench import (
    RULES_OF,
    BenchAnswers,
    SideAnswers,
    bench_text,
    rule_files,
    write_bench,
)
from freezeframe.harness.cli.app import app
from freezeframe.harness.errors import UsageError

ANSWERS = (
    "lab", "linux_drbd", "/dev/ttyUSB0", "115200", "/dev/ttyUSB1", "P-1", "nbd://10.0.0.1:10809",
    "/dev/ttyUSB2", "9600", "", "S-1", "nbd://10.0.0.2:10809", "eth1", "7788",
)  # fmt: skip


def side(**changes: str) -> SideAnswers:
    known = {"serial_number": "X-1", "console": "/dev/a", "control": "/dev/b", "host": "nbd://h:1"}
    return SideAnswers(**{**known, **changes})  # type: ignore[arg-type]


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_text_stays_what_it_is(name: str, console: str) -> None:
    sides = {"primary": side(console=console), "secondary": side()}
    answers = BenchAnswers(name=name, driver="sim_array", interface="eth1", port=7788, sides=sides)  # type: ignore[arg-type]
    read = tomllib.loads(bench_text(answers))
    assert read["bench"]["name"] == name and read["primary"]["console"] == console


@pytest.mark.parametrize("driver", sorted(RULES_OF))
def test_the_bench_of_each_driver_passes_its_check(tmp_path: Path, driver: str) -> None:
    answers = BenchAnswers(
        name="lab", driver=driver, interface="eth1", port=4420,
        sides={"primary": side(), "secondary": side(serial_number="X-2", console="/dev/c", control="/dev/c")},
    )  # fmt: skip
    written = write_bench(tmp_path / "lab.toml", answers)
    assert [path.name for path in written] == ["lab.toml", *rule_files(driver)]
    assert [one.detail for one in check(tmp_path / "lab.toml") if one.status == "problem"] == []
    assert "rules/garble.toml" not in load_bench(tmp_path / "lab.toml").policy.rules
    with pytest.raises(UsageError, match="nothing is overwritten"):
        write_bench(tmp_path / "lab.toml", answers)


def test_the_questions_make_a_bench(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    done = CliRunner().invoke(app, ["init", str(path)], input="\n".join(ANSWERS) + "\n")
    assert done.exit_code == 0, done.output
    bench = load_bench(path)
    assert (bench.primary.console, bench.primary.control) == ("/dev/ttyUSB0", "/dev/ttyUSB1")
    assert bench.secondary.console == bench.secondary.control == "/dev/ttyUSB2"
    assert bench.secondary.console_baud == 9600 and bench.link.ports == [7788]
    assert f"next: freezeframe check {path} --touch" in done.output
    assert CliRunner().invoke(app, ["init", str(path)]).exit_code == 2
    unanswered = CliRunner().invoke(app, ["init", str(tmp_path / "no.toml")], input="lab\n")
    assert unanswered.exit_code == 2 and not (tmp_path / "no.toml").exists()
