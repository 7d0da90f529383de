"""Write the bench file by which other commands use a simulated pair that runs."""

import json
from pathlib import Path

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.core.events import Side


def service_port(bench: Bench, side: Side) -> Path:
    """Where a simulated controller takes control frames beside its control line: it lies beside the
    bench file that ``attached`` makes."""
    return bench.path.parent / f"{side}.service"


def attached(bench: Bench) -> str:
    """Return a bench file for the running simulation of ``bench`` (resolved). Its parts are used
    as on a real rig, and its power is left to the command that started it."""
    tables = bench.model_dump(exclude_none=True, exclude={"simulation"})
    tables["policy"]["rules"] = [str(path) for path in bench.rule_paths()]
    if bench.power is not None:
        tables["power"]["safe_state"] = "leave"
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    """Strings, numbers, booleans and lists of strings have the same form in JSON and TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)
