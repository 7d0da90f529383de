"""[link] of a bench file: protocol, ports, what must be checked, and rules that cannot hit."""

from pathlib import Path

import pytest

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.bench.checks import check
from freezeframe.harness.errors import UsageError

BENCH = """\
[bench]
name = "b"
[primary]
driver = "sim_array"
serial_number = "P1"
console = "/dev/a"
control = "/dev/b"
host = "nbd://h:1"
[secondary]
driver = "sim_array"
serial_number = "S1"
console = "/dev/c"
control = "/dev/d"
host = "nbd://h:2"
[policy]
rules = ["r.toml"]
[link]
interface = "eth1"
"""
CONSOLE = '[[rule]]\nname = "c"\nsource = "console"\nliteral = "x"\n'
LINK = '[[rule]]\nname = "l"\nsource = "link"\nevent = "neg-ack"\n'


def bench(folder: Path, link: str = "", rules: str = CONSOLE) -> Path:
    (folder / "r.toml").write_text(rules)
    path = folder / "b.toml"
    path.write_text(BENCH + link)
    return path


def test_without_a_word_it_is_drbd_on_its_own_port_and_all_that_it_shows_must_be_checked(
    tmp_path: Path,
) -> None:
    link = load_bench(bench(tmp_path)).link
    assert (link.protocol, link.ports, link.to_check) == ("drbd", [7788], ["digest", "answer"])


def test_one_port_or_several(tmp_path: Path) -> None:
    assert load_bench(bench(tmp_path, "port = 58123")).link.ports == [58123]
    assert load_bench(bench(tmp_path, "port = [7788, 7789]")).link.ports == [7788, 7789]


def test_what_must_be_checked_can_be_less_or_nothing(tmp_path: Path) -> None:
    assert load_bench(bench(tmp_path, 'must_check = ["answer"]')).link.to_check == ["answer"]
    assert load_bench(bench(tmp_path, "must_check = []")).link.to_check == []


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (
            'protocol = "drbdd"',
            r"b.toml:19: link.protocol: .*did you mean drbd.*known: drbd,.*none",
        ),
        ("port = 0", r"b.toml:19: link.port"),
        ("port = []", r"b.toml:19: link.port"),
        ('port = "7788"', r"b.toml:19: link.port"),
        ('must_check = ["barriers"]', r"b.toml:19: link.must_check"),
        ('protocol = "none"\nmust_check = ["digest"]', r"b.toml:20: .*does not show 'digest'"),
        ('primary_address = "10.0.0.256"', r"b.toml:19: .*not an IP address"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, link: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_bench(bench(tmp_path, link))


@pytest.mark.parametrize(
    "address", ["FD00:0::A63:1", "fe80::1%eth0", "::ffff:10.0.0.1", "10.0.0.1"]
)
def test_an_address_may_be_written_in_any_way(tmp_path: Path, address: str) -> None:
    assert load_bench(bench(tmp_path, f'primary_address = "{address}"'))


def test_a_link_that_is_not_understood_takes_no_link_rule(tmp_path: Path) -> None:
    path = bench(tmp_path, 'protocol = "none"', CONSOLE + LINK)
    with pytest.raises(
        UsageError, match=r"does not show what these link rules wait for: l \(neg-ack\)"
    ):
        load_bench(path).rules()
    problems = [
        one.detail for one in check(path) if one.status == "problem" and one.name == "rules"
    ]
    assert any("l (neg-ack)" in one for one in problems)
    alone = load_bench(bench(tmp_path, 'protocol = "none"'))
    assert [rule.name for rule in alone.rules().console] == ["c"]
    assert (alone.link.ports, alone.link.to_check) == ([], [])
