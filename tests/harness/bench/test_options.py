"""``[primary.options]``: checked against the driver's dataclass; secrets reach the driver and no text."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from freezeframe.driver import Identity, RigError, Secret, UsageError
from freezeframe.drivers.skeleton.device import SERIAL_NUMBER, Device, DeviceLine
from freezeframe.drivers.skeleton.driver import SkeletonDriver
from freezeframe.harness.bench import boundary
from freezeframe.harness.bench.options import problems
from freezeframe.harness.core.events import NS_PER_S


def limit() -> int:
    return time.monotonic_ns() + 60 * NS_PER_S


class WithSecret(SkeletonDriver):
    @dataclass(frozen=True)
    class Options:  # type: ignore[override]
        password: Secret
        address: str = "10.0.0.1"
        retries: int = 3
        wait_s: float = 1.0
        read_bytes: int = 512

    def identify(self, deadline_ns: int) -> Identity:
        raise RigError(f"login with {self.options.password.reveal()} refused")  # type: ignore[attr-defined]

    def state(self, deadline_ns: int) -> dict[str, Any]:
        raise ValueError(self.options.password.reveal())  # type: ignore[attr-defined]


def made(options: Mapping[str, object], folder: Path = Path()) -> Any:
    line = DeviceLine(Device())
    return boundary.make_controller(
        WithSecret,
        "acme",
        "primary",
        line,
        serial_number=SERIAL_NUMBER,
        options=options,
        folder=folder,
    )


@pytest.mark.parametrize("source", ["env", "file"])
def test_a_secret_reaches_the_driver_and_no_text(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_PASSWORD", "hunter22")
    (tmp_path / "secret.txt").write_text("hunter22\n")
    where = {"env": "ACME_PASSWORD"} if source == "env" else {"file": "secret.txt"}
    driver = made({"password": where, "wait_s": 2, "address": "a"}, tmp_path)
    assert driver.options.password.reveal() == "hunter22"
    assert driver.options.retries == 3 and driver.options.wait_s == 2
    assert "hunter22" not in repr(driver.options) and "hunter22" not in f"{driver.options.password}"
    for call in (driver.identify, driver.state):
        with pytest.raises(RigError) as caught:
            call(limit())
        assert "hunter22" not in str(caught.value) and "<secret>" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "options.password: is missing; allowed: a secret"),
        ({"password": "hunter22"}, "options.password: is not a secret"),
        ({"password": {"env": "A"}, "adress": "x"}, "unknown option, did you mean address?"),
        ({"password": {"env": "A"}, "retries": "3"}, "options.retries: is not a whole number"),
        ({"password": {"env": "A"}, "retries": True}, "options.retries: is not a whole number"),
        ({"password": {"env": "NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE is not set"),
        ({"password": {"file": "no-such-file"}}, "no-such-file cannot be read"),
    ],
)
def test_wrong_options_are_named(options: Mapping[str, object], words: str) -> None:
    with pytest.raises((UsageError, RigError)) as caught:
        made(options)
    assert words in str(caught.value) and "hunter22" not in str(caught.value)


def test_a_driver_without_options_takes_none() -> None:
    class Plain:
        pass

    assert list(problems(Plain, {})) == []
    assert list(problems(Plain, {"x": 1})) == ["options.x: this driver takes no options"]
