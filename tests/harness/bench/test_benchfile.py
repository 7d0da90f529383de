"""Bench and scenario files: those that come with FreezeFrame are right, wrong ones are told."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest

from freezeframe.harness.bench import benchfile, checks
from freezeframe.harness.bench.benchfile import load_bench, load_scenario
from freezeframe.harness.core.configfile import Table
from freezeframe.harness.core.events import SIDES
from freezeframe.harness.errors import UsageError
from freezeframe.harness.wire.faults import FaultKind

ROOT = Path(__file__).resolve().parents[3]
SIM = """# A pair of simulated controllers on this machine: real processes, real ports, their own network namespaces.
[bench]
name = "sim"

[simulation]
size_mib = 128

[primary]
driver = "sim_array"
serial_number = "FFSIM-P-0001"
console = "{run}/primary.console"
control = "{run}/primary.control"
host = "nbd+unix:///?socket={run}/primary.nbd"

[secondary]
driver = "sim_array"
serial_number = "FFSIM-S-0001"
console = "{run}/secondary.console"
control = "{run}/secondary.control"
host = "nbd+unix:///?socket={run}/secondary.nbd"

[link]
interface = "repl0"
namespace = "{run}/secondary.netns"

[power]
driver = "scpi_supply"
resource = "TCPIP::127.0.0.1::{supply_port}::SOCKET"
safe_state = "off"

[policy]
rules = ["rules/sim.toml"]
instruct = ["primary", "secondary"]
boot_timeout_s = 10
pull_timeout_s = 30
rejoin_timeout_s = 20
on_hung_warmstart = "power-cycle"

[workload]
driver = "nbd"
bytes_mib = 64
write_kib = 64
queue_depth = 16
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "b.toml"
    path.write_text(text)
    return path


