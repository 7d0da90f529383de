"""Console texts that name a place: by named groups, and by the bare word."""

import re
from pathlib import Path

import pytest

from freezeframe.harness.core.console.places import ConsoleText, place_in, places
from freezeframe.harness.core.link import byname

GOLDEN = Path(__file__).parents[3] / "golden" / "drbd"
DRBD = byname.console_texts("drbd")
VENDOR = (
    ConsoleText("digest", re.compile(rb"CRC LBA (?P<sector>\d+) len (?P<length>\d+)")),
    ConsoleText("out-of-sync", re.compile(rb"diff at (?P<sector>\d+), (?P<sectors>\d+) blocks")),
)


def test_a_real_nodes_digest_failure() -> None:
    console = (GOLDEN / "integrity-mtu1500-b.tail.raw.log").read_bytes()
    (found,) = places(console, DRBD, "digest")
    assert (found.sector, found.length_bytes, found.sectors) == (89600, 65536, None)
    assert console[found.offset_bytes :].startswith(b"Digest integrity check FAILED: 89600s")
    assert places(console, DRBD, "out-of-sync") == []


@pytest.mark.parametrize(
    ("line", "texts", "place"),
    [
        (b"Out of sync: start=128, size=8 (sectors)", DRBD, ("out-of-sync", 128, None, 8)),
        (b"failed to find request 0x3c00, sector 7552s", DRBD, ("answer", 7552, None, None)),
        (b"E17 CRC LBA 4096 len 512", VENDOR, ("digest", 4096, 512, None)),
        (b"diff at 64, 16 blocks", VENDOR, ("out-of-sync", 64, None, 16)),
        (b"end_request: I/O error, sector 77", VENDOR, ("", 77, None, None)),
    ],
)
def test_a_line_and_its_place(
    line: bytes, texts: tuple[ConsoleText, ...], place: tuple[str, int, int | None, int | None]
) -> None:
    found = place_in(line, texts)
    assert found is not None
    assert (found.about, found.sector, found.length_bytes, found.sectors) == place


@pytest.mark.parametrize(
    "line", [b"", b"all is well", b"Digest integrity check FAILED: s", b"sector x"]
)
def test_a_line_that_names_none(line: bytes) -> None:
    assert place_in(line, DRBD) is None


def test_a_link_that_is_not_understood_leaves_the_usual_texts() -> None:
    assert byname.console_texts("none") == DRBD
    assert byname.console_texts("nbd") == ()


def test_a_text_without_a_place_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="names no group sector"):
        ConsoleText("digest", re.compile(rb"FAILED (\d+)"))


def test_a_line_that_names_a_write_by_queue_command_and_both_digests() -> None:
    texts = byname.console_texts("nvme_tcp")
    line = (
        b"[   66.375753] nvmet_tcp: queue 1: cmd 14 pdu (6) data digest error: recv 0xe8c72c "
        b"expected 0x449641b0"
    )
    (found,) = places(line, texts, "digest")
    assert (found.sector, found.write_id_text) == (-1, "queue 1 cmd 14")
    assert found.digests == (0xE8C72C, 0x449641B0)
    refused = place_in(b"I/O error, dev nvme0n1, sector 5888 op 0x1:(WRITE) flags 0x4000800", texts)
    assert refused is not None and (refused.about, refused.sector) == ("refused", 5888)


def test_a_text_names_a_sector_or_a_write() -> None:
    with pytest.raises(ValueError, match="names no group sector, and no write"):
        ConsoleText("digest", re.compile(rb"CRC error"))
