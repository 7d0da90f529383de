"""The pytest plugin of ``mutants.py``: which test runs which lines, and tests played with a bug.

It takes one JSON task from the environment and reports over a pipe, one JSON object per line.

* ``record``: run the tests under a tracer; report the lines of the watched files that each ran.
* ``serve``: load all tests once. For each order on the command pipe, fork; the child puts the
  changed function in place of the healthy one and runs the tests of the order until one fails.
* ``fresh``: run the given tests until one fails. For a bug that acts while modules are loaded.
"""

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

import hypothesis
import pytest

TASK: Final = "FREEZEFRAME_MUTANTS_TASK"
MAX_TRACED_CALLS: Final = 50
"""Of one function in one test. A function that is called more often counts as run entirely."""
PACKAGE: Final = "src/freezeframe/"

# Bugs are told apart by the same examples each time, and a failure needs no smallest example.
hypothesis.settings.register_profile(
    "mutants",
    database=None,
    derandomize=True,
    deadline=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
hypothesis.settings.load_profile("mutants")


def functions(source: str, filename: str) -> list[CodeType]:
    """The functions and methods of a module in the order of its source, without inner functions."""
    return list(_outer(compile(source, filename, "exec")))


def _outer(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and not inner.co_name.startswith("<"):
            if inner.co_flags & 0x2:  # CO_NEWLOCALS: a function; a class body has none
                yield inner
            else:
                yield from _outer(inner)


def put_in_place(path: str, before: str, after: str, number: int) -> None:
    """Exchange the code of the ``number``-th function of the loaded module ``path``."""
    old, new = functions(before, path)[number], functions(after, path)[number]
    live = [
        one
        for one in gc.get_objects()
        if isinstance(one, FunctionType)
        and one.__code__.co_filename.endswith(PACKAGE + path)
        and one.__code__.co_qualname == old.co_qualname
        and one.__code__.co_firstlineno == old.co_firstlineno
    ]
    if not live or old.co_name != new.co_name:
        raise LookupError(f"{path}: no live function {old.co_qualname}")
    for one in live:
        one.__code__ = new.replace(co_filename=one.__code__.co_filename)


class Tracer:
    """Notes the lines that run, of the files whose paths begin with one of ``watched``."""

    def __init__(self, watched: Sequence[str]) -> None:
        self._watched = tuple(watched)
        self._paths: dict[str, str] = {}
        self._calls: dict[int, int] = {}
        self.lines: dict[str, set[int]] = {}

    def start(self) -> None:
        threading.settrace(self._call)
        sys.settrace(self._call)

    def take(self) -> dict[str, list[int]]:
        """The lines since the last time, per file."""
        taken, self.lines = self.lines, {}
        self._calls.clear()
        return {path: sorted(lines) for path, lines in taken.items()}

    def _path(self, filename: str) -> str:
        if filename not in self._paths:
            path = filename.rpartition(PACKAGE)[2] if PACKAGE in filename else ""
            self._paths[filename] = path if path.startswith(self._watched) else ""
        return self._paths[filename]

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        path = self._path(frame.f_code.co_filename)
        if not path:
            return None
        lines = self.lines.setdefault(path, set())
        calls = self._calls[id(frame.f_code)] = self._calls.get(id(frame.f_code), 0) + 1
        if calls > MAX_TRACED_CALLS:
            if calls == MAX_TRACED_CALLS + 1:
                lines.update(line for _, _, line in frame.f_code.co_lines() if line)
            return None

        def local(inner: FrameType, event: str, argument: object) -> Any:
            lines.add(inner.f_lineno)
            return local

        return local


class Plugin:
    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task
        self._report = os.fdopen(task["report"], "w")
        self._failed = False
        self._tracer = Tracer(task.get("watched", ()))
        if task["mode"] == "record":
            self._tracer.start()

    def _say(self, **words: object) -> None:
        self._report.write(json.dumps(words) + "\n")
        self._report.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            self._say(failed="while the tests were loaded")
        elif self._task["mode"] == "record":
            known = set(self._task["known"])
            self._record([one for one in session.items if one.nodeid not in known])
        elif self._task["mode"] == "serve":
            self._serve(session.items)
        else:
            self._run(self._ordered(session.items, self._task["order"]) or session.items)
        return True

    @staticmethod
    def _ordered(items: Sequence[pytest.Item], order: Sequence[str]) -> list[pytest.Item]:
        by_id = {item.nodeid: item for item in items}
        return [by_id[one] for one in order if one in by_id]

    def _run(self, items: Sequence[pytest.Item]) -> None:
        """Run until one fails. What a test has set up is taken down in any case."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            self._say(start=item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                self._say(failed=item.nodeid)
                item.session._setupstate.teardown_exact(None)
                return
        self._say(passed=len(items))

    def _record(self, items: Sequence[pytest.Item]) -> None:
        self._say(test="", seconds=0, lines=self._tracer.take())
        for item, following in zip(items, [*items[1:], None], strict=True):
            started = time.monotonic()
            self._tracer.start()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds = round(time.monotonic() - started, 3)
            self._say(test=item.nodeid, seconds=seconds, lines=self._tracer.take())
        sys.settrace(None)

    def _serve(self, items: Sequence[pytest.Item]) -> None:
        gc.freeze()
        self._say(ready=True)
        for line in os.fdopen(self._task["orders"]):
            order = json.loads(line)
            child = os.fork()
            if not child:
                os.setsid()
                try:
                    self._say(pid=os.getpid())
                    if bug := order["bug"]:
                        gc.unfreeze()
                        put_in_place(**bug)
                    self._run(self._ordered(items, order["tests"]))
                except LookupError as error:
                    self._say(trouble=repr(error))
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            self._say(end=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PLUGIN)


if TASK in os.environ:
    PLUGIN: Final = Plugin(json.loads(Path(os.environ[TASK]).read_text(encoding="utf-8")))