def problem(folder: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_bench(write(folder, text))
    return str(caught.value).replace(f"{folder}{os.sep}", "")


def test_a_bench_is_found_by_name_and_by_path() -> None:
    by_name, by_path = load_bench("sim"), load_bench(ROOT / "bench_configs" / "sim.toml")
    assert by_name == by_path and by_name.path == by_path.path
    assert (
        by_name.name == "sim"
        and by_name.simulation is not None
        and by_name.simulation.size_mib == 128
    )
    assert by_name.workload.writes == 1024
    assert {"sim", "pi_pair"} <= set(benchfile.builtin_benches())


def test_placeholders_are_replaced_for_a_run(tmp_path: Path) -> None:
    bench = load_bench("sim")
    run = bench.resolve(tmp_path, 4567)
    assert run.primary.console == f"{tmp_path}/primary.console"
    assert run.secondary.host == f"nbd+unix:///?socket={tmp_path}/secondary.nbd"
    assert run.power is not None and run.power.resource == "TCPIP::127.0.0.1::4567::SOCKET"
    assert run.link.namespace == f"{tmp_path}/secondary.netns" and run.path == bench.path
    assert bench.primary.console == "{run}/primary.console"
    assert run.rules() == bench.rules()
    assert {rule.name for rule in run.rules().console} >= {"digest-failed"}


def test_policy_becomes_the_recoverys() -> None:
    policy = load_bench("sim").policy.recovery()
    assert (policy.boot_timeout_s, policy.pull_timeout_s, policy.rejoin_timeout_s) == (10, 30, 20)
    assert policy.power_cycle and policy.breaks == frozenset()


@pytest.mark.parametrize(
    ("setting", "breaks", "cycles"),
    [("break", True, False), ("break, power-cycle", True, True), ("give-up", False, False)],
)
def test_what_follows_a_hung_warmstart(
    setting: str, breaks: bool, cycles: bool, tmp_path: Path
) -> None:
    path = tmp_path / "b.toml"
    path.write_text(SIM.replace('= "power-cycle"', f'= "{setting}"'))
    policy = load_bench(path).policy.recovery()
    assert (policy.breaks == frozenset(SIDES), policy.power_cycle) == (breaks, cycles)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("size_mib = 128", "size_mb = 128",
         "b.toml:6: simulation.size_mb: unknown key, did you mean size_mib?; "
         "allowed: autonomic, boot_ms, mtu_bytes, size_mib"),
        ("[simulation]\nsize_mib = 128\n", "",
         "b.toml:9: primary.console: {run} is only allowed in a bench with [simulation]"),
        ("{run}/primary.control", "{rum}/primary.control",
         "b.toml:12: primary.control: unknown placeholder {rum}; allowed: {run}, {supply_port}"),
        ("FFSIM-S-0001", "FFSIM-P-0001",
         "b.toml:17: secondary.serial_number: is also the primary's; each controller needs its own"),
        ('serial_number = "FFSIM-S-0001"', 'serial_number = "a much too long serial"',
         "b.toml:17: secondary.serial_number: a simulated controller's has at most 16 characters"),
        ('safe_state = "off"', 'safe_state = "of"',
         "b.toml:29: power.safe_state: 'of' is not known, did you mean off?; allowed: 'off', 'leave'"),
        ('instruct = ["primary", "secondary"]', 'instruct = ["primary", "third"]',
         "b.toml:33: policy.instruct[1]: 'third' is not known; allowed: 'primary', 'secondary'"),
        ('instruct = ["primary", "secondary"]', 'instruct = ["primary", "primary"]',
         "b.toml:33: policy.instruct: names a side twice"),
        ('instruct = ["primary", "secondary"]', 'instructed_by = "secondary"\nredrive = true',
         "b.toml:34: policy.redrive: needs instructed_by = 'harness': in autonomic mode the harness sends no frame"),
        ("boot_timeout_s = 10", "boot_timeout_s = 0",
         "b.toml:34: policy.boot_timeout_s: 0 does not fit; allowed: above 0, at most 3600"),
        ("{run}/secondary.console", "{run}/primary.control",
         "b.toml:18: secondary.console: is also a line of the primary; each controller needs its own"),
        ('interface = "repl0"', 'interface = "repl0"\nprimary_address = "10.77.0.256"',
         "b.toml:24: link.primary_address: '10.77.0.256' is not an IP address"),
        ("write_kib = 64", "write_kib = 63",
         "b.toml:42: workload.write_kib: 63 does not fit; "
         "allowed: at least 4, at most 1024, a multiple of 4"),
    ],
)  # fmt: skip
def test_wrong_bench_files_name_line_key_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert SIM.count(old) == 1
    assert problem(tmp_path, SIM.replace(old, new)).splitlines()[0] == expected


def without_control(side: str, text: str = SIM) -> str:
    line = f'control = "{{run}}/{side}.control"\n'
    assert line in text
    return text.replace(line, "")


def test_a_side_without_a_control_line_is_instructed_by_no_rule(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "r.toml").write_text(
        '[[rule]]\nname = "both"\nsource = "console"\nliteral = "a"\ninstruct = ["secondary", "primary"]\n'
        '[[rule]]\nname = "one"\nsource = "link"\nevent = "neg-ack"\ninstruct = ["secondary"]\n'
        '[[rule]]\nname = "default"\nsource = "console"\nliteral = "b"\n'
        '[[rule]]\nname = "none"\nsource = "console"\nliteral = "c"\ninstruct = []\n'
    )
    text = re.sub(r"(?m)^rules = .*$", 'rules = ["r.toml"]', without_control("secondary"))
    bench = load_bench(write(tmp_path, text))
    assert bench.controlled == bench.instruct == ("primary",)
    found = bench.rules()
    instructed = {one.name: one.instruct for one in (*found.console, *found.link)}
    assert instructed == {"both": ("primary",), "one": (), "default": None, "none": ()}
    assert bench.unanswered_rules() == ["one"]
    assert bench.resolve(tmp_path, 1).instruct == ("primary",)


