"""A simulated bench under watch: its complaint, a line of it that can be unplugged, and one that commands find by
its file."""

import contextlib
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import builtin_folder, load_bench
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.roles import Printing
from freezeframe.harness.runs.view import Silent
from freezeframe.harness.runs.watching import Watch, watch


def complain(opened: OpenBench) -> None:
    secondary = opened.controllers["secondary"]
    assert isinstance(secondary, Printing)
    line = "block drbd0: Digest integrity check FAILED: 0s +4096"
    with opened.dialogue:
        assert secondary.print_line(line, deadline_in(LIMIT_S)).ok


def write_bench(tmp_path: Path, line: str, port: int) -> str:
    """The simulated bench with a line of the secondary behind a TCP port. ``line``: "console",
    "control", or "shared", which is both."""
    source, is_shared = builtin_folder(), line == "shared"
    text = (source / ("sim_shared.toml" if is_shared else "sim.toml")).read_text()
    for key in ("console", "control") if is_shared else (line,):
        before = f'{key} = "{{run}}/secondary.{"console" if is_shared else line}"'
        assert before in text
        text = text.replace(before, f'{key} = "socket://127.0.0.1:{port}"')
    text = text.replace('"rules/', f'"{source}/rules/')
    path = tmp_path / "unplugged.toml"
    path.write_text(text)
    return str(path)


def named_bench(folder: Path, source_name: str = "sim") -> str:
    """The simulated bench under a name of its own."""
    source = builtin_folder()
    text = (source / f"{source_name}.toml").read_text().replace('"rules/', f'"{source}/rules/')
    name = f"lab-{secrets.token_hex(4)}"
    (folder / "lab.toml").write_text(text.replace(f'name = "{source_name}"', f'name = "{name}"'))
    return name


class Watching(threading.Thread):
    """Iterates over a watch of this process to its end, so that its incidents are judged as they come."""

    def __init__(self, watched: Watch) -> None:
        super().__init__(daemon=True)
        self._watched = watched
        self.start()

    def run(self) -> None:
        for _ in self._watched:
            pass


@contextlib.contextmanager
def watched_bench(folder: Path, source_name: str = "sim") -> Iterator[Watch]:
    named_bench(folder, source_name)
    bench = load_bench(str(folder / "lab.toml"))
    with watch(bench, out_dir=folder / "incidents", view=Silent()) as watched:
        watching = Watching(watched)
        try:
            yield watched
        finally:
            # Its thread has to take the end: only one may wait for it. Also after a failure, which would hang.
            watched.station.stop("the test is over")
            watching.join(LIMIT_S)
            watched.station.join(LIMIT_S)
