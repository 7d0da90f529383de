"""``replay``: the verdict on a recorded incident, from its files alone."""

from pathlib import Path

import typer

from harness import store
from harness.cli.output import EXIT_DEVICE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, print_json, say, show
from harness.core.text import escape
from harness.inquest import verdict_of
from harness.report import text


def replay(what: str, out_dir: Path, *, as_json: bool) -> None:
    """Exit 0 when the verdict is the recorded one (or the first), 1 when it differs, 4 when it is inconclusive."""
    one = store.find(what, out_dir)
    verdict = verdict_of(one)
    recorded = one.record.get("verdict")
    same = None if recorded is None else recorded == verdict
    if as_json:
        print_json({"incident": str(one.path.absolute()), "same": same, "verdict": verdict})
    else:
        show(text.verdict_report(verdict))
        if same is not None:
            say(
                "the same as recorded"
                if same
                else "NOT the same as recorded: files or the program have changed"
            )
        say(f"incident: {escape(str(one.path.absolute()))}")
    if same is False:
        raise typer.Exit(EXIT_DEVICE_FAILED)
    raise typer.Exit(EXIT_PASS if verdict["conclusive"] else EXIT_INCONCLUSIVE)
