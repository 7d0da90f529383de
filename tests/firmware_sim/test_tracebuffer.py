from freezeframe.firmware_sim.tracebuffer import TraceBuffer
from freezeframe.harness.wire.control import TraceLevel
from freezeframe.harness.wire.rootcause import RECORD, EventCode


def seqs(buffer: TraceBuffer) -> list[int]:
    return [fields[0] for fields in RECORD.iter_unpack(buffer.linear())]


def test_records_hold_code_level_time_and_arguments() -> None:
    buffer = TraceBuffer(records=4)
    buffer.uptime_ns = 77
    buffer.add(EventCode.HOST_WRITE, 1, 2, 3, 4)
    buffer.add(EventCode.REPL_NEG_ACK, 5)
    assert list(RECORD.iter_unpack(buffer.linear())) == [
        (0, 77, EventCode.HOST_WRITE, TraceLevel.INFO, 0, 1, 2, 3, 4),
        (1, 77, EventCode.REPL_NEG_ACK, TraceLevel.ERROR, 0, 5, 0, 0, 0),
    ]


def test_the_ring_wraps_and_is_told_oldest_first() -> None:
    buffer = TraceBuffer(records=4)
    for count in range(1, 12):
        buffer.add(EventCode.BOOT, count)
        assert seqs(buffer) == list(range(max(0, count - 4), count))
        assert buffer.first_seq == max(0, count - 4)
        assert buffer.next_seq == count


def test_the_trace_level_decides_what_is_kept() -> None:
    buffer = TraceBuffer(records=4)
    buffer.level = TraceLevel.ERROR
    buffer.add(EventCode.HOST_WRITE, 1)
    assert buffer.next_seq == 0
    buffer.level = TraceLevel.DEBUG
    buffer.add(EventCode.CONTROL_FRAME, 1)
    assert seqs(buffer) == [0]


def test_negative_and_huge_arguments_do_not_break_a_record() -> None:
    buffer = TraceBuffer(records=4)
    buffer.add(EventCode.BOOT, -1, 1 << 70)
    assert next(RECORD.iter_unpack(buffer.linear()))[5:7] == ((1 << 64) - 1, 0)