def test_one_side_at_least_has_a_control_line_and_can_be_instructed(tmp_path: Path) -> None:
    neither = without_control("primary", without_control("secondary"))
    assert "primary.control: is missing, and the secondary's too" in problem(tmp_path, neither)
    text = without_control("secondary").replace(
        'instruct = ["primary", "secondary"]', 'instruct = ["secondary"]'
    )
    said = problem(tmp_path, text)
    assert "policy.instruct: names no side with a control line; allowed: 'primary'" in said


def test_a_power_cycle_needs_a_supply(tmp_path: Path) -> None:
    start, end = SIM.index("[power]"), SIM.index("[policy]")
    assert "needs a [power] table; allowed without one: 'break', 'give-up'" in problem(
        tmp_path, SIM[:start] + SIM[end:]
    )


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"nope: no such bench file, nor a built-in bench; built in: .*sim"
    ):
        load_bench("nope")
    with pytest.raises(
        UsageError, match=r"nope: no such scenario file.*bit_flip_receiver, .*clean"
    ):
        load_scenario("nope")
    with pytest.raises(UsageError, match=r"\.\./sim: no such bench file"):
        load_bench("../sim")
    (tmp_path / "binary.toml").write_bytes(b"a = 1\n\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.toml:2: not UTF-8 text \(byte 0xff\)"):
        load_bench(tmp_path / "binary.toml")


# --- scenarios ----------------------------------------------------------------------------------------------
def test_every_fault_kind_has_its_scenario() -> None:
    assert set(benchfile.builtin_scenarios()) == {*FaultKind, "clean"}
    for name in benchfile.builtin_scenarios():
        scenario = load_scenario(name)
        kinds = {fault.kind for fault in scenario.faults}
        assert scenario.name == name and scenario.expect.detected == bool(kinds) == (
            name != "clean"
        )
        assert name == "clean" or name in kinds


def test_the_seed_decides_where_faults_strike_and_pairs_strike_together() -> None:
    scenario = load_scenario("console_garble")
    plans = [scenario.fault_plan("secondary", seed) for seed in range(20)]
    assert plans == [scenario.fault_plan("secondary", seed) for seed in range(20)]
    places = {tuple(fault["at_write"] for fault in plan["faults"]) for plan in plans}
    assert len(places) > 5 and all(one == other and 100 <= one <= 300 for one, other in places)
    assert scenario.fault_plan("primary", 1)["faults"] == []
    hung = load_scenario("hung_warmstart")
    assert [fault["kind"] for fault in hung.fault_plan("primary", 7)["faults"]] == [
        "hung_warmstart"
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('[[faults]]\nkind = "stall"\n[expect]\ndetected = true', "4: faults[0]: stall needs delay_ms"),
        ('[[faults]]\nkind = "neg_ack"\ndelay_ms = 3\n[expect]\ndetected = true',
         "6: faults[0].delay_ms: neg_ack has no delay; allowed: late_ack, stall"),
        ('[[faults]]\nkind = "neg_ack"\nside = "primary"\n[expect]\ndetected = true',
         "6: faults[0].side: neg_ack is the secondary's"),
        ('[[faults]]\nkind = "neg_ack"\n[expect]\ndetected = false',
         "7: expect.detected: a fault that is not expected to be detected proves nothing"),
        ('[expect]\ndetected = false\nrules = ["x"]',
         "6: expect.rules: nothing is expected to be detected, so no rule can be expected"),
    ],
)  # fmt: skip
def test_wrong_scenarios_are_told(tmp_path: Path, body: str, expected: str) -> None:
    path = write(tmp_path, f'name = "x"\ntitle = "y"\n\n{body}\n')
    with pytest.raises(UsageError) as caught:
        load_scenario(path)
    assert str(caught.value) == f"{path}:{expected}"


# --- check --------------------------------------------------------------------------------------------------
BENCHES = [*benchfile.builtin_benches(), str(ROOT / "bench_configs/lab.toml.example")]


@pytest.mark.parametrize("name", BENCHES)
def test_check_of_the_benches_that_come_along(name: str) -> None:
    assert [finding for finding in checks.check(name) if finding.status == "problem"] == []


