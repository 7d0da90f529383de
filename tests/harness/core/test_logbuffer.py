"""The running text log buffer: offsets, times, bounds, lines."""

from hypothesis import given
from hypothesis import strategies as st

from harness.core.logbuffer import MAX_LINE_BYTES, Line, LogBuffer


def test_lines_with_offsets_and_times() -> None:
    buffer = LogBuffer()
    assert buffer.append(10, b"one\r\ntw") == [Line(0, 10, "one")]
    assert buffer.unfinished() == Line(5, 10, "tw")
    assert buffer.append(20, b"o\nthree\n\n") == [Line(5, 10, "two"), Line(9, 20, "three"), Line(15, 20, "")]
    assert buffer.unfinished() is None
    assert buffer.append(30, b"\x1b[2J\xff\n") == [Line(16, 30, "\\x1b[2J\\xff")]


def test_time_and_slice() -> None:
    buffer = LogBuffer()
    buffer.append(10, b"abc")
    buffer.append(20, b"def")
    assert [buffer.time_of(at) for at in range(7)] == [10, 10, 10, 20, 20, 20, None]
    assert buffer.slice(1, 5) == b"bcde"
    assert buffer.slice(0, 100) == b"abcdef"
    assert buffer.slice(4, 4) == b""


def test_the_oldest_reads_go_first() -> None:
    buffer = LogBuffer(capacity_bytes=10)
    for number in range(5):
        buffer.append(number, b"%d%d%d%d" % ((number,) * 4))
    assert (buffer.start_offset, buffer.end_offset) == (12, 20)
    assert buffer.slice(0, 100) == b"33334444"
    assert buffer.time_of(11) is None
    assert buffer.time_of(12) == 3


def test_a_line_without_end_is_given_out_in_pieces() -> None:
    buffer = LogBuffer()
    lines = [line for at in range(10) for line in buffer.append(at, b"A" * 1000)]
    assert [(line.offset_bytes, len(line.text)) for line in lines] == [
        (0, MAX_LINE_BYTES),
        (4096, MAX_LINE_BYTES),
    ]
    assert buffer.unfinished() == Line(8192, 8, "A" * (10_000 - 8192))


@given(st.binary(max_size=300), st.data())
def test_lines_do_not_depend_on_the_reads(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    split, whole = LogBuffer(), LogBuffer()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    got = [line for piece in pieces for line in split.append(0, piece)]
    assert got == whole.append(0, stream)
    assert split.unfinished() == whole.unfinished()
    assert split.slice(0, 1000) == stream
