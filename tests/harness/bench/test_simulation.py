"""Starting the simulated bench. What it does when it runs: tests/system."""

from pathlib import Path

import pytest

from freezeframe.harness.bench.simulation import MAX_FOLDER_BYTES, Simulation
from freezeframe.harness.errors import UsageError


def test_a_folder_whose_path_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    """Seen: "the primary controller does not answer; is it powered, and is the control line right?"."""
    folder = tmp_path / ("x" * MAX_FOLDER_BYTES)
    folder.mkdir()
    with pytest.raises(UsageError, match=f"at most {MAX_FOLDER_BYTES}: name a shorter folder"):
        Simulation(
            folder, serial_numbers={"primary": "P", "secondary": "S"}, size_mib=1, mtu_bytes=1500, boot_ms=0
        )  # fmt: skip
    assert list(folder.iterdir()) == []
