"""Imported evidence: each form of a capture and of a log gives the same, and nothing can break it."""

import gzip
import re
import shutil
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from capture_forms import pcap, pcapng
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.harness.core.console.rules import RuleSet, combine, parse_rules
from freezeframe.harness.core.link.skim import Run
from freezeframe.harness.edge import evidencefile
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.errors import UsageError
from freezeframe.harness.incidents.importing import (
    Given,
    Imported,
    import_evidence,
    usual_rules,
)
from freezeframe.harness.incidents.store import StoredIncident

GOLDEN = Path(__file__).parents[2] / "golden"
FAILURE = GOLDEN / "drbd" / "small-failure.pcap"
HANDSHAKE = GOLDEN / "drbd" / "small-handshake.pcap"
NINE_CLEAN = GOLDEN / "drbd9" / "drbd9-clean.pcap.gz"
NINE_DIGEST = GOLDEN / "drbd9" / "drbd9-digest.pcap.gz"
FRAMES = [(one.t_ns, one.data) for one in read_frames(FAILURE) if one.data[12:14] == b"\x08\x00"]
"""Those that every link type can carry: IPv4."""


def rules() -> RuleSet:
    return combine(
        [(str(path), parse_rules(path.read_text(), str(path))) for path in usual_rules()]
    )


RULES = rules()


def imported(out: Path, *links: Path, **given: Any) -> Imported:
    return import_evidence(Given(links=links, **given), RULES, out)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def hits_of(found: Imported) -> list[tuple[str, str, str, int, int | None]]:
    return [(one.rule, one.source, one.side, one.place, one.sector) for one in found.hits]


