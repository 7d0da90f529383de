"""The Linux DRBD driver against a real ``sh`` on a PTY or a socket, whose node is played by a
folder of files."""

import hashlib
import socket
import time

import pytest
from linux_node import (
    BOOT_ID,
    GOLDEN,
    INCIDENT,
    PROC_DRBD,
    WAITED_NS,
    NodeOnDisk,
    Socket,
    armed,
    armed_by_break,
    crash_record,
    soon,
)

from freezeframe import testing
from freezeframe.drivers.controllers import (
    linux_drbd,
    linux_records,
    linux_scripts,
    linux_shell,
)
from freezeframe.drivers.controllers import linux_node as node_driver
from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.harness.edge.serial_link import BREAK, SerialLink
from freezeframe.harness.errors import RigError, UsageError, WireError, WrongDeviceError
from freezeframe.harness.roles import Controller
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.control import PairState


def test_it_plays_the_role(device: LinuxDrbd) -> None:
    role: Controller = device
    assert role.side == "primary"


def test_it_keeps_the_promises_of_its_role(device: LinuxDrbd) -> None:
    testing.check_controller(device)


def test_identify(device: LinuxDrbd, node: NodeOnDisk) -> None:
    who = device.identify(soon())
    assert (who.serial_number, who.boot_epoch, who.role) == (
        "FFTEST-1",
        1795403761,
        drbd.Role.PRIMARY,
    )
    assert (who.pair_state, who.uptime_ns) == ("full duplex", 42_500_000_000)
    # The clock steps: the same boot keeps its epoch. Another boot is later even when its clock says
    # otherwise.
    node.put("proc/stat", "btime 1795403760\n")
    assert device.identify(soon()).boot_epoch == 1795403761
    node.put("proc/sys/kernel/random/boot_id", "81643c7b-5627-4c36-9680-6eb45db5ae34\n")
    assert device.identify(soon()).boot_epoch == 1795403762


def test_another_node_is_not_taken_for_ours(device: LinuxDrbd, node: NodeOnDisk) -> None:
    node.put("sys/class/dmi/id/product_serial", "OTHER-\x1b[2J\n")
    with pytest.raises(WrongDeviceError, match=r"leads to OTHER-\\x1b"):
        device.identify(soon())


def test_a_board_whose_maker_gave_it_no_serial_number(device: LinuxDrbd, node: NodeOnDisk) -> None:
    """An empty one: the machine id counts. A sentence in its place is told as who is there."""
    node.put("etc/machine-id", "FFTEST-1\n")
    node.put("sys/class/dmi/id/product_serial", "   \n")
    identity = device.identify(soon())
    assert identity.serial_number == "FFTEST-1"
    device.link.write(armed(device, 1))
    device.identify(soon())
    assert (node.root / "crashed").read_text() == "yes\n"
    node.put("sys/class/dmi/id/product_serial", "To be filled by O.E.M.\n")
    with pytest.raises(
        WrongDeviceError, match=r"leads to To be filled by O.E.M., the bench file says FFTEST-1"
    ):
        device.identify(soon())


