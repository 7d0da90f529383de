"""``freezeframe import``: its exit status, its JSON, and the incident in every other command."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app

GOLDEN = Path(__file__).parents[2] / "golden"
FAILURE = GOLDEN / "drbd" / "small-failure.pcap"
CLEAN = GOLDEN / "drbd9" / "drbd9-clean.pcap.gz"
LOG = GOLDEN / "drbd" / "integrity-mtu1500-b.console.log"
RULES = sorted(
    str(path) for path in (Path(__file__).parents[3] / "bench_configs" / "rules").glob("drbd*.toml")
)


def run(*argv: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in argv])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.stdout


def test_one_json_object_says_all(tmp_path: Path) -> None:
    status, told = run(
        "import", "--link", FAILURE, "--secondary-console", LOG, "--port", 7788, "--primary-address", "10.99.0.1",
        "--secondary-address", "10.99.0.2", "--protocol", "drbd", "--out", tmp_path, "--json",
    )  # fmt: skip
    found = json.loads(told)
    assert status == 1
    assert Path(found["incident"]).parent == tmp_path
    assert (found["writes"], found["answers"], found["digests_checked"]) == (1, 0, 1)
    link = next(one for one in found["hits"] if one["source"] == "link")
    assert (link["rule"], link["side"], link["packet"], link["sector"]) == (
        "link-digest", "primary", 48, 89600,
    )  # fmt: skip
    console = next(one for one in found["hits"] if one["rule"] == "digest-failed")
    assert (console["source"], console["side"]) == ("console", "secondary")
    assert LOG.read_bytes()[: console["offset"]].endswith(b"Digest integrity check FAILED")
    assert found["verdict"]["lba"] == 89601
    assert (found["verdict"]["byte_offset"], found["verdict"]["bit_mask"]) == (680, 0x10)
    assert found["blind"] == ["no answer was checked on the link, of 1 replicated writes"]


@pytest.mark.parametrize(
    ("argv", "status", "headline"),
    [
        (("--link", CLEAN), 0, "NOTHING WRONG SEEN"),
        (("--link", FAILURE), 1, "A DEVICE FAILED"),
        (("--link", GOLDEN / "drbd" / "small-handshake.pcap"), 4, "INCONCLUSIVE"),
        (("--link", LOG), 2, ""),
        (("--link", "no-such-file"), 2, ""),
        ((), 2, ""),
    ],
    ids=lambda one: str(one) if isinstance(one, int) else "",
)
def test_the_exit_status_is_the_outcome(argv, status, headline, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert run("import", *argv, "--out", tmp_path)[0] == status
    text = run("import", *argv, "--out", tmp_path)[1]
    assert text.startswith(headline)
    assert bool(list(tmp_path.iterdir())) is (status != 2)


def test_several_captures_stand_behind_one_option_or_several(tmp_path: Path) -> None:
    for argv in (("--link", CLEAN, CLEAN), ("--link", CLEAN, "--link", CLEAN)):
        status, told = run("import", *argv, "--out", tmp_path, "--json")
        found = json.loads(told)
        assert (status, len(found["taps"])) == (0, 2)
        assert (found["taps"][1]["skew_ns"], found["taps"][1]["skew_error_ns"]) == (0, 0)
        assert found["writes"] == 6


def test_the_incident_is_one_like_any_other(tmp_path: Path) -> None:
    run("import", "--link", FAILURE, "--secondary-console", LOG, "--out", tmp_path)
    (name,) = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    out = ("--out", tmp_path)
    assert "link-digest" in run("show", name, *out)[1]
    assert "link-digest" in run("list", *out)[1]
    assert name in run("search", "Digest", "integrity", *out)[1]
    assert "the same as recorded" in run("replay", name, *out)[1]
    page, trace, capture = tmp_path / "x.html", tmp_path / "x.trace", tmp_path / "x.pcapng"
    exported = ("--html", page, "--perfetto", trace, "--pcapng", capture)
    assert run("export", name, *exported, *out)[0] == 0
    assert "89600" in page.read_text()
    status, told = run("rules", "test", *RULES, "--json", *out)
    (one,) = json.loads(told)["incidents"]
    assert (status, one["new"], one["lost"]) == (0, [], [])
    assert one["kept"] >= 4


def test_other_rules_judge_when_they_are_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[[rule]]\nname = "mine"\nsource = "console"\nliteral = "ack_receiver terminated"\n'
    )
    argv = ("--link", FAILURE, "--secondary-console", LOG, "--rules", mine, "--json")
    status, told = run("import", *argv, "--out", tmp_path / "out")
    found = json.loads(told)
    assert (status, {one["rule"] for one in found["hits"]}) == (1, {"mine"})
    assert [one.name for one in (Path(found["incident"]) / "rules").iterdir()] == ["01-mine.toml"]
