"""A simulated bench under watch: its complaint, and a line of it that can be unplugged."""

from pathlib import Path

from waiting import LIMIT_S

from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.bench.opened import OpenBench, deadline_in
from freezeframe.harness.roles import Printing


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
