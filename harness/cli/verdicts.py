"""``replay`` and ``adopt``: the verdict on a recorded incident from its files alone, and a test
made of it."""

from collections.abc import Sequence
from pathlib import Path

import typer

from freezeframe.harness.cli.output import (
    EXIT_DEVICE_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    print_json,
    say,
    say_aside,
    show,
)
from freezeframe.harness.core.events import Ns
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.timeline import Row
from freezeframe.harness.edge.wholefile import make_folder, path_error
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents import store
from freezeframe.harness.incidents.adopt import adopt as adopted
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.inquest import plain, timeline_of, verdict_of
from freezeframe.harness.report import text


def replay(what: str, out_dir: Path, *, timeline: bool, as_json: bool) -> None:
    """Exit 0 when the verdict is the recorded one (or the first), 1 when it differs, 4 when it is
    inconclusive."""
    one = store.find(what, out_dir)
    dossier = Dossier(one)
    verdict, recorded, altered = verdict_of(dossier), one.record.verdict, one.altered()
    same = None if recorded is None else recorded.conclusion == verdict.conclusion
    if as_json:
        shown: dict[str, object] = {
            "incident": str(one.path.absolute()), "same": same, "altered": altered, "verdict": plain(verdict),
        }  # fmt: skip
        if timeline:
            shown["timeline"] = timeline_of(dossier, verdict)
        print_json(shown)
    else:
        show(text.verdict_report(verdict))
        if timeline:
            say_timeline(timeline_of(dossier, verdict), verdict.t_detect_ns)
        if same is not None:
            say(
                "the same as recorded"
                if same
                else "NOT the same as recorded: files or the program have changed"
            )
        for sentence in altered:
            say_aside(f"  {sentence}")
        say(f"incident: {escape(str(one.path.absolute()))}")
    if same is False:
        raise typer.Exit(EXIT_DEVICE_FAILED)
    raise typer.Exit(EXIT_PASS if verdict.conclusive else EXIT_INCONCLUSIVE)


def say_timeline(rows: Sequence[Row], origin_ns: Ns | None) -> None:
    """Print rows by the time at which they happened, and what their zero is."""
    if not rows:
        say("timeline: nothing around the failure has a known time")
        return
    zero = "the detection of the trigger" if origin_ns is not None else "the start of the clock"
    say(f"by the time at which it happened; zero: {zero}")
    say(text.CLOCK_HEAD)
    for row in rows:
        say(text.clock_row(row, origin_ns))


def adopt(what: str, out_dir: Path, to: Path, *, as_json: bool) -> None:
    """Write NAME.toml and test_NAME.py into ``to``; what is there already is not overwritten."""
    one = store.find(what, out_dir)
    dossier = Dossier(one)
    made = adopted(one.record, verdict_of(dossier), dossier.evidence)
    files = {to / f"{made.name}.toml": made.scenario, to / f"test_{made.name}.py": made.test}
    make_folder(to)
    try:
        for path, content in files.items():
            with path.open("x") as file:
                file.write(content)
    except FileExistsError as error:
        raise UsageError(
            f"{error.filename} exists: adopted before? Remove it, or choose another --to"
        ) from error
    except OSError as error:
        raise path_error(to, error) from error
    scenario, test = map(str, files)
    if as_json:
        print_json({"incident": str(one.path.absolute()), "scenario": scenario, "test": test})
        return
    say(f"scenario: {escape(scenario)}")
    say(f"test:     {escape(test)}")
    say(f"run it:   python -m pytest {escape(test)}")
