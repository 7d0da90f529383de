"""[notify] of a bench file: what is refused, and what becomes of secrets."""

from pathlib import Path

import pytest

from freezeframe.harness.bench.attached import attached
from freezeframe.harness.bench.benchfile import Bench, builtin_folder, load_bench
from freezeframe.harness.bench.checks import check
from freezeframe.harness.bench.notifytable import OCCASIONS
from freezeframe.harness.errors import HarnessError, RigError, UsageError
from freezeframe.harness.incidents.basis import without_secrets


def bench_with(folder: Path, notify: str) -> Path:
    """The simulated bench with this [notify]."""
    source = builtin_folder()
    text = (source / "sim.toml").read_text().replace('"rules/', f'"{source}/rules/')
    path = folder / "lab.toml"
    path.write_text(f"{text}\n[notify]\n{notify}\n")
    return path


def load(folder: Path, notify: str) -> Bench:
    return load_bench(bench_with(folder, notify))


def test_by_default_all_but_armed_is_reported(tmp_path: Path) -> None:
    bench = load(tmp_path, 'command = ["true", "${HOME} {run} {x}"]')
    assert bench.notify is not None
    assert set(OCCASIONS) - set(bench.notify.on) == {"armed"}
    # Braces are the command's own.
    resolved = bench.resolve(tmp_path, 1)
    assert resolved.notify is not None and resolved.notify.command is not None
    assert resolved.notify.command[1].startswith("${HOME} ")


@pytest.mark.parametrize(
    ("notify", "words"),
    [
        ("", "notify: needs a command or post"),
        ("command = []", "notify.command: "),
        ('command = "page me"', "notify.command: is not a list"),
        ('command = ["a", "b\\u0000c"]', "notify.command[1]: holds a NUL"),
        ('post = "ftp://host/x"', "notify.post: is no URL"),
        ('post = "http://"', "notify.post: is no URL"),
        ('post = "http://h:99999/"', "notify.post: is no URL"),
        ('post = "http://h/a b"', "notify.post: is no URL"),
        ("post = 3", "notify.post: is no URL"),
        ('post = { env = "A", file = "B" }', "notify.post: is no URL"),
        ('post = "http://user:pw@host/"', "notify.post: holds a password"),
        ('post = "http://h/"\nheaders = { Authorization = "Bearer x" }', "a secret is not written"),
        ('post = "http://h/"\nheaders = { X-Api-Key = "x" }', "a secret is not written"),
        ('post = "http://h/"\nheaders = { X = 3 }', "notify.headers.X: is no text"),
        ('post = "http://h/"\nheaders = { X = "a\\nb" }', "notify.headers.X: has characters"),
        ('command = ["a"]\nheaders = { X = "a" }', "notify.headers: needs post"),
        ('command = ["a"]\non = ["incidents"]', "did you mean incident?"),
        ('command = ["a"]\ntimeout_s = 0', "notify.timeout_s: "),
        ('command = ["a"]\nto = "x"', "notify.to: unknown key"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(notify: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, notify)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("notify", "error", "words"),
    [
        ('command = ["no-such-program-7"]', UsageError, "no program 'no-such-program-7'"),
        ('command = ["./page.sh"]', UsageError, "no program './page.sh'"),
        (
            'post = { env = "NOT_SET_7" }',
            RigError,
            "notify.post: the environment variable NOT_SET_7",
        ),
        ('post = { env = "BAD_URL_7" }', UsageError, "post: what it names is no URL"),
        (
            'post = "http://h/"\nheaders = { Authorization = { env = "NOT_SET_7" } }',
            RigError,
            "notify.headers.Authorization: the environment variable NOT_SET_7",
        ),
    ],
)
def test_what_is_not_there_is_reported_before_the_watch_begins_and_by_check(
    notify: str,
    error: type[HarnessError],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOT_SET_7", raising=False)
    monkeypatch.setenv("BAD_URL_7", "hunter2-Zx")
    bench = load(tmp_path, notify)
    assert bench.notify is not None
    with pytest.raises(error) as caught:
        bench.notify.ready(tmp_path)
    assert words in str(caught.value) and "hunter2" not in str(caught.value)
    (found,) = [one for one in check(bench.path) if one.name == "notify"]
    assert found.status == "problem" and words in found.detail


def test_secrets_are_read_from_where_they_are_and_a_program_beside_the_bench_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.lab/T0/hunter2")
    (tmp_path / "token").write_text("Bearer hunter3\n")
    (tmp_path / "page.sh").write_text("#!/bin/sh\n")
    (tmp_path / "page.sh").chmod(0o755)
    bench = load(
        tmp_path,
        'command = ["./page.sh"]\npost = { env = "HOOK" }\n'
        'headers = { Authorization = { file = "token" }, X-Lab = "3" }',
    )
    assert bench.notify is not None
    url, headers = bench.notify.ready(tmp_path)
    assert url == "https://hooks.lab/T0/hunter2"
    assert headers == {"Authorization": "Bearer hunter3", "X-Lab": "3"}
    assert "hunter" not in attached(bench) + repr(bench)
    (found,) = [one for one in check(bench.path) if one.name == "notify"]
    assert found.status == "ok"


def test_an_address_that_stands_in_the_file_does_not_reach_an_incident(tmp_path: Path) -> None:
    """The path of a web hook is its password."""
    text = bench_with(tmp_path, 'post = "https://hooks.lab/T0/hunter2"').read_text()
    kept = without_secrets(text)
    assert "hunter2" not in kept and "[notify]" in kept