def test_a_fragment_left_by_somebody_else_is_cleared(
    device: LinuxDrbd, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first waits only: each is twice as long as the one before, up to a slow shell's.
    monkeypatch.setattr(linux_shell, "ASK_AGAIN_NS", linux_shell.ASK_AGAIN_NS // 8)
    for fragment in (b"{ echo 'half", b'\necho "open\n', b"if true; then\n"):
        device.link.write(fragment)
        assert device.identify(soon()).serial_number == "FFTEST-1"


def test_save_list_pull(device: LinuxDrbd) -> None:
    frame = armed(device, 3, disruptive=False)
    device.link.write(frame)
    reply = device.freeze_reply(frame, soon())
    assert reply is not None
    assert (reply.ok, reply.status) == (True, "ok")
    (entry,) = device.sets(soon())
    assert (entry.incident_id, entry.kind, entry.reason, entry.complete) == (
        INCIDENT,
        "save",
        3,
        True,
    )
    arrived: list[bytes] = []
    pulled = device.pull(entry, b"", soon(), arrived.append)
    stored = b"".join(arrived)
    assert hashlib.sha256(stored).hexdigest() == entry.sha256
    assert pulled.state["pair_state"] == PairState.FULL_DUPLEX
    assert pulled.state["dirty_blocks"] == 2
    assert pulled.state["queues"]["unacked_writes"] == 3
    # From where an earlier pull broke off.
    rest: list[bytes] = []
    device.pull(entry, stored[:100], soon(), rest.append)
    assert stored[:100] + b"".join(rest) == stored
    with pytest.raises(WireError, match="SHA-256"):
        device.pull(entry, b"x" + stored[1:], soon(), rest.append)


def test_a_frame_for_another_boot_or_target_is_refused(device: LinuxDrbd, node: NodeOnDisk) -> None:
    frame = armed(device, 1)
    for file, content, status in (
        ("proc/sys/kernel/random/boot_id", "81643c7b-5627-4c36-9680-6eb45db5ae34\n", "stale epoch"),
        ("sys/class/dmi/id/product_serial", "OTHER\n", "wrong target"),
    ):
        node.put(file, content)
        device.link.write(frame)
        reply = device.freeze_reply(frame, soon())
        assert reply is not None
        assert (reply.ok, reply.status) == (False, status)
    # A node that cannot say who it is.
    (node.root / "sys/class/dmi/id/product_serial").unlink()
    device.link.write(frame)
    reply = device.freeze_reply(frame, soon())
    assert reply is not None
    assert not reply.ok
    assert not (node.root / "crashed").exists()


def test_the_frame_crashes_its_target_and_leaves_a_note(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    frame = armed(device, 2)
    device.link.write(frame)
    reply = device.freeze_reply(frame, soon())
    assert reply is not None
    assert reply.ok
    device.identify(soon())  # the line is behind it
    assert (node.root / "crashed").read_text() == "yes\n"
    note = (node.root / "kmsg").read_text()
    assert f"freezeframe: warmstart {INCIDENT.hex()} 2 {BOOT_ID}\n" in note


def test_a_primary_that_has_not_noticed_yet_may_say_so_first(
    device: LinuxDrbd, node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux_scripts, "NEWS_TRIES", 10**9)  # as on a node, where the clock goes on
    frame = armed(device, 2)
    device.link.write(frame)
    assert device.freeze_reply(frame, soon()) is not None
    deadline_ns = soon()
    while not (node.root / "kmsg").exists() and time.monotonic_ns() < deadline_ns:
        pass
    assert not (node.root / "crashed").exists()
    node.put("proc/drbd", PROC_DRBD.replace("cs:Connected", "cs:BrokenPipe"))
    device.identify(soon())
    assert (node.root / "crashed").exists()


def test_a_primary_that_never_notices_crashes_all_the_same(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    frame = armed(device, 2)
    node.put("proc/uptime", "42.80 12.00\n")  # both readings are this one: only the tries end it
    device.link.write(frame)
    device.identify(soon())
    assert (node.root / "crashed").exists()


def test_a_break_is_proved_by_the_kernels_echo(device: LinuxDrbd, node: NodeOnDisk) -> None:
    by_break, frame = armed_by_break(device)
    assert frame.startswith(BREAK + b"c")
    assert (
        f"<7>freezeframe: armed {INCIDENT.hex()} 0 {BOOT_ID}\n" in (node.root / "kmsg").read_text()
    )
    device.link.write(frame)
    device.link.write(b"\necho '[    9.0] sysrq: Trigger a crash'\n")  # in the kernel's place
    reply = by_break.freeze_reply(frame, soon())
    assert reply is not None
    assert reply.ok
    assert "sysrq: Trigger a crash" in reply.text
    assert not (node.root / "crashed").exists()


@pytest.mark.parametrize("echo", ["", "[    9.0] sysrq: HELP : loglevel(0-9) reboot(b) crash(c)"])
def test_a_break_without_its_echo_is_lost_and_the_shell_is_told(
    device: LinuxDrbd, node: NodeOnDisk, echo: str
) -> None:
    """Nothing of it arrived, or the kernel took another key than the one that was sent."""
    by_break, frame = armed_by_break(device)
    device.link.write(b"\n" + frame.removeprefix(BREAK))
    device.link.write(f"\necho '{echo}'\n".encode())  # in the kernel's place
    reply = by_break.freeze_reply(frame, soon())
    assert reply is not None
    assert (reply.ok, reply.status) == (True, "ok")
    assert "the BREAK got lost" in reply.text
    by_break.identify(soon())
    assert (node.root / "crashed").read_text() == "yes\n"


def test_a_node_that_cannot_note_whose_the_crash_is_is_not_armed(
    device: LinuxDrbd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux_scripts, "KERNEL_LOG", "/nonexistent/kmsg")
    with pytest.raises(RigError, match="cannot write to /nonexistent/kmsg; is it a root shell"):
        armed_by_break(device)


@pytest.mark.parametrize(("is_ours", "kind"), [(True, "warmstart"), (False, "crash")])
def test_the_record_of_a_node_that_was_armed(
    device: LinuxDrbd, node: NodeOnDisk, is_ours: bool, kind: str
) -> None:
    """Its warmstart when the frame went out; else it has crashed by itself."""
    by_break, frame = armed_by_break(device)
    if is_ours:
        device.link.write(b"\necho 'sysrq: Trigger a crash'\n")
        assert by_break.freeze_reply(frame, soon()) is not None
    node.put(
        "sys/fs/pstore/dmesg-ramoops-0",
        crash_record().replace("freezeframe: warmstart", "freezeframe: armed"),
    )
    (entry,) = by_break.sets(soon())
    assert (entry.kind, entry.incident_id, entry.complete) == (kind, INCIDENT, True)


def test_a_canary_goes_into_the_kernel_log_as_an_error(device: LinuxDrbd, node: NodeOnDisk) -> None:
    assert device.print_line("freezeframe canary 12ab 'quoted'", soon()).ok
    assert (node.root / "kmsg").read_text() == "<3>freezeframe canary 12ab quoted\n"


def test_the_state_is_read_from_the_log_where_nothing_else_tells_it() -> None:
    lines = (GOLDEN / "integrity-mtu1500-a.tail.raw.log").read_text(errors="replace")
    state = linux_drbd.parse_proc_drbd(linux_drbd.state_of_log(lines))
    assert (state.role, state.conn) == (drbd.Role.PRIMARY, drbd.Conn.CONNECTED)
    assert (state.disk, state.peer_disk) == (drbd.Disk.UP_TO_DATE, drbd.Disk.UP_TO_DATE)
    assert linux_drbd.state_of_log("nothing of it") == ""


def test_the_record_of_a_crash_becomes_a_set(device: LinuxDrbd, node: NodeOnDisk) -> None:
    node.put("sys/fs/pstore/dmesg-ramoops-0", crash_record())
    device.identify(soon())
    (entry,) = device.sets(soon())
    assert (entry.kind, entry.incident_id, entry.boot_epoch) == ("warmstart", INCIDENT, 1795403761)
    pulled = device.pull(entry, b"", soon(), lambda _: None)
    texts = [event["text"] for event in pulled.events]
    assert "sysrq: Trigger a crash" in texts
    assert any("drbd" in text for text in texts)
    assert (pulled.state["role"], pulled.state["conn"]) == (drbd.Role.PRIMARY, drbd.Conn.CONNECTED)
    assert [one.sha256 for one in device.sets(soon())] == [entry.sha256]


def after_listing(node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch, script: str = "") -> None:
    """The node notes each time that it listed its sets, and runs ``script`` after it. In a file: a
    terminal takes a line of 4 kB."""
    node.put("x", f"echo x >>{node.root}/listed\n{script}\n")
    monkeypatch.setattr(linux_scripts, "LIST", f"{linux_scripts.LIST[:-1]}. {node.root}/x\n}}")


def listings(node: NodeOnDisk) -> int:
    return len((node.root / "listed").read_text().split())


def test_a_record_that_comes_late_is_waited_for(
    device: LinuxDrbd, node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node answers before its boot is over: its shell may be up before its record is. Here the
    record is there after the first answer, and before the second."""
    monkeypatch.setattr(node_driver, "RECORD_TIMEOUT_NS", WAITED_NS)
    frame = armed(device, 1)
    device.link.write(frame)
    assert device.freeze_reply(frame, soon()) is not None
    node.put("late", crash_record())
    (node.root / "sys/fs/pstore").mkdir(parents=True)
    record = f"{node.root}/sys/fs/pstore/dmesg-ramoops-0"
    after_listing(node, monkeypatch, f"mv {node.root}/late {record} 2>/dev/null")
    (entry,) = device.sets(soon())
    assert (entry.kind, entry.incident_id) == ("warmstart", INCIDENT)
    assert listings(node) >= 2


def test_a_record_that_never_comes_is_not_waited_for_without_end(
    device: LinuxDrbd, node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_driver, "RECORD_TIMEOUT_NS", 1_000_000_000)
    frame = armed(device, 1)
    device.link.write(frame)
    assert device.freeze_reply(frame, soon()) is not None
    deadline_ns = soon()
    assert device.sets(deadline_ns) == []
    assert time.monotonic_ns() < deadline_ns
    monkeypatch.setattr(node_driver, "RECORD_TIMEOUT_NS", WAITED_NS)
    after_listing(node, monkeypatch)
    assert device.sets(soon()) == []
    assert listings(node) == 1, "given up once, it is not waited for again"


def test_a_record_that_was_cut_says_so(device: LinuxDrbd, node: NodeOnDisk) -> None:
    node.put("sys/fs/pstore/dmesg-ramoops-0", crash_record().partition("Kernel panic")[0])
    (entry,) = device.sets(soon())
    assert not entry.complete


def test_a_silent_line_is_told_in_time(node: NodeOnDisk) -> None:
    ours, theirs = socket.socketpair()
    link = SerialLink("nobody", Socket(ours), [])  # type: ignore[arg-type]
    deadline_ns = soon(0.5)
    with pytest.raises(RigError, match="nobody: no answer from the shell"):
        LinuxDrbd("primary", link, serial_number="X").identify(deadline_ns)
    assert time.monotonic_ns() >= deadline_ns
    link.close()
    theirs.close()


def test_a_serial_number_that_could_be_a_command_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(UsageError, match="allowed are letters"):
        LinuxDrbd("primary", SerialLink("x", Socket(ours), []), serial_number='"; reboot "')  # type: ignore[arg-type]
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----", PairState.FULL_DUPLEX),
        (
            "cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate C r-----",
            PairState.COPY_PENDING,
        ),
        (
            "cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----",
            PairState.COPY_PENDING,
        ),
        ("cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown C r-----", PairState.SUSPENDED),
        ("cs:StandAlone ro:Primary/Unknown ds:UpToDate/DUnknown   r-----", PairState.SIMPLEX),
        ("cs:Unconfigured", PairState.SIMPLEX),
    ],
)
def test_pair_states(line: str, state: PairState) -> None:
    assert linux_drbd.parse_proc_drbd(f"version: 8.4.11\n 0: {line}\n").pair_state == state


@pytest.mark.parametrize("stored", [b"", b"not gzip", b"\x1f\x8b\x08\x00" + bytes(20)])
def test_a_set_that_is_none_is_an_error_of_the_wire(stored: bytes) -> None:
    with pytest.raises(WireError):
        linux_records.unpack(stored)
