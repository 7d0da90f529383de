"""What a service manager receives, at a real socket; and that a loop that hangs sends no sign."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freezeframe.harness.core.policy import Health, HealthStatus
from freezeframe.harness.edge.servicemanager import MAX_STATUS_CHARS, ServiceManager
from freezeframe.harness.runs.audit import state_directory
from freezeframe.harness.runs.service import Heartbeat, ServiceStatus
from freezeframe.harness.runs.view import HealthTap, Silent

LIMIT_S = 60.0


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(LIMIT_S)
        yield one


def manager_at(one: socket.socket, **more: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": one.getsockname(), **more})


def said(one: socket.socket) -> list[str]:
    """Everything that was sent up to now."""
    found = []
    one.setblocking(False)
    try:
        while True:
            found += one.recv(4096).decode().split("\n")
    except BlockingIOError:
        return found
    finally:
        one.settimeout(LIMIT_S)


def test_the_first_health_is_ready_and_each_is_the_status(listener: socket.socket) -> None:
    view = HealthTap(Silent(), ServiceStatus(manager_at(listener)).health)
    view.phase("nothing is ready yet")
    assert said(listener) == []
    view.health(HealthStatus(Health.DEGRADED, "primary \x1b[2J\nconsole"))
    view.health(HealthStatus(Health.ARMED))
    view.health(HealthStatus(Health.BLIND, "x" * 5000))
    ready, first, second, third = said(listener)
    assert (ready, second) == ("READY=1", "STATUS=armed")
    assert first == "STATUS=degraded: primary \\x1b[2J\\nconsole"
    assert len(third) == len("STATUS=") + MAX_STATUS_CHARS


def test_a_manager_that_is_busy_is_sent_ready_again(listener: socket.socket) -> None:
    """READY=1 was sent once: lost, it would have made systemd end a watch that was armed."""
    view = HealthTap(Silent(), ServiceStatus(manager_at(listener)).health)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"x", listener.getsockname())
    view.health(HealthStatus(Health.BLIND, "lost"))
    assert set(said(listener)) == {"x"}
    view.health(HealthStatus(Health.ARMED))
    view.health(HealthStatus(Health.ARMED))
    assert said(listener) == ["READY=1", "STATUS=armed", "STATUS=armed"]


def test_a_sign_comes_from_the_loop_and_from_nobody_else(listener: socket.socket) -> None:
    posted: list[Callable[[], None]] = []
    beat = Heartbeat(manager_at(listener), posted.append)
    beat.ask()
    beat.ask()
    assert len(posted) == 1 and said(listener) == []  # the loop hangs, and is asked once
    posted.pop()()
    assert said(listener) == ["WATCHDOG=1"]
    beat.ask()
    posted.pop()()
    assert said(listener) == ["WATCHDOG=1"]


def test_a_loop_that_turns_gives_signs_until_the_end_which_is_reported(
    listener: socket.socket,
) -> None:
    manager = manager_at(listener, WATCHDOG_USEC="30000", WATCHDOG_PID=str(os.getpid()))
    turns = iter(range(3))  # then it hangs, so that no sign fills the socket
    with Heartbeat(manager, lambda work: work() if next(turns, None) is not None else None):
        assert [listener.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    assert said(listener) == ["STOPPING=1", "STATUS=stopping: nobody is instructed"]


@pytest.mark.parametrize(
    ("more", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 0.0),  # another process is watched
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_a_watchdog_is_only_ours_when_it_names_this_process(
    more: dict[str, str], watchdog_s: float
) -> None:
    environment = {"NOTIFY_SOCKET": "@abstract", "PATH": "/bin", **more}
    assert ServiceManager(environment).watchdog_s == watchdog_s
    assert environment == {"PATH": "/bin"}, "not for the processes that it starts"


def test_an_abstract_address_and_nobody_who_listens() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(f"\0freezeframe-test-{os.getpid()}")
        one.settimeout(LIMIT_S)
        manager = ServiceManager({"NOTIFY_SOCKET": f"@freezeframe-test-{os.getpid()}"})
        manager.send("READY=1", "STATUS=armed")
        assert one.recv(100) == b"READY=1\nSTATUS=armed"
    manager.send("READY=1")  # it has gone
    ServiceManager({}).send("READY=1")


def test_state_lies_where_the_service_manager_or_xdg_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert state_directory() == Path("/x/freezeframe")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/freezeframe:/var/lib/more")
    assert state_directory() == Path("/var/lib/freezeframe")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local/state/freezeframe"


def test_a_service_is_known_by_what_its_manager_leaves_in_the_environment() -> None:
    assert not ServiceManager({}).has_started_us
    assert not ServiceManager({"SYSTEMD_EXEC_PID": "1", "NOTIFY_SOCKET": ""}).has_started_us
    assert ServiceManager({"SYSTEMD_EXEC_PID": str(os.getpid())}).has_started_us
    assert ServiceManager({"NOTIFY_SOCKET": "/nowhere"}).has_started_us
