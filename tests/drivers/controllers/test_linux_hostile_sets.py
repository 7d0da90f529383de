"""A Linux node's set made by an attacker: it is read in memory, within bounds, and nothing of it
becomes a file."""

import gzip
import io
import json
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_incidents import LINUX, unpack

from freezeframe.drivers.controllers import linux_records
from freezeframe.drivers.controllers.linux_drbd import LinuxDrbd
from freezeframe.harness.core.rootcause import event_lines
from freezeframe.harness.errors import WireError
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.inquest import plain, verdict_of
from freezeframe.harness.report.html import page

LOG = b"<3>[    6.692385] block drbd0: Digest integrity check FAILED: 1112s +4096\n"


def archive(fill: Callable[[tarfile.TarFile], None], **options: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as made:  # type: ignore[call-overload]
        fill(made)
    return gzip.compress(out.getvalue())


def member(name: str, content: bytes = b"", **changes: object) -> Callable[[tarfile.TarFile], None]:
    def add(made: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in changes.items():
            setattr(info, key, value)
        made.addfile(info, io.BytesIO(content) if info.isreg() else None)

    return add


def all_of(*fills: Callable[[tarfile.TarFile], None]) -> Callable[[tarfile.TarFile], None]:
    def add(made: tarfile.TarFile) -> None:
        for fill in fills:
            fill(made)

    return add


def test_paths_links_and_devices_are_only_names(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret words")
    stored = archive(
        all_of(
            member("record", LOG),
            member("/etc/cron.d/evil", b"absolute"),
            member("../../../tmp/evil", b"climbing"),
            member("link", type=tarfile.SYMTYPE, linkname=str(secret)),
            member("hard", type=tarfile.LNKTYPE, linkname=str(secret)),
            member("zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
            member("pipe", type=tarfile.FIFOTYPE),
            member("x" * 5000, b"long"),
        )
    )
    files = linux_records.unpack(stored)
    assert {name[:20] for name in files} == {
        "record",
        "/etc/cron.d/evil",
        "../../../tmp/evil",
        "x" * 20,
    }
    assert max(map(len, files)) <= 200
    assert "secret words" not in json.dumps(files)
    found = LinuxDrbd.decode_set(stored, "S")
    assert [one["name"] for one in found.events] == ["REPL_DIGEST_FAILED"]


def sparse(size_bytes: int) -> bytes:
    """A GNU sparse member that holds nothing and says that it is large."""
    info = tarfile.TarInfo("record")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % size_bytes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(1024))


HOSTILE: dict[str, bytes] = {
    "no log": archive(member("drbd", b"x")),
    "a sparse file of 8 GiB": sparse(8 << 30 & 0o77777777777),
    "more members than are read": archive(
        lambda made: [made.addfile(tarfile.TarInfo(str(n))) for n in range(70)] and None
    ),
    "directories without end": archive(
        lambda made: [member(f"d{n}", type=tarfile.DIRTYPE)(made) for n in range(1000)] and None
    ),
    "long names upon long names": gzip.compress(
        tarfile.TarInfo._create_gnu_long_header(
            "x" * 600, tarfile.GNUTYPE_LONGNAME, "utf-8", "strict"
        )
        * 3000  # type: ignore[attr-defined]
    ),
    "a bomb of gzip": gzip.compress(bytes(65 << 20)),
    "cut off": archive(member("record", LOG * 100))[:-20],
    "a size beyond the end": gzip.compress(
        tarfile.TarInfo("record").tobuf()[:124] + b"77777777777\0" + bytes(376)
    ),
    "noise": gzip.compress(bytes(range(256)) * 64),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_an_error_of_the_wire_and_costs_little(kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WireError) as refused:
        LinuxDrbd.decode_set(HOSTILE[kind], "S")
    assert len(str(refused.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10, "KiB"


def test_words_of_the_log_stay_words(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b]0;owned\x07\u202e"
    log = f"<3>[    6.692385] {evil}\n<1>[99999999999999999999.9] Digest integrity check FAILED: {'9' * 30}s +1\n".encode()
    log += (
        b"<3>[ 6.7] block drbd0: Digest integrity check FAILED: 999999999999999999s +999999999\n"
        + b"\xff" * 5000
    )
    stored = unpack(LINUX, tmp_path)
    for side in ("primary", "secondary"):
        (stored.path / side / "set.zst").write_bytes(
            archive(all_of(member("record", log), member(evil, b"x")))
        )
    told = json.loads((stored.path / "incident.json").read_text())
    for one in told["sets"].values():
        one["complete"] = False  # its sum is then not compared, and its content is read
    (stored.path / "incident.json").write_text(json.dumps(told))
    stored = type(stored).open(stored.path)
    verdict = verdict_of(stored)
    assert json.dumps(plain(verdict)).isascii()
    assert not verdict.conclusive
    shown = page(Dossier(stored))
    assert "<script>alert" not in shown
    assert not set(shown) & set("\x1b\x07\u202e")
    found = LinuxDrbd.decode_set(archive(member("record", log)), "S")
    assert len(event_lines(found.events)) == len(found.events)