FORMS = {
    "pcap": pcap(FRAMES),
    "pcap, big-endian": pcap(FRAMES, order=">"),
    "pcap, nanoseconds": pcap(FRAMES, nanoseconds=True),
    "pcap, big-endian nanoseconds": pcap(FRAMES, order=">", nanoseconds=True),
    "pcap, FCS bits set": pcap(FRAMES).replace(
        struct.pack("<II", 262144, 1), struct.pack("<II", 262144, 0x40000001), 1
    ),
    "pcap, Linux cooked": pcap(FRAMES, linktype=113),
    "pcap, Linux cooked 2": pcap(FRAMES, linktype=276),
    "pcap, raw IP": pcap(FRAMES, linktype=101),
    "pcap, DLT_RAW": pcap(FRAMES, linktype=12),
    "pcapng": pcapng(FRAMES),
    "pcapng, big-endian": pcapng(FRAMES, order=">"),
    "pcapng, nanoseconds": pcapng(FRAMES, tsresol=9),
    "pcapng, third interface": pcapng(FRAMES, interfaces=3),
    "pcapng, cooked 2, big-endian": pcapng(FRAMES, order=">", tsresol=9, linktype=276),
    "pcapng, raw IP, nanoseconds": pcapng(FRAMES, tsresol=9, linktype=101),
    "pcap.gz": gzip.compress(pcap(FRAMES)),
    "pcapng.zst": zstandard.compress(pcapng(FRAMES, tsresol=9)),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_capture_gives_the_same(form: str, tmp_path: Path) -> None:
    found = imported(tmp_path / "out", written(tmp_path, "capture", FORMS[form]))
    assert found.outcome == "fail"
    assert [(one.rule, one.side, one.sector) for one in found.hits] == [
        ("link-digest", "primary", 89600),
        ("link-unacked-close", "secondary", 89600),
    ]
    assert found.hits[0].text.endswith("; bit 4 of byte 680")
    assert FRAMES[found.hits[0].place - 1][0] // 1000 == found.hits[0].t_ns // 1000
    assert (found.writes, found.answers, found.digests_checked) == (1, 0, 1)
    assert found.taps[0].frames == len(FRAMES)


def commands(capture: Path) -> list[int]:
    """What tshark counts."""
    argv = ["tshark", "-r", str(capture), "--enable-heuristic", "drbd_tcp", "--disable-protocol"]
    argv += ["tcpencap", "-Y", "drbd", "-T", "fields", "-e", "drbd.command"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [int(one, 16) for one in re.split(r"[,\s]+", told) if one]


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.parametrize(
    ("capture", "expected"),
    [(FAILURE, "fail"), (HANDSHAKE, "inconclusive"), (NINE_CLEAN, "pass"), (NINE_DIGEST, "fail")],
    ids=lambda one: one.name if isinstance(one, Path) else one,
)
def test_writes_and_answers_are_those_that_tshark_counts(
    capture: Path, expected: str, tmp_path: Path
) -> None:
    found, seen = imported(tmp_path / "out", capture), commands(capture)
    assert (found.outcome, found.writes) == (expected, seen.count(0x00))
    assert found.answers == sum(seen.count(one) for one in (0x16, 0x15, 0x18))


def test_a_flipped_bit_of_a_drbd_9_pair_is_named_and_its_clean_run_is_clean(tmp_path: Path) -> None:
    found = imported(tmp_path / "out", NINE_DIGEST)
    assert found.hits[0].rule == "link-digest"
    assert found.hits[0].sector == 1280
    assert found.hits[0].text.endswith("; bit 4 of byte 32768")
    clean = imported(tmp_path / "out", NINE_CLEAN)
    assert (clean.hits, clean.blind, clean.digests_checked) == ((), (), clean.writes)


# --- consoles -----------------------------------------------------------------------------------------------
LOGS = GOLDEN / "drbd"
DIGEST_UPTIME = "[    7.384751] block drbd0: Digest integrity check FAILED: 89600s +65536"


def kernel_lines() -> list[str]:
    text = (LOGS / "integrity-mtu1500-b.tail.raw.log").read_text(errors="replace")
    return [line.rstrip("\r") for line in text.split("\n") if line]


def in_form(form: str) -> bytes:
    """The secondary's kernel log as that program would have written it; the digest's line at the
    second of the capture's frame 48, which is 7.384751 s after the boot."""
    boot_ns = FRAMES[47][0] - 7_384_751_000 + 30_000_000
    lines = []
    for line in kernel_lines():
        stamp = re.match(r"\[ *(\d+)\.(\d{6})\] ?(.*)", line)
        if stamp is None:
            continue
        at = datetime.fromtimestamp((boot_ns + int(stamp[1] + stamp[2]) * 1000) / 1e9, UTC)
        micro, text = f"{at:%f}", stamp[3]
        lines.append(
            {
                "kernel": line,
                "caller": line.replace("] ", "][    T1] ", 1),
                "dmesg -T": f"[{at:%a %b %e %H:%M:%S %Y}] {text}",
                "journal": f"{at:%b %d %H:%M:%S}.{micro} node-b kernel: {text}",
                "journal iso": f"{at:%Y-%m-%dT%H:%M:%S}.{micro}+00:00 node-b kernel: {text}",
                "syslog": f"{at:%b %e %H:%M:%S} node-b kernel: {line}",
                "conserver": f"[{at:%a %b %e %H:%M:%S %Y}]{line}",
                "time of day": f"{at:%H:%M:%S}.{micro} {line}",
                "no times": text,
            }[form]
        )
    return "\r\n".join(lines).encode() + b"\r\n"


FORMS_OF_LOGS = [  # each as its program writes it
    "kernel", "caller", "dmesg -T", "journal", "journal iso", "syslog", "conserver", "time of day", "no times",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS_OF_LOGS)
def test_each_form_of_a_log_is_understood_and_put_in_its_time(form: str, tmp_path: Path) -> None:
    log = written(tmp_path, "b.log", in_form(form))
    found = imported(tmp_path / "out", FAILURE, secondary_console=log)
    console = [one for one in found.hits if one.source == "console"]
    assert [one.rule for one in console][:2] == ["digest-failed", "receive-error"]
    assert {one.side for one in console} == {"secondary"}
    data = log.read_bytes()
    assert data[: console[0].place].endswith(b"Digest integrity check FAILED")
    link = next(one for one in found.hits if one.rule == "link-digest")
    if form == "no times":
        assert any("no times" in note for note in found.notes)
    else:
        assert abs(console[0].t_ns - link.t_ns) <= 1_100_000_000  # a second is syslog's unit
    if form in ("journal", "journal iso", "time of day"):
        assert abs(console[0].t_ns - link.t_ns - 30_000_000) < 2_000_000
    stored = StoredIncident.open(found.path)
    assert (found.path / "secondary" / "console.log").read_bytes() == data
    assert stored.outcome == "fail"


def test_a_log_that_is_not_about_the_pair_gives_no_hit(tmp_path: Path) -> None:
    healthy = b"\r\n".join(line.encode() for line in kernel_lines()[:20])
    assert b"drbd" in healthy or b"[" in healthy
    log = written(tmp_path, "a.log.gz", gzip.compress(healthy))
    found = imported(tmp_path / "out", NINE_CLEAN, primary_console=log)
    assert (found.hits, found.outcome) == ((), "pass")


def test_consoles_alone_are_judged_and_the_link_is_said_to_be_unseen(tmp_path: Path) -> None:
    log = written(tmp_path, "b.log", in_form("kernel"))
    found = imported(tmp_path / "out", secondary_console=log)
    assert (found.outcome, found.hits[0].rule) == ("fail", "digest-failed")
    assert any("no capture of the link" in one for one in found.blind)
    quiet = written(tmp_path, "quiet.log", b"[    1.000000] nothing of note\n")
    assert imported(tmp_path / "out", primary_console=quiet).outcome == "inconclusive"


# --- what cannot be seen ------------------------------------------------------------------------------------
def test_half_a_mirror_is_blind_and_blames_nobody_for_being_silent(tmp_path: Path) -> None:
    frames = [(one.t_ns, one.data) for one in read_frames(_plain(tmp_path, NINE_CLEAN))]
    half = [one for one in frames if one[1][26:30] == bytes([10, 99, 0, 1])]
    found = imported(tmp_path / "out", written(tmp_path, "half.pcap", pcap(half)))
    assert (found.outcome, found.hits) == ("inconclusive", ())
    assert found.writes > 0
    assert any("no frame to 10.99.0.1, which writes, was captured" in one for one in found.blind)


def _plain(folder: Path, path: Path) -> Path:
    return written(folder, "plain.pcap", gzip.decompress(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame, "the ports seen most are"),
        (lambda frame: b"", "there is no TCP at all"),
        (lambda frame: frame[:12] + b"\x88\x47" + frame[14:], "MPLS"),
    ],
    ids=["another port", "no Ethernet", "MPLS"],
)
def test_a_capture_that_shows_nothing_of_the_port_says_what_it_shows(
    change, told, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    path = written(tmp_path, "other.pcap", pcap([(t, change(frame)) for t, frame in FRAMES]))
    found = imported(tmp_path / "out", path, ports=(9999,))
    assert (found.outcome, found.hits, found.writes) == ("inconclusive", (), 0)
    assert any(told in one for one in found.blind), found.blind


def test_frames_that_were_cut_short_are_told(tmp_path: Path) -> None:
    data = pcap([(t_ns, frame[:96]) for t_ns, frame in FRAMES])
    longer = bytearray(data)
    struct.pack_into("<I", longer, 24 + 12, 1500)
    found = imported(tmp_path / "out", written(tmp_path, "cut.pcap", bytes(longer)))
    assert any("1 of 162 frames were cut short" in one or "cut short" in one for one in found.blind)


def test_an_encrypted_or_other_protocol_on_the_port_is_told(tmp_path: Path) -> None:
    found = imported(tmp_path / "out", NINE_CLEAN, protocol="nbd", ports=(7788,))
    assert found.outcome == "inconclusive" or found.hits
    nothing = imported(tmp_path / "out", NINE_CLEAN, protocol="none", ports=(7788,))
    assert nothing.outcome == "inconclusive"
    assert any("not understood" in one for one in nothing.blind)


# --- several taps -------------------------------------------------------------------------------------------
def test_two_taps_are_one_link_and_a_hit_names_the_frame_in_its_own_file(tmp_path: Path) -> None:
    far = [
        (t_ns + 73_000_000 + (200_000 if data[29] == 1 else -200_000), data)
        for t_ns, data in FRAMES
    ]
    a = written(tmp_path, "a.pcap", pcap([one for n, one in enumerate(FRAMES) if n != 5]))
    b = written(tmp_path, "b.pcapng.zst", zstandard.compress(pcapng(far, tsresol=9)))
    found = imported(tmp_path / "out", a, b)
    skew = found.taps[1].skew
    assert skew is not None
    assert skew.error_ns is not None
    assert abs(skew.offset_ns - 73_000_000) <= skew.error_ns < 1_000_000
    assert [(one.rule, one.sector) for one in found.hits] == [
        ("link-digest", 89600),
        ("link-unacked-close", 89600),
    ]
    assert found.hits[0].tap in ((str(a), 47), (str(b), 48))
    assert sum(1 for _ in read_frames(found.path / "link.pcapng")) == len(FRAMES)
    assert any("73.0" in note and "ahead of" in note for note in found.notes)


def test_taps_of_two_links_are_told(tmp_path: Path) -> None:
    found = imported(tmp_path / "out", FAILURE, HANDSHAKE)
    assert any("have no TCP segment in common" in one for one in found.blind)


# --- what is wrong is said ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "nothing to import"),
        ({"links": ("missing.pcap",)}, "no such file"),
        ({"links": (".",)}, "not a regular file"),
        ({"links": ("x",), "ports": (0,)}, "--port"),
        ({"links": ("x",), "primary_address": "10.0.0"}, "no IP address"),
        (
            {"links": ("x",), "primary_address": "::1", "secondary_address": "0:0::1"},
            "both addresses",
        ),
        ({"links": ("x",), "protocol": "drbdd"}, "did you mean drbd"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_wrong_argument_is_a_usage_error(
    given: dict[str, Any], told: str, tmp_path: Path
) -> None:
    given = given | {"links": tuple(tmp_path / one for one in given.get("links", ()))}
    with pytest.raises(UsageError, match=told):
        import_evidence(Given(**given), RULES, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_capture_that_is_none_leaves_no_incident(tmp_path: Path) -> None:
    wrong = written(tmp_path, "wrong.pcap", b"not a capture at all")
    with pytest.raises(UsageError, match=r"wrong\.pcap.*neither pcap nor pcapng"):
        imported(tmp_path / "out", FAILURE, wrong)
    assert list((tmp_path / "out").iterdir()) == []


def test_damage_in_the_middle_ends_the_evidence_there_and_is_told(tmp_path: Path) -> None:
    data = bytearray(pcap(FRAMES))
    struct.pack_into("<I", data, 24 + 8, 100)  # the second record begins in the middle of a frame
    whole = pcap(FRAMES)
    at = whole.index(FRAMES[100][1]) - 16
    broken = whole[: at + 8] + struct.pack("<I", 1 << 30) + whole[at + 12 :]
    found = imported(tmp_path / "out", written(tmp_path, "broken.pcap", broken))
    assert found.taps[0].frames == 100
    assert "damaged after frame 100" in found.taps[0].problem
    assert any("damaged after frame 100" in one for one in found.blind)
    assert found.hits[0].rule == "link-digest"


def test_a_truncated_archive_gives_what_can_be_unpacked(tmp_path: Path) -> None:
    for pack in (gzip.compress, zstandard.compress):
        packed = pack(pcap(FRAMES * 4))
        path = written(tmp_path, "cut", packed[: len(packed) * 15 // 16])
        found = imported(tmp_path / "out", path)
        assert 0 < found.taps[0].frames < 4 * len(FRAMES)


def test_an_archive_is_unpacked_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidencefile, "MAX_CAPTURE_BYTES", 50_000)
    monkeypatch.setattr(evidencefile, "MAX_LOG_BYTES", 1000)
    log = written(tmp_path, "b.log", gzip.compress(b"x" * 5_000_000))
    found = imported(
        tmp_path / "out",
        written(tmp_path, "a.gz", gzip.compress(pcap(FRAMES))),
        primary_console=log,
    )
    assert 0 < found.taps[0].frames < len(FRAMES)
    assert sum("longer than the limit" in one for one in found.blind) == 2
    assert (found.path / "primary" / "console.log").stat().st_size == 1000


def test_a_window_that_nobody_has_memory_for_is_refused(tmp_path: Path) -> None:
    header = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xF0]) + b"\x01\x00\x00"
    with pytest.raises(UsageError, match="cannot be unpacked"):
        imported(tmp_path / "out", written(tmp_path, "a.zst", header))


def survives(out: Path, folder: Path, capture: bytes, log: bytes) -> None:
    link, console = written(folder, "x.pcap", capture), written(folder, "x.log", log)
    try:
        found = imported(out, link, secondary_console=console)
    except UsageError:
        return
    assert found.outcome in ("pass", "fail", "inconclusive")
    assert StoredIncident.open(found.path).altered() == []
    shutil.rmtree(found.path)


SLOW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SLOW
@given(data=st.binary(max_size=400), log=st.binary(max_size=300))
def test_random_files_never_break_it(data: bytes, log: bytes, tmp_path: Path) -> None:
    survives(tmp_path / "out", tmp_path, data, log)
    survives(tmp_path / "out", tmp_path, pcap([])[:20] + data, log)
    survives(tmp_path / "out", tmp_path, pcapng([])[:28] + data, log)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


SHORT = [(t_ns, frame[:200]) for t_ns, frame in FRAMES[40:60]]


@SLOW
@given(
    form=st.sampled_from(["pcap", "pcap.gz", "pcapng", "pcapng.zst"]),
    end=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
)
def test_truncated_and_changed_files_never_break_it(form, end, changes, tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = bytearray((pcapng if "ng" in form else pcap)(SHORT))
    for where, value in changes:
        data[int(where * (len(data) - 1))] = value
    cut = bytes(data[: int(end * len(data))])
    packed = {"z": gzip.compress, "t": zstandard.compress}.get(form[-1], bytes)(cut)
    survives(tmp_path / "out", tmp_path, packed, bytes(data[:500]))


def test_a_run_lives_as_long_as_it_is_held(tmp_path: Path) -> None:
    runs: list[Run] = list(evidencefile.CaptureInput(FAILURE).runs())
    assert sum(run.frames for run in runs) == 163


def test_each_protocol_is_judged_by_its_own_usual_rules() -> None:
    """A ghost write is no event of the DRBD rules."""
    names = {
        protocol: {one.name for one in usual_rules(protocol)}
        for protocol in ("drbd", "nvme_tcp", "nbd")
    }
    assert "drbd_link.toml" in names["drbd"] and "nvme_link.toml" in names["nvme_tcp"]
    for protocol in (*names, "iscsi"):
        files = usual_rules(protocol)
        found = combine([(str(path), parse_rules(path.read_text(), str(path))) for path in files])
        assert ("ghost-write" in {one.event for one in found.link}) == (protocol == "nvme_tcp")
