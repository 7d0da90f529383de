"""The root for arm64 where the archive has newer packages than the lists of the last time."""

from pathlib import Path

import pytest
from arm64 import OldListsError, with_new_lists

from freezeframe.harness.errors import RigError


@pytest.mark.parametrize("old_times", [0, 1, 2])
def test_old_lists_are_made_new_once(old_times: int) -> None:
    """Seen by reading: it failed, and the next attempt would have succeeded."""
    done: list[str] = []

    def work() -> Path:
        done.append("work")
        if done.count("work") <= old_times:
            raise OldListsError("404 Not Found")
        return Path("root")

    def update() -> None:
        done.append("update")

    if old_times == 2:
        with pytest.raises(RigError, match="404"):
            with_new_lists(work, update)
    else:
        assert with_new_lists(work, update) == Path("root")
    assert done == ["work", "update", "work"][: 1 + 2 * min(old_times, 1)]
