"""The exported capture, as stock tshark and capinfos read it; the generated dissector, as Wireshark
runs it."""

import subprocess
from pathlib import Path

import golden_incidents
import pytest
from golden_incidents import LINUX, RECEIVER, SENDER

from freezeframe.harness.core import frames
from freezeframe.harness.edge.capturefile import LINKTYPE_UPPER_PDU, CaptureFile, upper_pdu
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.report.lua import PROTOCOL, dissector
from freezeframe.harness.report.pcapng import write_pcapng
from freezeframe.harness.wire import control
from freezeframe.harness.wire.control import Op


def tshark(capture: Path, *arguments: str) -> list[list[str]]:
    """The fields that tshark prints, a list a packet."""
    done = subprocess.run(
        ["tshark", "-r", str(capture), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert "Lua Error" not in done.stderr and "lua:" not in done.stderr, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.fixture(scope="module", params=[RECEIVER, SENDER])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Dossier, Path]:
    folder = tmp_path_factory.mktemp("exported")
    evidence = Dossier(golden_incidents.unpack(request.param, folder))
    assert write_pcapng(evidence, folder / "incident.pcapng") > 1000
    return evidence, folder / "incident.pcapng"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lua") / "control.lua"
    path.write_text(dissector())
    return path


def test_capinfos_names_every_source(exported: tuple[Dossier, Path]) -> None:
    told = subprocess.run(
        ["capinfos", str(exported[1])], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split("= ")[1] for line in told.splitlines() if " Name = " in line]
    assert names == [
        "link", "console-primary", "console-secondary", "control-primary", "control-secondary", "actions"
    ]  # fmt: skip
    assert "Strict time order:   True" in told
    assert f"incident {exported[0].stored.id}" in told


def test_stock_tshark_shows_all_of_it_and_nothing_malformed(
    exported: tuple[Dossier, Path],
) -> None:
    evidence, path = exported
    assert tshark(path, "--enable-heuristic", "drbd_tcp", "-Y", "_ws.malformed") == []
    fields = [
        "-T",
        "fields",
        *(f"-e{name}" for name in ("frame.interface_name", "_ws.col.Info", "frame.comment")),
    ]
    packets = tshark(path, "-Y", "frame.comment or frame.interface_name != link", *fields)
    trigger = [
        info
        for name, info, note in packets
        if "FreezeFrame: the trigger: rule digest-failed" in note
    ]
    assert len(trigger) == 1 and "Digest integrity check FAILED" in trigger[0]
    failing = [(name, note) for name, _, note in packets if "the failing write" in note]
    assert len(failing) == 1 and failing[0][0] == "link"
    diff = evidence.diff
    assert diff is not None and f"byte {diff.offsets[0]}" in failing[0][1]
    assert {name for name, _, note in packets if "control frame: WARMSTART" in note} == {
        "control-primary", "control-secondary"
    }  # fmt: skip
    assert any(name == "actions" and "set pulled" in info for name, info, _ in packets)


def test_the_generated_dissector_reads_the_frames(
    exported: tuple[Dossier, Path], script: Path
) -> None:
    evidence, path = exported
    names = ("op", "reply", "seq", "freeze_serial_number", "freeze_boot_epoch", "freeze_reason", "freeze_incident_id",
             "crc_ok")  # fmt: skip
    fields = ["-T", "fields", *(f"-e{PROTOCOL}.{name}" for name in names), "-e_ws.col.Info"]
    packets = tshark(path, f"-Xlua_script:{script}", "-Y", PROTOCOL, *fields)
    wanted = []
    for sent, reason in zip(evidence.control_frames, (1, 4), strict=True):
        seq = frames.decode(sent.frame).seq
        serial = evidence.record.controllers[sent.side].serial_number
        wanted.append(
            ["0x04", "0", str(seq), serial, "1", str(reason), evidence.record.incident_id_hex, "1",
             f"warmstart, sequence number {seq}"]
        )  # fmt: skip
    assert packets == wanted


def test_every_operation_and_its_reply_is_dissected(tmp_path: Path, script: Path) -> None:
    """Each layout of the tables filled with its own bytes: no field is left over, none is
    missing."""
    path = tmp_path / "all.pcapng"
    with CaptureFile(path, application="test", comment="every frame") as out:
        interface = out.interface("control", "frames", LINKTYPE_UPPER_PDU)
        for op in Op:
            for reply, layout in ((0, control.REQUESTS[op]), (control.REPLY, control.REPLIES[op])):
                payload = bytes(control.FIELDS[layout][0].size) if layout else b""
                frame = frames.encode(op | reply, 7, (b"\x00" if reply else b"") + payload)
                out.packet(
                    interface, 1, upper_pdu(frame, dissector=PROTOCOL, protocol="c", info="")
                )
        refused = frames.encode(Op.WARMSTART | control.REPLY, 8, b"\x03another serial number")
        for frame in (
            refused,
            b"\x00\x05\xf5\x01\x02\x03\x00",
            b"\x00\xff\x01\x00",
            b"\x00\x00",
            b"\xf5" * 9000,
        ):
            out.packet(interface, 2, upper_pdu(frame, dissector=PROTOCOL, protocol="c", info=""))
    fields = [
        "-T",
        "fields",
        *(f"-e{PROTOCOL}.{name}" for name in ("op", "data", "crc_ok", "status", "text")),
    ]
    packets = tshark(path, f"-Xlua_script:{script}", *fields)
    good, rest = packets[: 2 * len(Op)], packets[2 * len(Op) :]
    assert [int(one[0], 16) for one in good] == [int(op) for op in Op for _ in range(2)]
    assert all(one[1] == "" and one[2] == "1" for one in good)
    assert rest[0] == ["0x04", "", "1", "3", "another serial number"]
    assert all(one[0] == "" for one in rest[1:])
    wrong = bytearray(frames.encode(Op.IDENTIFY, 9, b"x"))
    wrong[-3] ^= 1
    with CaptureFile(path, application="test", comment="a wrong CRC") as out:
        interface = out.interface("control", "frames", LINKTYPE_UPPER_PDU)
        out.packet(interface, 1, upper_pdu(bytes(wrong), dissector=PROTOCOL, protocol="c", info=""))
    assert tshark(
        path,
        f"-Xlua_script:{script}",
        "-Y",
        f"{PROTOCOL}.bad_crc",
        "-T",
        "fields",
        f"-e{PROTOCOL}.seq",
    ) == [["9"]]


def test_a_capture_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), CaptureFile(path, application="test", comment="") as out:
        out.interface("a", "b", 1)
        raise KeyError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_another_device_type_s_control_line_is_text(tmp_path: Path) -> None:
    """A Linux node's is a line of shell; stock tshark shows it in its column."""
    out = tmp_path / "linux.pcapng"
    write_pcapng(Dossier(golden_incidents.unpack(LINUX, tmp_path)), out)
    shown = tshark(
        out,
        "-Y",
        'frame.comment contains "control line to the"',
        "-T",
        "fields",
        "-e",
        "_ws.col.Info",
    )
    assert len(shown) == 2
    assert all("product_serial" in line[0] for line in shown), shown
    assert tshark(out, "-Y", "_ws.malformed && exported_pdu") == []
