"""The Linux DRBD driver against a real ``sh`` on a PTY or a socket, whose node is played by a
folder of files."""

import hashlib
import os
import pty
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from freezeframe.drivers.controllers import linux_drbd, linux_records, linux_scripts
from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd, LinuxDrbdBreak
from freezeframe.harness.edge.serial_link import BREAK, SerialLink
from freezeframe.harness.errors import RigError, UsageError, WireError, WrongDeviceError
from freezeframe.harness.roles import REHEARSED, UNREHEARSED, Controller, Rehearsing
from freezeframe.harness.wire import drbd
from freezeframe.harness.wire.control import PairState

GOLDEN = Path(__file__).parents[2] / "golden" / "drbd"
BOOT_ID = "7ade8d4b-b793-4f3b-97f0-8b6ff9ce9183"
INCIDENT = bytes(range(16))
PROC_DRBD = """version: 8.4.11 (api:1/proto:86-101)
srcversion: F73C670A7EC572DB9CF3E5B
 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----
    ns:20 nr:0 dw:0 dr:0 al:8 bm:0 lo:0 pe:3 ua:0 ap:2 ep:1 wo:f oos:8
"""


class Socket:
    """A socket as SerialLink takes it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()


class NodeOnDisk:
    """The files of a Linux node under ``root``, and a shell whose scripts see them in place of the
    machine's own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for name, content in {
            "sys/class/dmi/id/product_serial": "FFTEST-1\n",
            "proc/sys/kernel/random/boot_id": f"{BOOT_ID}\n",
            "proc/sys/kernel/osrelease": "6.1.0-56-cloud-amd64\n",
            "proc/uptime": "42.50 12.00\n",
            "proc/stat": "cpu 1 2 3\nbtime 1795403761\n",
            "proc/drbd": PROC_DRBD,
            "proc/mounts": "pstore /sys/fs/pstore pstore rw 0 0\n",
        }.items():
            self.put(name, content)
        # Whatever these tests do, they do not crash the machine that they run on.
        monkeypatch.setattr(linux_scripts, "CRASH", f"echo yes >{root}/crashed")
        monkeypatch.setattr(linux_scripts, "ABLE", f"[ ! -e {root}/unable ]")
        monkeypatch.setattr(linux_scripts, "KERNEL_LOG", f"{root}/kmsg")
        # The clock of this node stands still: what waits by it ends by this count.
        monkeypatch.setattr(linux_scripts, "NEWS_TRIES", 50)
        for name in ("WHO", "IDENTIFY", "FREEZE", "LIST", "EVIDENCE", "FOLDER", "NEWS"):
            monkeypatch.setattr(linux_scripts, name, self.moved(getattr(linux_scripts, name)))

    def moved(self, script: str) -> str:
        return re.sub(r"(?<![\w.])/(?=(proc|sys|run|var|etc)\b)", f"{self.root}/", script)

    def put(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeOnDisk:
    return NodeOnDisk(tmp_path, monkeypatch)


WAITED_NS = 60_000_000_000


def armed(
    device: LinuxDrbd, reason: int, incident: bytes = INCIDENT, *, disruptive: bool = True
) -> bytes:
    """The frame of a node that is prepared for it."""
    identity = device.identify(soon())
    device.prepare(identity, incident, soon())
    return device.freeze_frame(identity, reason, incident, disruptive=disruptive)


def soon(seconds: float = 60.0) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


SHELLS = {"bash": ["bash", "--norc", "-i"], "dash": ["dash", "-i"], "ash": ["busybox", "ash", "-i"]}


@pytest.fixture(params=["bare", *SHELLS])
def device(request: pytest.FixtureRequest, node: NodeOnDisk) -> Iterator[LinuxDrbd]:
    """A bare sh on a socket; or one that echoes and prompts on a PTY."""
    if request.param == "bare":
        ours, theirs = socket.socketpair()
        loop = ["sh", "-c", "while :; do sh 2>/dev/null; done"]
        shell = subprocess.Popen(
            loop,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=node.root,
        )
        theirs.close()
        link = SerialLink("test", Socket(ours), [])  # type: ignore[arg-type]
    else:
        master, slave = pty.openpty()
        shell = subprocess.Popen(
            SHELLS[request.param],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=node.root,
        )
        os.close(slave)
        link = SerialLink("test", os.fdopen(master, "r+b", buffering=0), [])  # type: ignore[arg-type]
    try:
        yield LinuxDrbd("primary", link, serial_number="FFTEST-1")
    finally:
        os.killpg(shell.pid, 9)
        shell.wait()
        link.close()


def test_it_plays_the_role(device: LinuxDrbd) -> None:
    role: Controller = device
    assert role.side == "primary"


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


def test_a_fragment_left_by_somebody_else_is_cleared(device: LinuxDrbd) -> None:
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


def armed_by_break(device: LinuxDrbd) -> tuple[LinuxDrbdBreak, bytes]:
    """The same line and node, by the driver that sends BREAK."""
    by_break = LinuxDrbdBreak("primary", device.link, serial_number="FFTEST-1")
    identity = by_break.identify(soon())
    by_break.prepare(identity, INCIDENT, soon())
    return by_break, by_break.freeze_frame(identity, 1, INCIDENT)


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


def test_a_rehearsed_line_goes_the_whole_way_without_its_effect(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    """And as long as the line itself, which then has its effect."""
    role: Rehearsing = device
    for disruptive in (False, True):
        frame = armed(device, 1, disruptive=disruptive)
        assert len(frame) <= linux_scripts.MAX_LINE_BYTES
        reply = role.rehearse(frame, soon())
        assert (reply.ok, reply.status) == (True, REHEARSED)
        assert device.sets(soon()) == []
    assert not (node.root / "crashed").exists()
    assert not (node.root / "kmsg").exists() or (node.root / "kmsg").read_text() == ""
    device.link.write(frame)
    device.identify(soon())
    assert (node.root / "crashed").exists()


def test_a_rehearsal_says_what_would_fail(device: LinuxDrbd, node: NodeOnDisk) -> None:
    frame = armed(device, 1)
    node.put("unable", "")
    assert device.rehearse(frame, soon()).status == "no root shell"
    node.put("proc/sys/kernel/random/boot_id", "81643c7b-5627-4c36-9680-6eb45db5ae34\n")
    assert (device.rehearse(frame, soon()).ok, device.rehearse(frame, soon()).status) == (
        False,
        "stale epoch",
    )
    (node.root / "run/freezeframe/functions").unlink()
    assert device.rehearse(frame, soon()).status == "not prepared"
    device.link.write(b"\n{ echo '")  # somebody has left a quote open
    assert not device.rehearse(frame, soon(1.0)).ok


def test_what_a_break_does_is_not_rehearsed_and_that_is_said(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    by_break, frame = armed_by_break(device)
    reply = by_break.rehearse(frame, soon())
    assert (reply.ok, reply.status) == (True, UNREHEARSED)
    node.put("unable", "")
    assert not by_break.rehearse(frame, soon()).ok


def test_functions_that_were_damaged_on_the_node_are_put_again(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    frame = armed(device, 1)
    path = node.root / "run/freezeframe/functions"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    assert not device.rehearse(frame, soon(1.0)).ok
    armed(device, 1)
    assert path.read_text() == whole == linux_scripts.functions()
    assert device.rehearse(frame, soon()).ok
    assert {one.name for one in path.parent.iterdir()} == {"functions"}


def test_functions_that_do_not_arrive_are_not_used(
    device: LinuxDrbd, node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put("run", "a file where the folder should be")
    with pytest.raises(RigError, match="do not arrive whole on the node"):
        armed(device, 1)


def test_no_line_is_long_and_none_asks_for_the_history() -> None:
    asked = [linux_scripts.identify(), *linux_scripts.questions_to_put()]
    lines = "\n".join((linux_scripts.functions(), *asked)).splitlines()
    assert max(map(len, lines)) <= linux_scripts.MAX_LINE_BYTES < 500
    assert not [line for line in lines if re.search(r"![^ =]|\t|\bcd [^\"]|rm -r", line)]
    assert all(shutil.which(shell[0]) for shell in SHELLS.values())


def test_a_serial_number_that_makes_the_line_too_long_is_refused(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    node.put("sys/class/dmi/id/product_serial", "F" * 400 + "\n")
    long = LinuxDrbd("primary", device.link, serial_number="F" * 400)
    with pytest.raises(UsageError, match="the line to arm has"):
        armed(long, 1)


def parts_of(record: str, count: int) -> list[str]:
    """As kmsg_dump gives them: part 1 holds the end."""
    lines = record.splitlines(keepends=True)[1:]
    size = -(-len(lines) // count)
    return [
        f"Panic#1 Part{count - at}\n" + "".join(lines[at * size : (at + 1) * size])
        for at in range(count)
    ]


ERST = 7163286974713823234
LAYOUTS = {
    "ramoops": ["sys/fs/pstore/dmesg-ramoops-0"],
    "ramoops, moved": ["var/lib/systemd/pstore/dmesg-ramoops-0"],
    "ramoops, moved to a folder": ["var/lib/systemd/pstore/1654676168/dmesg-ramoops-0"],
    "ERST in parts": [f"sys/fs/pstore/dmesg-erst-{ERST + part}" for part in range(3)],
    "ERST in parts, moved": [
        f"var/lib/systemd/pstore/{str(ERST)[:-6]}/dmesg-erst-{ERST + part}" for part in range(12)
    ],
    "EFI in parts": [f"sys/fs/pstore/dmesg-efi_pstore-1654676168{part:02d}001" for part in (12, *range(11, 0, -1))],
    "EFI in parts, moved": [
        f"var/lib/systemd/pstore/1654676168/001/dmesg-efi_pstore-1654676168{part:02d}001" for part in (3, 2, 1)
    ],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("has_text", [False, True])
def test_a_record_wherever_and_in_how_many_parts_it_is_kept(
    device: LinuxDrbd, node: NodeOnDisk, layout: list[str], has_text: bool
) -> None:
    """``dmesg.txt`` is what systemd-pstore puts together itself."""
    record = crash_record()
    for path, part in zip(layout, parts_of(record, len(layout)), strict=True):
        node.put(path, part)
    if has_text and layout[0].startswith("var/lib/systemd/pstore/") and layout[0].count("/") > 4:
        node.put(str(Path(layout[0]).parent / "dmesg.txt"), record.partition("\n")[2])
    device.identify(soon())
    (entry,) = device.sets(soon())
    assert (entry.kind, entry.incident_id, entry.complete) == ("warmstart", INCIDENT, True)
    pulled = device.pull(entry, b"", soon(), lambda _: None)
    texts = [event["text"] for event in pulled.events]
    assert texts == [
        event["text"] for event in linux_records.kernel_events(record.partition("\n")[2])
    ]
    # Listed again nothing changes, also when systemd has moved it meanwhile.
    assert device.sets(soon()) == [entry]


def test_a_record_of_which_a_part_is_missing_says_so_until_it_comes(
    device: LinuxDrbd, node: NodeOnDisk
) -> None:
    parts = parts_of(crash_record(), 3)
    for number in (0, 2):
        node.put(f"sys/fs/pstore/dmesg-erst-{ERST + number}", parts[number])
    device.identify(soon())
    (entry,) = device.sets(soon())
    assert not entry.complete
    node.put(f"sys/fs/pstore/dmesg-erst-{ERST + 1}", parts[1])
    (entry,) = device.sets(soon())
    assert entry.complete


def test_two_crashes_are_two_sets(device: LinuxDrbd, node: NodeOnDisk) -> None:
    other = bytes(reversed(INCIDENT))
    for at, record in enumerate((crash_record(), crash_record(other))):
        for number, part in enumerate(parts_of(record, 2)):
            node.put(
                f"sys/fs/pstore/dmesg-efi_pstore-{1654676168 + 900 * at}{2 - number:02d}00{at + 1}",
                part,
            )
    device.identify(soon())
    assert {one.incident_id for one in device.sets(soon())} == {INCIDENT, other}


def test_only_the_text_that_systemd_made_is_left(device: LinuxDrbd, node: NodeOnDisk) -> None:
    node.put("var/lib/systemd/pstore/1654676168/dmesg.txt", crash_record().partition("\n")[2])
    device.identify(soon())
    (entry,) = device.sets(soon())
    assert (entry.incident_id, entry.complete) == (INCIDENT, True)


def test_a_canary_goes_into_the_kernel_log_as_an_error(device: LinuxDrbd, node: NodeOnDisk) -> None:
    assert device.print_line("freezeframe canary 12ab 'quoted'", soon()).ok
    assert (node.root / "kmsg").read_text() == "<3>freezeframe canary 12ab quoted\n"


def test_the_state_is_read_from_the_log_where_nothing_else_tells_it() -> None:
    lines = (GOLDEN / "integrity-mtu1500-a.tail.raw.log").read_text(errors="replace")
    state = linux_records.parse_proc_drbd(linux_records.state_of_log(lines))
    assert (state.role, state.conn) == (drbd.Role.PRIMARY, drbd.Conn.CONNECTED)
    assert (state.disk, state.peer_disk) == (drbd.Disk.UP_TO_DATE, drbd.Disk.UP_TO_DATE)
    assert linux_records.state_of_log("nothing of it") == ""


def crash_record(incident: bytes = INCIDENT) -> str:
    golden = (GOLDEN / "cycle-mtu1500-a.tail.raw.log").read_text(errors="replace").splitlines()
    kernel = [line for line in golden if line.startswith("[")]
    note = [f"[   12.6] freezeframe: warmstart {incident.hex()} 1 {BOOT_ID}"]
    note += [f"[   12.7] freezeframe: {line.strip()}" for line in PROC_DRBD.splitlines()]
    panic = [
        "[   12.8] sysrq: Trigger a crash",
        "[   12.9] Kernel panic - not syncing: sysrq triggered crash",
    ]
    return "Panic#1 Part1\n" + "\n".join(f"<4>{line}" for line in (*kernel, *note, *panic)) + "\n"


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


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_question_without_its_start_writes_and_deletes_nothing_elsewhere(
    node: NodeOnDisk, tmp_path_factory: pytest.TempPathFactory, lost: int
) -> None:
    """A node that boots swallows the first lines: its shell runs what is left, wherever it is."""
    node.put("sys/fs/pstore/dmesg-ramoops-0", crash_record())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "empty").touch()
    for question in linux_scripts.questions_to_put():
        rest = "\n".join(question.splitlines()[lost:])
        subprocess.run(["sh"], input=rest.encode(), cwd=elsewhere, capture_output=True, timeout=60)
    assert [path.name for path in elsewhere.iterdir()] == ["empty"]
    assert not (node.root / "crashed").exists()


def test_functions_of_which_a_part_is_lost_do_nothing(node: NodeOnDisk, tmp_path: Path) -> None:
    """Whatever lines a shell loses of the file itself, it neither crashes nor saves."""
    lines = linux_scripts.functions().splitlines(keepends=True)
    who = f"FFTEST-1/{BOOT_ID}"
    for kept in range(0, len(lines), 3):
        (tmp_path / "half").write_text("".join(lines[:kept]))
        for act in ("crash", "store"):
            call = f"ff_i=1;ff_r=1;ff_w={who};ff_a={act};ff_z=;. {tmp_path}/half;ff_go\n"
            subprocess.run(
                ["sh"], input=call.encode(), cwd=tmp_path, capture_output=True, timeout=60
            )
    assert not (node.root / "crashed").exists()
    assert not (node.root / "run/freezeframe").exists()


def listings(node: NodeOnDisk) -> int:
    return len((node.root / "listed").read_text().split())


def test_a_record_that_comes_late_is_waited_for(
    device: LinuxDrbd, node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node answers before its boot is over: its shell may be up before its record is. Here the
    record is there after the first answer, and before the second."""
    monkeypatch.setattr(linux_drbd, "RECORD_TIMEOUT_NS", WAITED_NS)
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
    monkeypatch.setattr(linux_drbd, "RECORD_TIMEOUT_NS", 1_000_000_000)
    frame = armed(device, 1)
    device.link.write(frame)
    assert device.freeze_reply(frame, soon()) is not None
    deadline_ns = soon()
    assert device.sets(deadline_ns) == []
    assert time.monotonic_ns() < deadline_ns
    monkeypatch.setattr(linux_drbd, "RECORD_TIMEOUT_NS", WAITED_NS)
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
    assert linux_records.parse_proc_drbd(f"version: 8.4.11\n 0: {line}\n").pair_state == state


@pytest.mark.parametrize("stored", [b"", b"not gzip", b"\x1f\x8b\x08\x00" + bytes(20)])
def test_a_set_that_is_none_is_an_error_of_the_wire(stored: bytes) -> None:
    with pytest.raises(WireError):
        linux_records.unpack(stored)
