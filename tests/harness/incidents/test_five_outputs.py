"""Page, capture file, trace, ``show`` and ``replay`` of one incident name the write, sectors and bytes of its verdict.

The incidents are recorded ones: each scenario on a volume of 2 MiB that is overwritten again and again, and several
incidents in a row on one standing pair.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import golden_incidents
import pytest
from named_writes import Named, by_page, by_pcapng, by_trace, by_verdict
from typer.testing import CliRunner

from freezeframe.harness.cli.app import app

RUNNER = CliRunner()
SMALL = (
    "bit_flip_receiver", "bit_flip_sender", "bit_flip_store", "clean", "console_garble", "hung_warmstart", "late_ack",
    "lost_ack", "lost_write", "misdirected_write", "neg_ack", "repeated_ack", "stall", "wrong_barrier_count",
)  # fmt: skip
"""A scenario each, on 2 MiB."""
IN_A_ROW = (
    "standing_1_bit_flip_receiver", "standing_2_wrong_barrier_count", "standing_3_pull", "twice_late_ack",
    "twice_lost_write", "twice_lost_write_overwritten", "twice_wrong_barrier_count",
)  # fmt: skip
"""Incidents of one pair that stands through all of them, and volumes that were written over many times."""
OTHERS = ("bit_flip_receiver", "bit_flip_sender", "linux_flip", "autonomic_bit_flip_receiver",
          "killed_repeated_ack", "shared_line_neg_ack")  # fmt: skip
NAMES = (*(f"small_{kind}" for kind in SMALL), *IN_A_ROW, *OTHERS)
OUTPUTS = ("page", "pcapng", "perfetto", "show", "replay")


def ran(*arguments: object) -> Any:
    done = RUNNER.invoke(app, [str(one) for one in arguments], env={"COLUMNS": "400"})
    assert done.exit_code in (0, 1, 4), done.output
    return done


@cache
def judged(folder: Path) -> Mapping[str, Any]:
    told: Mapping[str, Any] = json.loads(ran("replay", folder, "--json").stdout)
    verdict: Mapping[str, Any] = told["verdict"]
    return verdict


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def unpacked(name: str) -> Path:
        return golden_incidents.unpack(name, tmp_path_factory.mktemp(name)).path

    return unpacked


def told_by(output: str, folder: Path, out: Path) -> Named:
    """What ``output`` says, where it says it; for the rest what the verdict says."""
    verdict = by_verdict(judged(folder))
    if output == "page":
        ran("export", folder, "--html", out)
        return by_page(out.read_text("utf-8"))
    if output == "perfetto":
        ran("export", folder, "--perfetto", out)
        found = by_trace(out.read_bytes())
        return Named(
            found.write_id, found.sectors, found.block_id, found.packet_no, verdict.differs
        )
    if output == "pcapng":
        ran("export", folder, "--pcapng", out)
        packet_no, differs = by_pcapng(out)
        return Named(verdict.write_id, verdict.sectors, verdict.block_id, packet_no, differs)
    if output == "replay":
        shown = ran("replay", folder).stdout
        assert judged(folder)["text"] in " ".join(shown.split())
        return verdict
    shown, told = ran("show", folder).stdout, json.loads(ran("show", folder, "--json").stdout)
    assert judged(folder)["text"] in " ".join(shown.split())
    return by_verdict(told["verdict"])


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", NAMES)
def test_it_names_the_write_of_the_verdict(
    name: str, output: str, folder_of: Any, tmp_path: Path
) -> None:
    folder = folder_of(name)
    wanted, found = by_verdict(judged(folder)), told_by(output, folder, tmp_path / "out")
    if wanted.packet_no is None and wanted.write_id is None:
        # Nothing followed the write: sectors that the verdict still names stand in its sentence.
        wanted = Named(differs=wanted.differs)
        found = Named(found.write_id, None, found.block_id, found.packet_no, found.differs)
    if output == "pcapng" and wanted.packet_no is None:
        # The capture holds no copy of that write: there is no frame to carry the difference.
        wanted = Named(wanted.write_id, wanted.sectors, wanted.block_id)
    assert found == wanted


def test_each_recorded_incident_is_among_them() -> None:
    there = {
        path.name.removesuffix(".tar.zst") for path in golden_incidents.FOLDER.glob("*.tar.zst")
    }
    assert there == set(NAMES)
