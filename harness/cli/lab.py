"""Implement ``rules test``: compare the hits of a changed rule file with the recorded ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.progress import track

from freezeframe.harness.cli.output import err, out, print_json, say, say_aside
from freezeframe.harness.core.console.rules import RuleSet, combine, parse_rules
from freezeframe.harness.core.text import escape
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents import rulelab, store
from freezeframe.harness.incidents.dossier import Dossier

MAX_RULE_FILE_BYTES: Final = 1 << 20
MAX_SHOWN: Final = 10
"""New and lost hits printed per incident; ``--json`` has all of them."""


def read_rules(paths: Sequence[Path]) -> RuleSet:
    parts = []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_RULE_FILE_BYTES)
            parts.append((str(path), parse_rules(data.decode("utf-8"), str(path))))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8, at byte {error.start}") from error
    return combine(parts)


def test(files: Sequence[Path], against: Sequence[Path], out_dir: Path, *, as_json: bool) -> None:
    rules = read_rules(files)
    baseline = read_rules(against) if against else None
    known = store.incidents(out_dir)
    if not known:
        raise UsageError(f"{out_dir}: no incidents in this folder to test the rules on")
    hidden = as_json or not err.is_terminal
    results = [
        rulelab.compare(Dossier(one), rules, baseline)
        for one in track(known, description="scanning", console=err, transient=True, disable=hidden)
    ]
    if as_json:
        print_json({"incidents": [_plain(one) for one in results], "rules": _totals(results)})
        return
    for result in results:
        _print_result(result)
    same = sum(1 for one in results if one.is_same)
    say(f"incidents: {len(results)}, unchanged: {same}")
    for rule, counts in _totals(results).items():
        say(f"  {rule}: {counts['new']} new, {counts['lost']} lost")


def _print_result(result: rulelab.RuleComparison) -> None:
    if result.is_same and not result.problems:
        return
    say(
        f"{escape(result.incident)}: {result.kept} unchanged, {len(result.new)} new, {len(result.lost)} lost"
    )
    for sign, style, hits in (("+", "green", result.new), ("-", "red", result.lost)):
        for place, text in hits[:MAX_SHOWN]:
            where = "frame" if place.source == "link" else "byte"
            out.print(
                f"  {sign} {place.rule}, {place.side} {place.source}, {where} {place.where}: {text}",
                style=style, markup=False,
            )  # fmt: skip
        if len(hits) > MAX_SHOWN:
            say(f"  {sign} and {len(hits) - MAX_SHOWN} more")
    for problem in result.problems:
        say_aside(f"  {escape(problem)}")


def _plain(result: rulelab.RuleComparison) -> dict[str, object]:
    def listed(hits: tuple[tuple[rulelab.HitPlace, str], ...]) -> list[dict[str, object]]:
        return [
            {"rule": at.rule, "source": at.source, "side": at.side, "where": at.where, "text": text}
            for at, text in hits
        ]

    return {
        "id": result.incident,
        "kept": result.kept,
        "new": listed(result.new),
        "lost": listed(result.lost),
        "problems": list(result.problems),
    }


def _totals(results: Sequence[rulelab.RuleComparison]) -> dict[str, dict[str, int]]:
    return {
        rule: {"new": new, "lost": lost} for rule, (new, lost) in rulelab.totals(results).items()
    }
