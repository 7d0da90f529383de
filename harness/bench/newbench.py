"""The bench file that ``freezeframe init`` writes, from the answers to its questions. Pure but for the
copy of the rules."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import builtin_folder
from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.edge.wholefile import path_error
from freezeframe.harness.errors import UsageError

RULES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "sim_array": ("sim.toml", "garble.toml"),
    "linux_drbd": ("drbd.toml", "drbd_link.toml", "node-died.toml"),
    "linux_nvme": ("md.toml", "nvme.toml", "nvme_link.toml", "node-died.toml"),
    "linux_nbd": ("md.toml", "nbd.toml", "nbd_link.toml", "node-died.toml"),
}
"""Controller driver, also with ``_break`` behind it -> rule files. A driver of somebody else's: the
ones for any Linux node, to begin with."""
_OTHERS: Final = ("node-died.toml",)
PROTOCOL_OF: Final[Mapping[str, str]] = {"linux_nvme": "nvme_tcp", "linux_nbd": "nbd"}
"""Controller driver -> protocol of its link; every other: drbd."""


@dataclass(frozen=True, kw_only=True)
class SideAnswers:
    """Of one side; as the keys of the bench file."""

    serial_number: str
    console: str
    control: str
    host: str
    """"": its volume cannot be reached from here; the bench can be watched all the same."""
    baud: int = 115_200


@dataclass(frozen=True, kw_only=True)
class BenchAnswers:
    name: str
    driver: str
    interface: str
    """Of the replication link, on this machine."""
    port: int
    """TCP port of the replication."""
    sides: Mapping[Side, SideAnswers]


def rule_files(driver: str) -> tuple[str, ...]:
    """The rule files to begin with. One UART that carries frames too needs ``garble.toml`` left out."""
    return RULES_OF.get(driver.removesuffix("_break"), _OTHERS)


def bench_text(answers: BenchAnswers) -> str:
    """The bench file. Every key that most benches leave alone is left out."""
    lines = [
        "# Made by freezeframe init; every key is explained in docs/bench-files.md.",
        "[bench]",
    ]
    lines += [f"name = {_toml(answers.name)}"]
    for side in SIDES:
        one = answers.sides[side]
        lines += [
            "", f"[{side}]", f"driver = {_toml(answers.driver)}", f"serial_number = {_toml(one.serial_number)}",
            f"console = {_toml(one.console)}", f"console_baud = {one.baud}", f"control = {_toml(one.control)}",
        ]  # fmt: skip
        lines += [f"host = {_toml(one.host)}"] if one.host else []
    rules = list(rule_files(answers.driver))
    if any(one.console == one.control for one in answers.sides.values()):
        rules = [one for one in rules if one != "garble.toml"]
    lines += [
        "", "[link]", f"interface = {_toml(answers.interface)}", f"port = {answers.port}",
        f"protocol = {_toml(PROTOCOL_OF.get(answers.driver.removesuffix('_break'), 'drbd'))}",
        "", "[policy]", f"rules = {json.dumps([f'rules/{one}' for one in rules])}",
        'instruct = ["primary", "secondary"]   # in this order',
        "", "# With a [power] table a controller that hangs in its warmstart can be power cycled.",
    ]  # fmt: skip
    if all(one.host for one in answers.sides.values()):
        lines += ["", "[workload]", 'driver = "nbd"', "bytes_mib = 64"]
    return "\n".join(lines) + "\n"


def _toml(text: str) -> str:
    """A string of TOML: JSON's escapes are among TOML's, but for DEL and surrogates."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_bench(path: Path, answers: BenchAnswers) -> list[Path]:
    """Write the bench file, and the rule files into ``rules`` beside it unless they are there. Returns
    what was written. Raises UsageError: the bench file exists, or cannot be written."""
    written = [path]
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(bench_text(answers))
        folder = path.parent / "rules"
        folder.mkdir(exist_ok=True)
        for name in rule_files(answers.driver):
            if not (folder / name).exists():
                shutil.copyfile(builtin_folder() / "rules" / name, folder / name)
                written.append(folder / name)
    except FileExistsError as error:
        raise UsageError(f"{error.filename}: exists; nothing is overwritten") from error
    except OSError as error:
        raise path_error(Path(error.filename or path), error) from error
    return written
