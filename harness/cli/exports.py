"""Implement ``export``: write an incident in the formats of other tools."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from freezeframe.harness.cli.formats import FORMATS, Format
from freezeframe.harness.cli.output import print_json, say, say_aside
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents import store
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.redaction import RedactedDossier, folder_key
from freezeframe.harness.report import text


def export(
    what: str,
    out_dir: Path,
    targets: Mapping[str, Path | None],
    *,
    redact: bool,
    as_json: bool,
    preview: bool = False,
    formats: Sequence[Format] = FORMATS,
) -> None:
    """Write the formats whose entry in ``targets`` is a file. UsageError: none is, or a format
    does not support ``redact``. ``preview``: list what ``redact`` would mask, and write nothing."""
    if preview:
        _preview(what, out_dir, targets, redact=redact, as_json=as_json)
        return
    asked = [(one, path) for one in formats if (path := targets.get(one.name)) is not None]
    _check(asked, formats, redact=redact)
    report: dict[str, object] = {}
    read: list[Dossier] = []

    def source() -> Dossier:
        if not read:
            stored = store.find(what, out_dir)
            report["incident"] = str(stored.path.absolute())
            key = folder_key(stored.path.absolute().parent) if redact else None
            read.append(Dossier(stored) if key is None else RedactedDossier(stored, key=key))
        return read[0]

    for one, path in asked:
        report |= one.write(source, path)
    problems = [*read[0].stored.problems, *dict.fromkeys(read[0].problems)] if read else []
    if read:
        report["problems"] = problems
    written = {one.name: (str(path.absolute()), path.stat().st_size) for one, path in asked}
    if as_json:
        files = {name: {"path": at, "bytes": size} for name, (at, size) in written.items()}
        print_json({**report, "written": files})
        return
    for problem in problems:
        say_aside(f"  {escape(problem)}")
    for name, (at, size) in written.items():
        say(f"{name}: {escape(at)}, {text.byte_count(size)}")


def _preview(
    what: str, out_dir: Path, targets: Mapping[str, Path | None], *, redact: bool, as_json: bool
) -> None:
    if not redact:
        raise UsageError("export: --preview lists what --redact would mask; give both")
    if any(path is not None for path in targets.values()):
        raise UsageError("export: --preview writes no file; leave the formats out")
    stored = store.find(what, out_dir)
    dossier = RedactedDossier(stored, key=folder_key(stored.path.absolute().parent))
    found = dossier.preview()
    if as_json:
        print_json({"incident": str(stored.path.absolute()), **asdict(found)})
        return
    for serial, name in found.serial_numbers.items():
        places = ", ".join(f"{where} {count}" for where, count in found.occurrences[serial].items())
        say(f"serial number {escape(serial)} -> {escape(name)}; found in: {places or 'no text'}")
    if not found.serial_numbers:
        say("no serial number was found")
    say(
        f"captured frames: {text.byte_count(found.masked_bytes)} of {text.byte_count(found.captured_bytes)} "
        f"become zero, in {found.masked_frames} of {found.frames} frames"
    )
    for one in found.removed:
        say(f"removed: {escape(one)}")
    for one in found.stays:
        say(f"stays:   {escape(one)}")
    for problem in dict.fromkeys(dossier.problems):
        say_aside(f"  {escape(problem)}")


def _check(
    asked: Sequence[tuple[Format, Path]], formats: Sequence[Format], *, redact: bool
) -> None:
    if not asked:
        options = ", ".join(f"--{one.name} FILE" for one in formats)
        raise UsageError(f"export: choose at least one format: {options}")
    for one, path in asked:
        if path.is_dir():
            raise UsageError(f"{path}: is a directory; name a file")
        if redact and not one.redacts:
            raise UsageError(f"export: --{one.name} does not support --redact")
