"""What made two sides equal again: as real nodes did it, and by the account's own rules."""

from pathlib import Path
from typing import Any

import pytest

from freezeframe.harness.core.link.ledgerevents import WriteRow
from freezeframe.harness.core.link.linkevidence import LinkEvidence
from freezeframe.harness.core.link.linkview import LinkEnds
from freezeframe.harness.core.link.messages import LinkSession, Resync, ResyncWord
from freezeframe.harness.core.link.ranges import Ranges
from freezeframe.harness.core.link.resync import (
    BLOCK_BYTES,
    EXTENT_BYTES,
    JUDGEMENT_NS,
    Rejoin,
    ResyncAccount,
    left_out,
)
from freezeframe.harness.incidents.importing import CaptureInput

GOLDEN = Path(__file__).parents[3] / "golden"
A, B = "10.99.0.1", "10.99.0.2"


def rejoins(path: Path) -> list[Rejoin]:
    evidence = LinkEvidence(LinkEnds(ports=frozenset({7788})))
    for run in CaptureInput(path).runs():
        evidence.feed(run, 0)
    evidence.close()
    assert not any(
        "calls both sides" in text for texts in evidence.marks.values() for text in texts
    )
    return evidence.rejoins


def test_drbd_9_after_a_wrong_digest_marks_copies_and_is_equal() -> None:
    first, again = rejoins(GOLDEN / "drbd9" / "drbd9-digest.pcap.gz")
    assert first.t_equal_ns and not first.copied and first.t_parted_ns is None
    assert again.owed.bytes == 65536, "the refused write was not answered"
    assert again.bits == {A: 32, B: 0}
    assert {one.bytes // BLOCK_BYTES for one in again.marked.values()} == {32}
    assert again.source == A and again.copied.bytes == 32 * BLOCK_BYTES == again.copied_bytes
    assert again.compressed_packets == 2 and again.plain_packets == 0
    assert again.t_equal_ns and again.omitted() == Ranges() and again.blocks_lost == 0
    assert again.omitted(also_owed=Ranges([(0, 512)])) == Ranges([(0, 512)])


def test_drbd_8_marks_what_the_log_said_and_a_capture_that_ends_before_the_copies_claims_nothing() -> (
    None
):
    (one,) = rejoins(GOLDEN / "drbd" / "small-failure.pcap")
    assert one.owed.bytes == 65536 and one.exchanged.bytes == 264 * BLOCK_BYTES
    assert one.owed - one.exchanged == Ranges(), "what was not answered is marked"
    assert not one.t_equal_ns and one.omitted() == Ranges()


@pytest.mark.parametrize("name", ["small-handshake.pcap", "../drbd9/drbd9-clean.pcap.gz"])
def test_a_first_pairing_is_equal_without_a_copy(name: str) -> None:
    (one,) = rejoins(GOLDEN / "drbd" / name)
    assert one.initial and one.t_equal_ns
    assert (one.omitted(), one.blocks_lost, one.unexplained(Ranges())) == (Ranges(), 0, Ranges())


# --- the rules ------------------------------------------------------------------------------------
def rejoin(**changed: object) -> Rejoin:
    one = Rejoin(2, (A, B), 0, 5, t_parted_ns=1, t_equal_ns=9, size_bytes=1 << 20)
    for name, value in changed.items():
        setattr(one, name, value)
    return one


MARKED = Ranges([(0, 8192), (40960, 45056)])


def test_what_is_due_and_not_copied_is_omitted() -> None:
    assert rejoin(marked={A: MARKED}).omitted() == MARKED
    assert rejoin(marked={A: MARKED}, copied=MARKED).omitted() == Ranges()
    assert rejoin(owed=Ranges([(512, 1024)])).omitted() == Ranges([(512, 1024)])
    assert rejoin(owed=Ranges([(512, 1024)]), rewritten=Ranges([(0, 4096)])).omitted() == Ranges()
    assert rejoin(refused=MARKED).omitted() == Ranges(), "only the writer has marked it"
    assert rejoin(refused=MARKED, marked={A: Ranges()}).omitted() == MARKED, (
        "the writer sent its bitmap"
    )
    assert rejoin(marked={A: Ranges([(0, 4096)])}, bits={A: 3, B: 7}).blocks_lost == 2


@pytest.mark.parametrize("changed", [{"t_equal_ns": 0}, {"has_hole": True}])
def test_nothing_is_omitted_before_somebody_says_equal_or_where_the_capture_has_a_hole(
    changed: dict[str, object],
) -> None:
    one = rejoin(marked={A: MARKED}, bits={A: 99}, **changed)
    assert (one.omitted(MARKED), one.blocks_lost) == (Ranges(), 0)


def test_a_bitmap_that_is_stale_on_one_side_and_stays_is_harmless() -> None:
    assert rejoin(bits={A: 5, B: 0}).omitted() == Ranges() and rejoin(bits={A: 5}).blocks_lost == 0


def test_what_is_copied_without_a_reason_is_unexplained() -> None:
    copied = Ranges([(0, 8192)])
    assert rejoin(copied=copied).unexplained(Ranges()) == copied
    for reason in (
        {"owed": Ranges([(100, 5000)])},
        {"refused": copied},
        {"unconfirmed": copied},
        {"noted": copied},
    ):
        assert rejoin(copied=copied, **reason).unexplained(Ranges()) == Ranges(), reason
    assert rejoin(copied=copied).unexplained(Ranges([(100, 5000)])) == Ranges()
    assert rejoin(copied=copied, t_parted_ns=None).unexplained(Ranges()) == Ranges()


def test_whole_extents_of_an_unclean_end_explain_a_copy_and_single_blocks_do_not() -> None:
    whole, size = Ranges([(EXTENT_BYTES, 2 * EXTENT_BYTES)]), 4 * EXTENT_BYTES
    crashed = rejoin(copied=whole, marked={A: whole}, size_bytes=size)
    assert crashed.unexplained(Ranges()) == Ranges()
    assert crashed.rewritten_blindly == whole, "what it held before is not known any more"
    block = Ranges([(EXTENT_BYTES, EXTENT_BYTES + 4096)])
    one = rejoin(copied=block, marked={A: block}, size_bytes=size)
    assert (one.unexplained(Ranges()), one.rewritten_blindly) == (block, Ranges())


def test_what_was_acknowledged_and_not_confirmed_by_a_barrier_is_copied_blindly() -> None:
    one = rejoin(copied=MARKED, unconfirmed=MARKED, owed=Ranges([(0, 8192)]))
    assert one.rewritten_blindly == Ranges([(40960, 45056)])


# --- from one session to the next -----------------------------------------------------------------
PORT, BLOCK = 7788, Ranges([(8192, 12288)])


def written(session: LinkSession) -> WriteRow:
    return WriteRow(
        session, A, "P_DATA", "write", 0, 8192, 4096, b"1", 1, 1, 1, 1, 0, expects_answer=True
    )  # fmt: skip


class Told:
    """An account, and what the link says to it."""

    def __init__(self) -> None:
        self.account = ResyncAccount()
        self.t_ns = 0

    def session(self, number: int) -> LinkSession:
        return LinkSession(number, (A, B), PORT, 0)

    def says(self, number: int, what: ResyncWord, at: int = 8192, **more: Any) -> None:
        self.t_ns += 1_000_000
        message = Resync(
            self.session(number), A, "P_TEST", self.t_ns, 1, 0, 0, False, what,
            offset_bytes=at, length_bytes=4096, **more,
        )  # fmt: skip
        self.account.on(message)

    def parted(self, number: int, *rows: WriteRow) -> None:
        self.t_ns += 1_000_000
        self.account.parted(self.session(number), self.t_ns, rows, ())

    @property
    def last(self) -> Rejoin:
        return self.account.rejoins[-1]


@pytest.mark.parametrize("is_copied", [True, False])
def test_what_an_interrupted_resync_has_copied_is_not_owed_again(is_copied: bool) -> None:
    told = Told()
    told.parted(1)
    told.says(2, "marked")
    if is_copied:
        told.says(2, "data")
    told.parted(2)  # before they were equal
    told.says(3, "bitmap", ranges=())
    told.says(3, "equal")
    assert told.last.omitted() == (Ranges() if is_copied else BLOCK)


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_marked_once_they_are_equal_is_no_omission_and_explains_the_next_copy(
    when: str,
) -> None:
    told = Told()
    told.parted(1)
    told.says(2, "bitmap", ranges=())
    words: tuple[ResyncWord, ...] = ("equal", "marked") if when == "after" else ("marked", "equal")
    for word in words:
        told.says(2, word)
    assert told.last.omitted() == (Ranges() if when == "after" else BLOCK)
    told.parted(2)
    told.says(3, "bitmap", ranges=((8192, 12288),))
    told.says(3, "data")
    told.says(3, "equal")
    assert told.last.unexplained(Ranges()) == (Ranges() if when == "after" else BLOCK)


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_session_that_ends_in_its_handshake_forgets_nothing(is_copied: bool) -> None:
    told = Told()
    told.parted(1, written(told.session(1)))
    parted_ns = told.t_ns
    told.parted(2)
    told.says(3, "bitmap", ranges=())
    if is_copied:
        told.says(3, "data")
    told.says(3, "equal")
    assert told.last.t_parted_ns == parted_ns
    assert told.last.omitted() == (Ranges() if is_copied else BLOCK)
    assert told.last.unexplained(Ranges()) == Ranges()


@pytest.mark.parametrize("what", ["refused", "becoming equal", "neither"])
def test_it_hears_of_acknowledged_writes_as_long_as_one_may_matter(what: str) -> None:
    """After the rejoin before has been judged, too."""
    told = Told()
    told.says(2, "equal")
    if what == "refused":
        told.account.refused(written(told.session(2)))
    if what == "becoming equal":
        told.says(3, "bitmap", ranges=())
    told.account.tick(told.t_ns + 10 * JUDGEMENT_NS)
    assert told.account.is_open is (what != "neither")


def test_in_words() -> None:
    assert left_out(Ranges([(4096, 8192)]), 2, 512) == (
        "4096 bytes that differ were not copied: sectors 8-15; 2 blocks that it had marked are not in the bitmap that "
        "it sent"
    )
