"""The shell functions of a Linux node in each shell: rehearsed, damaged, half there; and the records
of crashes wherever they are kept."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from linux_node import (
    BOOT_ID,
    INCIDENT,
    SHELLS,
    NodeOnDisk,
    armed,
    armed_by_break,
    crash_record,
    soon,
)

from freezeframe.drivers.controllers import linux_drbd, linux_files, linux_records, linux_scripts
from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.roles import REHEARSED, UNREHEARSED, Rehearsing


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
    assert path.read_text() == whole == linux_scripts.functions(LinuxDrbd.replication.scripts)
    assert device.rehearse(frame, soon()).ok
    assert {one.name for one in path.parent.iterdir()} == {"functions"}


def test_functions_that_do_not_arrive_are_not_used(
    device: LinuxDrbd, node: NodeOnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put("run", "a file where the folder should be")
    with pytest.raises(RigError, match="do not arrive whole on the node"):
        armed(device, 1)


def test_no_line_is_long_and_none_asks_for_the_history() -> None:
    asked = [
        linux_scripts.identify(LinuxDrbd.replication.scripts),
        *linux_files.questions_to_put(
            linux_scripts.functions(LinuxDrbd.replication.scripts), linux_scripts.path()
        ),
    ]
    lines = "\n".join((linux_scripts.functions(LinuxDrbd.replication.scripts), *asked)).splitlines()
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
        event["text"]
        for event in linux_records.kernel_events(record.partition("\n")[2], linux_drbd.KNOWN)
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


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_question_without_its_start_writes_and_deletes_nothing_elsewhere(
    node: NodeOnDisk, tmp_path_factory: pytest.TempPathFactory, lost: int
) -> None:
    """A node that boots swallows the first lines: its shell runs what is left, wherever it is."""
    node.put("sys/fs/pstore/dmesg-ramoops-0", crash_record())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "empty").touch()
    for question in linux_files.questions_to_put(
        linux_scripts.functions(LinuxDrbd.replication.scripts), linux_scripts.path()
    ):
        rest = "\n".join(question.splitlines()[lost:])
        subprocess.run(["sh"], input=rest.encode(), cwd=elsewhere, capture_output=True, timeout=200)
    assert [path.name for path in elsewhere.iterdir()] == ["empty"]
    assert not (node.root / "crashed").exists()


def test_functions_of_which_a_part_is_lost_do_nothing(node: NodeOnDisk, tmp_path: Path) -> None:
    """Whatever lines a shell loses of the file itself, it neither crashes nor saves."""
    lines = linux_scripts.functions(LinuxDrbd.replication.scripts).splitlines(keepends=True)
    who = f"FFTEST-1/{BOOT_ID}"
    for kept in range(0, len(lines), 3):
        (tmp_path / "half").write_text("".join(lines[:kept]))
        for act in ("crash", "store"):
            call = f"ff_i=1;ff_r=1;ff_w={who};ff_a={act};ff_z=;. {tmp_path}/half;ff_go\n"
            subprocess.run(
                ["sh"], input=call.encode(), cwd=tmp_path, capture_output=True, timeout=200
            )
    assert not (node.root / "crashed").exists()
    assert not (node.root / "run/freezeframe").exists()
