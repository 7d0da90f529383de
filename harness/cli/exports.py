"""``export``: an incident as one file, in the forms that other tools open."""

import contextlib
import secrets
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from freezeframe.harness.cli.output import err, print_json, say
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents import store
from freezeframe.harness.incidents.evidence import Evidence
from freezeframe.harness.incidents.redaction import RedactedEvidence, folder_key
from freezeframe.harness.report import text
from freezeframe.harness.report.html import page
from freezeframe.harness.report.lua import dissector
from freezeframe.harness.report.pcapng import write_pcapng
from freezeframe.harness.report.perfetto import trace


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where each form goes; None: it is not asked for."""

    pcapng: Path | None = None
    lua: Path | None = None
    perfetto: Path | None = None
    html: Path | None = None


def export(what: str, out_dir: Path, targets: Targets, *, redact: bool, as_json: bool) -> None:
    asked = {
        one.name: getattr(targets, one.name)
        for one in fields(targets)
        if getattr(targets, one.name)
    }
    if not asked:
        raise UsageError(
            f"export: say what to write: {', '.join(f'--{one.name} FILE' for one in fields(targets))}"
        )
    for path in asked.values():
        if path.is_dir():
            raise UsageError(f"{path}: is a directory; name a file")
    told: dict[str, Any] = {}
    if targets.lua:
        write_whole(targets.lua, dissector().encode())
    if set(asked) != {"lua"}:
        stored = store.find(what, out_dir)
        evidence = Evidence(stored)
        if redact:
            evidence = RedactedEvidence(stored, key=folder_key(stored.path.absolute().parent))
        told["incident"] = str(stored.path.absolute())
        if targets.pcapng:
            told["packets"] = write_pcapng(evidence, targets.pcapng)
        if targets.perfetto:
            write_whole(targets.perfetto, trace(evidence))
        if targets.html:
            write_whole(targets.html, page(evidence).encode(errors="replace"))
        told["problems"] = [*stored.problems, *dict.fromkeys(evidence.problems)]
    told["written"] = {
        form: {"path": str(path.absolute()), "bytes": path.stat().st_size}
        for form, path in asked.items()
    }
    if as_json:
        print_json(told)
        return
    for problem in told.get("problems", []):
        err.print(f"  {escape(problem)}", style="yellow", markup=False)
    for form, one in told["written"].items():
        say(f"{form}: {escape(one['path'])}, {text.byte_count(one['bytes'])}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: what was there before stays until all of it is written."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        raise RigError(f"{path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
