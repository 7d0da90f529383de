"""`freezeframe console` beside a command that records: in a pipe, as over ssh without a terminal."""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command import COMMAND, Output, freezeframe
from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import builtin_folder, load_bench
from freezeframe.harness.incidents.incident import Incident


def write_bench(folder: Path) -> str:
    """The simulated bench under a name of its own, which no other test has."""
    source = builtin_folder()
    text = (source / "sim.toml").read_text().replace('"rules/', f'"{source}/rules/')
    assert 'name = "sim"' in text
    name = f"lab-{secrets.token_hex(4)}"
    (folder / "lab.toml").write_text(text.replace('name = "sim"', f'name = "{name}"'))
    return name


def record(folder: Path, bench: str, file: str = "lab.toml") -> Incident:
    incident = Incident.create(
        folder / "incidents", bench=bench, bench_id=load_bench(folder / file).id, seed=0
    )
    incident.console_path("primary").write_bytes(b"".join(b"line %d\r\n" % n for n in range(50)))
    return incident


def append(incident: Incident, data: bytes) -> None:
    with incident.console_path("primary").open("ab") as file:
        file.write(data)


@contextmanager
def console(folder: Path, *options: str) -> Iterator[tuple["subprocess.Popen[bytes]", Output]]:
    with subprocess.Popen(
        [*COMMAND, "console", "primary", "--bench", "lab.toml", *options],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process, Output(process)
        finally:
            process.kill()


def test_the_newest_lines_then_live_escaped_until_the_station_ends(tmp_path: Path) -> None:
    incident = record(tmp_path, write_bench(tmp_path))
    with (
        console(tmp_path, "--lines", "2") as (first, one),
        console(tmp_path, "--lines", "99") as (second, other),
    ):
        assert other.until(b"line 49\n").startswith(b"line 0\n")  # any number may look
        assert one.until(b"line 49\n") == b"line 48\nline 49\n"
        append(incident, b"prompt \x1b[31m# ")
        assert one.until(b"# ") == b"prompt \\x1b[31m# "  # before its line has ended
        append(incident, b"reboot\r\n")
        one.until(b"reboot\n")
        append(incident, b"last words\r\n")
        other.until(b"last words\n")
        incident.finish("interrupted")
        assert (first.wait(LIMIT_S), second.wait(LIMIT_S)) == (0, 0)
        assert first.stderr is not None
        said = first.stderr.read().decode()
    assert "read-only" in said and "nobody records the bench any more" in said
    assert "\x1b" not in said


def test_ctrl_c_ends_it_and_each_line_has_its_time(tmp_path: Path) -> None:
    incident = record(tmp_path, write_bench(tmp_path))
    with console(tmp_path, "--timestamps", "-n", "1") as (process, output):
        assert output.until(b"line 49\n") == b"??:??:??.??? line 49\n"  # there are no times
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    incident.finish("interrupted")


def test_without_a_station_it_says_what_to_do(tmp_path: Path) -> None:
    name = write_bench(tmp_path)
    record(tmp_path, name).finish("interrupted")
    done = freezeframe("console", "primary", "--bench", "lab.toml", cwd=tmp_path)
    assert done.returncode == 3 and done.stdout == ""
    assert f"nobody records the bench {name} of {tmp_path / 'lab.toml'} now" in done.stderr
    assert "start `freezeframe watch --bench lab.toml`" in done.stderr
    done = freezeframe("console", "left", "--bench", "lab.toml", cwd=tmp_path)
    assert done.returncode == 2 and "left: no such side" in done.stderr


def test_another_bench_of_that_name_is_never_shown(tmp_path: Path) -> None:
    """Seen: no watch ran on the bench of FILE, and the console of another one, also called sim, was shown."""
    name = write_bench(tmp_path)
    (tmp_path / "other.toml").write_text((tmp_path / "lab.toml").read_text())
    other = record(tmp_path, name, "other.toml")
    other_pid = f"(pid {os.getpid()})"
    done = freezeframe("console", "primary", "--bench", "lab.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "Another bench of that name is recorded by" in done.stderr and other_pid in done.stderr
    ours = record(tmp_path, name)
    with console(tmp_path, "-n", "1") as (process, output):
        assert output.until(b"line 49\n") == b"line 49\n"
        append(other, b"another pair's\r\n")
        append(ours, b"ours\r\n")
        assert output.until(b"ours\n") == b"ours\n"
        ours.finish("interrupted")
        assert process.wait(LIMIT_S) == 0
    other.finish("interrupted")


def test_a_bench_need_not_be_named_as_with_watch_and_top(tmp_path: Path) -> None:
    done = freezeframe("console", "left", cwd=tmp_path)
    assert done.returncode == 2 and "left: no such side" in done.stderr
