"""The objects of the look-only socket: what is written is read, and anything else is refused."""

import json

import pytest

from freezeframe.harness.core.livestatus import End, LiveStatus, News, RuleStatus, decode, encode
from freezeframe.harness.errors import RigError

STATUS = LiveStatus(
    utc="2026-01-02T03:04:05.678Z", bench="lab", command="watch", pid=7, who="eva", age_s=0.1,
    started_utc="2026-01-02T03:00:00.000Z", health="armed",
    rules=[RuleStatus(name="digest-failed", source="console", instructs=True, hits=2)],
    news=[News(n=3, utc="2026-01-02T03:04:05.000Z", kind="report", text="a\u2028b")],
)  # fmt: skip


def test_one_object_is_one_line_and_comes_back_as_it_was() -> None:
    for one in (STATUS, End(utc=STATUS.utc, why="it was stopped", incidents=2)):
        line = encode(one)
        assert line.count(b"\n") == 1 and line.endswith(b"\n")
        assert decode(line) == one
    told = json.loads(encode(STATUS))
    assert (told["event"], told["format"], told["rules"][0]["hits"]) == ("status", 1, 2)


def test_keys_of_a_later_format_are_passed_over() -> None:
    later = json.loads(encode(STATUS)) | {"later": {"x": 1}}
    assert decode(json.dumps(later).encode()) == STATUS


@pytest.mark.parametrize("line", [b"", b"hello", b"{}", b'{"event":"status"}', b"\xff", b"[1]"])
def test_what_is_no_status_is_refused(line: bytes) -> None:
    with pytest.raises(RigError, match="no watch of this version"):
        decode(line)
