"""In CI nothing is skipped: what a test skips for is told as its failure. And no test leaves
anything in the checkout."""

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

# Whoever starts the tests in the background (a shell's &, nohup) leaves these ignored, and all our
# children would inherit that: the tests of Ctrl-C and of a closed terminal need them as a terminal
# has them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The administrator's tools (losetup, mkfs) are not on everybody's path, not even on every root's.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

BEFORE: pytest.StashKey[set[str]] = pytest.StashKey()
LEFT: pytest.StashKey[list[str]] = pytest.StashKey()
CACHES = {"__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache", "build"}
"""What pytest and the tools make, whichever test runs."""

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"in CI nothing is skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the journals of this user's benches."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _names(config: pytest.Config) -> set[str]:
    return {path.name for path in config.rootpath.iterdir()}


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEFORE] = _names(session.config)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With xdist the first process looks, once all workers are done."""
    if _is_worker(session.config):
        return
    now = _names(session.config)
    left = sorted(now - session.config.stash[BEFORE] - CACHES)
    session.config.stash[LEFT] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    if left := config.stash.get(LEFT, []):
        terminalreporter.section("the tests left something behind", red=True)
        terminalreporter.line(f"in {config.rootpath}: {', '.join(left)}")
