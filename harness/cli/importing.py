"""``import``: captures and logs that somebody has become an incident."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer

from freezeframe.harness.cli.lab import read_rules
from freezeframe.harness.cli.output import EXIT_OF_OUTCOME, print_json, say, say_aside
from freezeframe.harness.core.text import escape
from freezeframe.harness.incidents.importing import (
    Given,
    Imported,
    TapReport,
    import_evidence,
    skew_text,
    usual_rules,
)
from freezeframe.harness.incidents.importjudge import ImportHit

MAX_SHOWN: Final = 10
_HEADLINES: Final = {
    "fail": "A DEVICE FAILED",
    "inconclusive": "INCONCLUSIVE: nothing wrong was seen, but not all of it could be seen",
    "pass": "NOTHING WRONG SEEN",
}


def import_(given: Given, rules: Sequence[Path], out_dir: Path, *, as_json: bool) -> None:
    """Exit 0 when nothing wrong was seen, 1 when a device failed, 4 when the evidence does not show
    enough, 2 when it cannot be read."""
    files = list(rules) or usual_rules(given.protocol)
    found = import_evidence(given, read_rules(files), out_dir, rule_files=files)
    if as_json:
        print_json(_plain(found))
    else:
        _tell(found)
    raise typer.Exit(EXIT_OF_OUTCOME[found.outcome])


def _plain(found: Imported) -> dict[str, object]:
    return {
        "incident": str(found.path.absolute()),
        "outcome": found.outcome,
        "hits": [one.as_json() for one in found.hits],
        "writes": found.writes,
        "answers": found.answers,
        "digests_checked": found.digests_checked,
        "blind": list(found.blind),
        "notes": list(found.notes),
        "taps": [_tap(one) for one in found.taps],
        "verdict": found.verdict,
    }


def _tap(one: TapReport) -> dict[str, object]:
    fields: dict[str, object] = {"file": str(one.path), "frames": one.frames}
    if one.skew is not None:
        fields |= {
            "skew_ns": one.skew.offset_ns,
            "skew_error_ns": one.skew.error_ns,
            "segments_in_common": one.skew.segments,
        }
    return fields


def _tell(found: Imported) -> None:
    say(_HEADLINES[found.outcome])
    for hit in found.hits[:MAX_SHOWN]:
        say(f"  {_hit(hit)}")
    if len(found.hits) > MAX_SHOWN:
        say(f"  and {len(found.hits) - MAX_SHOWN} more: --json has all")
    if found.hits:
        say(f"verdict:  {escape(str(found.verdict['text']))}")
    say(
        f"link:     {found.writes} writes, {found.answers} answers, {found.digests_checked} digests checked"
    )
    for tap in found.taps:
        clock = f"; {skew_text(tap.skew)}" if tap.skew is not None else ""
        say(f"capture:  {escape(str(tap.path))}, {tap.frames} frames{clock}")
    for sentence in found.blind:
        say_aside(f"  not seen: {escape(sentence)}")
    for note in found.notes:
        say(f"note:     {escape(note)}")
    say(f"incident: {escape(str(found.path.absolute()))}")


def _hit(hit: ImportHit) -> str:
    if hit.source == "console":
        where = f"console, byte {hit.place}"
    elif hit.place:
        where = f"link, frame {hit.place}"
    else:
        where = "link"
    return escape(f"{hit.rule} on the {hit.side}'s {where}: {hit.text}")