def test_a_scenario_that_a_bench_cannot_play_is_a_warning() -> None:
    (told,) = [finding for finding in checks.check("pi_pair") if finding.status == "warning"]
    assert told.name == "scenario hung_warmstart" and told.detail.endswith(
        "needs on_hung_warmstart = 'power-cycle'"
    )


def test_check_finds_what_loading_cannot(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    shutil.copytree(ROOT / "bench_configs", folder, ignore=shutil.ignore_patterns("__pycache__"))
    bench = folder / "sim.toml"
    bench.write_text(
        SIM.replace('driver = "scpi_supply"', 'driver = "scpi_suply"').replace(
            "bytes_mib = 64", "bytes_mib = 1"
        )
    )
    (folder / "scenarios" / "neg_ack.toml").write_text("name = 3")
    rules = folder / "rules" / "sim.toml"
    rules.write_text(rules.read_text().replace('name = "out-of-sync"', 'name = "out-of-step"'))
    told = [
        f"{finding.name}: {finding.detail}"
        for finding in checks.check(bench)
        if finding.status == "problem"
    ]
    text = "\n".join(told)
    assert "driver of power: driver 'scpi_suply' not found, did you mean scpi_supply?" in text
    assert "scenario: " in text and "neg_ack.toml:1: name: is not a string" in text
    assert "none of its expected rules is in the bench's rule files: out-of-sync" in text
    assert "bit_flip_sender strikes at write 300, the workload has 16" in text
    rules.unlink()
    told = [finding.detail for finding in checks.check(bench) if finding.name == "rules"]
    assert told == [f"{rules}: No such file or directory"]
    assert [finding.status for finding in checks.check(tmp_path / "nothing.toml")] == ["problem"]


def test_check_says_when_the_workloads_program_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = tmp_path / "sim.toml"
    rules = f"{ROOT}/bench_configs/rules/"
    bench.write_text(
        SIM.replace('driver = "nbd"', 'driver = "fio"').replace('"rules/', f'"{rules}')
    )
    workload = "driver of workload"
    assert [one.status for one in checks.check(bench) if one.name == workload] == ["ok"]
    monkeypatch.setenv("PATH", str(tmp_path))
    (told,) = (one for one in checks.check(bench) if one.name == workload)
    assert (told.status, told.detail) == ("problem", "fio: fio is not installed on this machine")


@pytest.mark.parametrize(
    ("items", "wrong"),
    [
        ('["BREAK", 100, "s"]', ""), ('["{run} is text here"]', ""), ("[]", "at least 1"), ("[100, 200]", "sends nothing"),
        ("[0]", ""), ('[""]', ""), ("[20000, 'x']", ""), ("[1.5]", ""), ("[true]", ""),
    ],
)  # fmt: skip
def test_lists_that_a_person_sends_are_checked(tmp_path: Path, items: str, wrong: str) -> None:
    path = tmp_path / "sim.toml"
    path.write_text(SIM + f"\n[breaks]\nnmi = {items}\n")
    if "BREAK" in items or "{run}" in items:
        assert list(load_bench(path).breaks) == ["nmi"]
        return
    with pytest.raises(UsageError, match=f"breaks.nmi.*{wrong}"):
        load_bench(path)


# --- the document ---------------------------------------------------------------------------------------------
def test_the_document_names_every_key() -> None:
    text = (ROOT / "docs/bench-files.md").read_text()

    def keys(model: type[Table]) -> set[str]:
        inner = {part for field in model.model_fields.values() for part in tables(field.annotation)}
        return {*model.model_fields, *(key for table in inner for key in keys(table))}

    def tables(annotation: Any) -> set[type[Table]]:
        if isinstance(annotation, type) and issubclass(annotation, Table):
            return {annotation}
        return {found for part in get_args(annotation) for found in tables(part)}

    missing = {
        key
        for key in keys(benchfile.Bench) | keys(benchfile.Scenario)
        if not re.search(rf"\b{key}\b", text)
    }
    assert missing == set()
