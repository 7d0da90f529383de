"""Implement ``export``: write an incident in the formats of other tools."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from freezeframe.harness.cli.formats import FORMATS, Format
from freezeframe.harness.cli.output import err, print_json, say
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
    formats: Sequence[Format] = FORMATS,
) -> None:
    """Write the formats whose entry in ``targets`` is a file. UsageError: none is, or a format
    does not support ``redact``."""
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
        err.print(f"  {escape(problem)}", style="yellow", markup=False)
    for name, (at, size) in written.items():
        say(f"{name}: {escape(at)}, {text.byte_count(size)}")


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
