"""``watch`` when the watch itself cannot go on."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_incidents
import pytest
from golden_incidents import RECEIVER
from typer.testing import CliRunner

from freezeframe.harness.cli import runs
from freezeframe.harness.cli.app import app
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.store import Outcome
from freezeframe.harness.runs.campaign import Result


class Dying:
    """A watch that ends by itself; what it had under way is judged while it is stopped."""

    def __init__(self, result: Result | None, error: Exception) -> None:
        self.results: list[Result] = []
        self.unproved: list[str] = []
        self._result, self._error = result, error

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        raise self._error

    @contextlib.contextmanager
    def opened(self, *_: object, **__: object) -> "Iterator[Dying]":
        try:
            yield self
        finally:
            self.results += [] if self._result is None else [self._result]


def golden(folder: Path, outcome: Outcome) -> Result:
    path = golden_incidents.unpack(RECEIVER, folder).path
    record: dict[str, Any] = json.loads((path / "incident.json").read_text())
    return Result(outcome=outcome, record=record, incident=path)


@pytest.mark.parametrize(
    ("outcome", "error", "status"),
    [
        ("fail", RigError("the reflex is gone for good"), 1),
        ("inconclusive", RigError("the reflex is gone for good"), 3),
        ("fail", ValueError("nobody foresaw this"), 1),
        (None, RigError("the reflex is gone for good"), 3),
        (None, OSError("the reflex is gone for good"), 3),
    ],
)
def test_what_was_collected_is_shown_and_counts_when_the_watch_cannot_go_on(
    outcome: Outcome | None,
    error: Exception,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen: the error alone was shown, with exit status 3, and a device's failure was lost on it."""
    result = golden(tmp_path, outcome) if outcome is not None else None
    monkeypatch.setattr(runs, "prepare", lambda _bench: None)
    for as_json in (True, False):
        dying = Dying(result, error)
        monkeypatch.setattr(runs.watching, "watch", dying.opened)
        done = CliRunner().invoke(app, ["watch", "--bench", "sim", *(["--json"] * as_json)])
        assert done.exit_code == status, done.output
        assert str(error) in done.stderr
        if as_json:
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            assert [one["event"] for one in lines] == [
                *(["incident"] * (result is not None)),
                "end",
            ]
            assert lines[-1]["status"] == status and str(error) in lines[-1]["error"]
            assert lines[-1]["incidents"] == (result is not None)
        elif result is not None:
            assert f"incident: {result.incident}" in done.stdout.replace("\n", "")
