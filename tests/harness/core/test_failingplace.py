"""Which block a failure is about, as links and consoles name it."""

import pytest

from freezeframe.harness.core.events import Trigger
from freezeframe.harness.core.failingplace import failing_place
from freezeframe.harness.core.link import byname


def trigger(source: str = "link", sector: int = -1, sectors: int = 0, rule: str = "r") -> Trigger:
    return Trigger(
        t_ns=1, rule=rule, source=source, side="primary", offset_bytes=1, t_arrival_ns=1, t_match_ns=1,
        sector=sector, sectors=sectors,
    )  # type: ignore[arg-type] # fmt: skip


@pytest.mark.parametrize(
    ("line", "sector", "sectors"),
    [
        (b"block drbd0: Digest integrity check FAILED: 17792s +65536", 17792, 128),
        (b"block drbd0: Out of sync: start=17872, size=8 (sectors)", 17872, 8),
        (b"some device: bad sector 1005", 1000, 8),
        (b"some device: bad sector 1005 +512", 1000, 8),
    ],
)
def test_a_console_names_it(line: bytes, sector: int, sectors: int) -> None:
    found = failing_place(
        [trigger("console")], lambda _: line, byname.console_texts(byname.USUAL), 128
    )
    assert found is not None
    assert (found.sector, found.sectors, found.named_by) == (sector, sectors, "r")
    assert (found.offset_bytes, found.length_bytes) == (sector * 512, sectors * 512)


def test_the_first_trigger_that_names_one_counts_and_its_length_is_bounded() -> None:
    texts = byname.console_texts(byname.USUAL)
    nameless = [trigger(), trigger("console")]
    assert failing_place(nameless, lambda _: b"kernel panic", texts, 128) is None
    hits = [*nameless, trigger(sector=9, sectors=500, rule="a"), trigger(sector=1, sectors=1)]
    found = failing_place(hits, lambda _: b"kernel panic", texts, 128)
    assert found is not None
    assert (found.sector, found.sectors, found.named_by) == (9, 128, "a")
    unmeasured = failing_place([trigger(sector=13)], lambda _: b"", texts, 128)
    assert unmeasured is not None and (unmeasured.sector, unmeasured.sectors) == (8, 8)
