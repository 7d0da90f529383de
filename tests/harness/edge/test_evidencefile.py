"""Files that people bring: whatever is in them, they are read within limits or refused in words."""

import gzip
from pathlib import Path

import pytest
import zstandard
from capture_forms import pcap, pcapng
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezeframe.harness.edge.evidencefile import CaptureInput, read_log
from freezeframe.harness.edge.pcapng import read_frames
from freezeframe.harness.errors import UsageError

GOLDEN = Path(__file__).parents[2] / "golden" / "drbd"
FRAMES = [(one.t_ns, one.data[:120]) for one in read_frames(GOLDEN / "small-failure.pcap")][:30]
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def frames_in(path: Path, data: bytes) -> int | None:
    """None: refused."""
    path.write_bytes(data)
    capture = CaptureInput(path)
    try:
        return sum(run.frames for run in capture.runs())
    except UsageError as error:
        assert str(path) in str(error)
        return None


@FUZZ
@given(data=st.binary(max_size=400))
def test_random_bytes_are_no_capture(data: bytes, tmp_path: Path) -> None:
    assert frames_in(tmp_path / "x", data) in (None, 0)
    for head in (pcap([]), pcap([], order=">", linktype=276), pcapng([]), pcapng([], order=">")):
        frames_in(tmp_path / "x", head + data)
        frames_in(tmp_path / "x", head[:18] + data)
    frames_in(tmp_path / "x", b"\x1f\x8b" + data)
    frames_in(tmp_path / "x", b"\x28\xb5\x2f\xfd" + data)


@FUZZ
@given(
    form=st.sampled_from([pcap, pcapng]),
    linktype=st.sampled_from([1, 113, 276]),
    order=st.sampled_from("<>"),
    end=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
)
def test_a_changed_capture_is_read_in_part_or_refused(  # type: ignore[no-untyped-def]
    form, linktype, order, end, changes, tmp_path
) -> None:
    data = bytearray(form(FRAMES, order=order, linktype=linktype))
    for where, value in changes:
        data[int(where * (len(data) - 1))] = value
    cut = bytes(data[: int(end * len(data))])
    found = frames_in(tmp_path / "x", cut)
    assert found is None or 0 <= found <= len(cut) // 16
    assert frames_in(tmp_path / "x", gzip.compress(cut)) == found
    assert frames_in(tmp_path / "x", zstandard.compress(cut)) == found


@FUZZ
@given(data=st.binary(max_size=300), cut=st.integers(0, 60))
def test_a_log_is_any_bytes(data: bytes, cut: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for packed in (data, gzip.compress(data), zstandard.compress(data)):
        path.write_bytes(packed)
        if not data.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            assert read_log(path) == (data, "")
        path.write_bytes(packed[: max(0, len(packed) - cut)])
        try:
            read, _ = read_log(path)
        except UsageError:
            continue
        assert data.startswith(read) or len(packed) - cut < 4  # too short to be an archive


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_no_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file|not a regular file"):
        read_log(tmp_path / name)
