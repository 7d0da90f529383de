"""`freezeframe top` beside a watch: in a real terminal, in a pipe, and where nobody watches."""

import contextlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import COMMAND, Output, freezeframe
from terminal import Terminal
from waiting import LIMIT_S, await_true
from watched_bench import complain, named_bench, watched_bench

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.edge.netns import missing_capabilities
from freezeframe.harness.edge.onlookers import Onlookers, listeners
from freezeframe.harness.edge.ownsocket import MAX_PEERS, wait_readable
from freezeframe.harness.runs.audit import state_directory

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_capabilities()), reason="needs network namespaces"),
]
SIZES = [(80, 24), (200, 60)]


@contextlib.contextmanager
def command(folder: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[bytes]", Output]]:
    with subprocess.Popen(
        [*COMMAND, *arguments, "--bench", "lab.toml"],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process, Output(process)
        finally:
            process.kill()


def said_at_last(process: "subprocess.Popen[bytes]") -> str:
    assert process.stderr is not None
    return process.stderr.read().decode()


def is_armed(text: str) -> bool:
    return "\narmed\n" in text


@pytest.mark.parametrize("columns, lines", SIZES)
def test_a_terminal_shows_the_watch_live_until_it_ends(
    tmp_path: Path, columns: int, lines: int
) -> None:
    with contextlib.ExitStack() as terminals, contextlib.ExitStack() as watches:
        watched = watches.enter_context(watched_bench(tmp_path))
        terminal = terminals.enter_context(
            Terminal("top", "--bench", "lab.toml", columns=columns, lines=lines, cwd=tmp_path)
        )
        terminal.until(is_armed, "armed")
        shown = terminal.until(lambda text: text.count("canary") >= 2, "both consoles")
        assert "watch of" in shown and f"(pid {os.getpid()})" in shown
        assert shown.count("full duplex") >= 2
        terminal.until(lambda text: text.count("12.00 V  0.800 A") == 2, "both outputs")
        assert "0 digests checked, 0 frames dropped, 0 gaps" in shown
        assert len(terminal.shown) == lines
        complain(watched.station.opened)
        terminal.until(lambda text: "incidents  1, newest" in text, "the incident")
        terminal.until(lambda text: "digest-failed 1" in text, "the rule's hit")
        terminal.until(lambda text: "1 warmstart, 0 saves" in text, "the storm guard")
        (result,) = watched.results
        assert result.incident is not None
        assert f"newest {result.incident.name} fail digest-failed (secondary)" in terminal.text
        watches.close()
        assert terminal.ended() == 0
        assert "has ended; 1 incident" in terminal.text, "the terminal's own screen is back"
        assert terminal.modes_now == terminal.modes
        assert b"Traceback" not in terminal.raw
    assert not list(state_directory().glob("*.sock"))


def test_a_key_ends_it_a_new_size_is_drawn_and_the_watch_goes_on(tmp_path: Path) -> None:
    with watched_bench(tmp_path) as watched:
        for end, size in ((b"q", (80, 24)), (b"\x03", (100, 30))):
            columns, lines = size
            with Terminal(
                "top", "--bench", "lab.toml", columns=columns, lines=lines, cwd=tmp_path
            ) as terminal:
                terminal.until(is_armed, "armed")
                terminal.resize(200, 60)
                terminal.until(
                    lambda text: any("primary console " in one and "secondary console" in one for one in text.split("\n")),
                    "both consoles beside each other",
                )  # fmt: skip
                terminal.type(end)
                assert terminal.ended() == 0
                assert terminal.modes_now == terminal.modes and b"Traceback" not in terminal.raw
        assert watched.station.is_alive()


def test_in_a_pipe_it_prints_lines_and_nobody_who_looks_delays_a_watch(tmp_path: Path) -> None:
    name = named_bench(tmp_path)
    with command(tmp_path, "watch") as (station, _), contextlib.ExitStack() as stack:
        await_true(lambda: list(state_directory().glob(f"{name}-*.sock")), LIMIT_S, "a socket")
        (path,) = state_directory().glob(f"{name}-*.sock")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        plain, lines = stack.enter_context(command(tmp_path, "top"))
        objects = stack.enter_context((tmp_path / "objects").open("w+b"))  # takes all, at any time
        top_json = [*COMMAND, "top", "--json", "--bench", "lab.toml"]
        raw = stack.enter_context(subprocess.Popen(top_json, cwd=tmp_path, stdout=objects))
        stack.callback(raw.kill)
        stopped, first = stack.enter_context(command(tmp_path, "top", "--json"))
        first.until(b"\n")
        stopped.send_signal(signal.SIGSTOP)
        assert lines.until(b"0 incidents\n").count(b"\n") == 1

        def armed() -> bytes | None:
            whole = (tmp_path / "objects").read_bytes().rpartition(b"\n")[0].splitlines()
            return next((one for one in whole if b'"health":"armed"' in one), None)

        told = json.loads(await_true(armed, LIMIT_S, "an armed bench"))
        assert (told["event"], told["bench"], told["pid"]) == ("status", name, station.pid)
        assert {one["name"] for one in told["rules"]} >= {"digest-failed", "link-digest"}
        # Another watch of that name has a socket of its own; who looks at the first goes on.
        with command(tmp_path, "watch", "--out", "other") as (other, _):
            await_true(
                lambda: list(state_directory().glob(f"{name}-*.{other.pid}.sock")),
                LIMIT_S,
                "another",
            )
            third, shown = stack.enter_context(command(tmp_path, "top", "--json"))
            assert json.loads(shown.until(b"\n"))["pid"] == other.pid, "the newest"
            shown.until(b'"health":"armed"')
            other.send_signal(signal.SIGINT)
            assert other.wait(LIMIT_S) in (0, 4)
            shown.until(b'"event":"end"')
            assert third.wait(LIMIT_S) == 0
            assert f"is also watched by pid {station.pid}" in said_at_last(third)
        station.send_signal(signal.SIGINT)
        assert station.wait(LIMIT_S) in (0, 4), "nobody wrote, so the link showed nothing"
        assert b"disarmed: the end has begun" in lines.until(b"has ended; 0 incidents\n")
        assert (plain.wait(LIMIT_S), raw.wait(LIMIT_S)) == (0, 0)
        last = json.loads((tmp_path / "objects").read_bytes().splitlines()[-1])
        assert (last["event"], last["incidents"]) == ("end", 0)


def test_who_is_hung_up_on_at_once_is_told_why_and_does_not_try_without_end(tmp_path: Path) -> None:
    named_bench(tmp_path)
    bench_id = load_bench(str(tmp_path / "lab.toml")).id
    writer = Onlookers(state_directory(), bench_id)
    found = []
    for _ in range(MAX_PEERS):
        found += listeners(state_directory(), bench_id)
        assert writer.accept()
    with command(tmp_path, "top") as (top, _):
        while top.poll() is None:
            if wait_readable([writer.fileno()], 0.1):
                assert not writer.accept()
        assert top.returncode == 3
        assert f"{MAX_PEERS} others look, or it is another user's" in said_at_last(top)
    for one in found:
        one.close()
    writer.close(b"")


def test_a_watch_that_was_killed_is_reported_and_without_one_it_says_what_to_do(
    tmp_path: Path,
) -> None:
    name = named_bench(tmp_path)
    done = freezeframe("top", "--bench", "lab.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"nobody watches the bench {name} of {tmp_path / 'lab.toml'} now" in done.stderr
    assert "start `freezeframe watch --bench lab.toml`" in done.stderr
    assert freezeframe("top", "--bench", "gone.toml", cwd=tmp_path).returncode == 2
    with command(tmp_path, "watch") as (station, _):
        await_true(lambda: list(state_directory().glob(f"{name}-*.sock")), LIMIT_S, "a socket")
        with command(tmp_path, "top", "--json") as (top, objects):
            objects.until(b"\n")
            station.kill()
            assert top.wait(LIMIT_S) == 3
            said = said_at_last(top)
    assert f"the watch (pid {station.pid}) is gone, and no end of it was reported" in said
    assert list(state_directory().glob("*.sock")), "it is left, and nobody listens"
    assert freezeframe("top", "--bench", "lab.toml", cwd=tmp_path).returncode == 3


def test_another_bench_of_that_name_is_never_shown(tmp_path: Path) -> None:
    """Seen: without a watch of `sim`, `top` showed that of a file whose bench is called so, too."""
    name = named_bench(tmp_path)
    (tmp_path / "other.toml").write_text((tmp_path / "lab.toml").read_text())
    writer = Onlookers(state_directory(), load_bench(str(tmp_path / "other.toml")).id)
    done = freezeframe("top", "--bench", "lab.toml", cwd=tmp_path)
    writer.close(b"")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"nobody watches the bench {name} of {tmp_path / 'lab.toml'} now" in done.stderr
    assert (
        f"Another bench of that name is watched by pid {os.getpid()}: give its bench file"
        in done.stderr
    )
