"""The host's writes of a run, by whichever workload the bench names, and the judgement of what they
left behind."""

from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import KIB, MIB
from freezeframe.harness.bench.checks import unwritable
from freezeframe.harness.bench.opened import OpenBench
from freezeframe.harness.bench.registry import load
from freezeframe.harness.core.blocks.blockstamp import Journal
from freezeframe.harness.core.blocks.compare import Comparison, compare
from freezeframe.harness.edge.processes import Child
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import JOURNAL, RESULTS
from freezeframe.harness.roles import HostPort, HostWorkload

STOP_LIMIT_S: Final = 3.0
"""A run that is stopped waits so long for writes that are still on their way."""


class Workload:
    """The workload's process, and the journal that it keeps, if it does."""

    def __init__(self, opened: OpenBench, incident: Incident, *, seed: int) -> None:
        self.journal_path = incident.path / JOURNAL
        table, policy = opened.bench.workload, opened.bench.policy
        if why_not := unwritable(opened.bench):
            raise UsageError(why_not)
        driver = load(table.driver, HostWorkload)
        self._module: str = driver.workload_module()  # type: ignore[attr-defined]
        self.keeps_journal: bool = driver.keeps_journal()  # type: ignore[attr-defined]
        incident.record["workload"] = {"driver": table.driver, "keeps_journal": self.keeps_journal}
        self._config = {
            "uri": opened.bench.primary.host,
            "bytes_total": table.bytes_mib * MIB,
            "write_bytes": table.write_kib * KIB,
            "queue_depth": table.queue_depth,
            "seed": seed,
            "journal_path": str(self.journal_path),
            "results_path": "" if self.keeps_journal else str(incident.path / RESULTS),
            "stop_limit_s": STOP_LIMIT_S,
            # Held, not failed: while a controller restarts and the pair becomes whole, its host
            # waits.
            "reconnect_limit_s": max(30.0, policy.boot_timeout_s + policy.rejoin_timeout_s),
        }
        self.stamps_seed = seed if self.keeps_journal else None
        """Seed of the stamps that its writes carry; None: they carry none."""
        self._child: Child | None = None

    def start(self, run_dir: Path) -> Child:
        self._child = Child(
            "workload", self._module, self._config, stderr_path=run_dir / "workload.stderr"
        )
        return self._child

    @property
    def is_started(self) -> bool:
        return self._child is not None

    @property
    def died(self) -> bool:
        return self._child is not None and self._child.ended

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill_if_running()

    def death(self) -> RigError:
        assert self._child is not None
        return self._child.death()


def compare_volumes(opened: OpenBench, journal_path: Path) -> Comparison:
    """Read both volumes whole and hold them against each other and against the host's journal."""
    journal = Journal.read(journal_path.read_bytes()) if journal_path.exists() else None
    ports: list[HostPort] = []
    try:
        ports += [opened.host("primary"), opened.host("secondary")]
        primary, secondary = ports
        if primary.size_bytes != secondary.size_bytes:
            raise RigError(
                f"the volumes differ in size: {primary.size_bytes} and {secondary.size_bytes} bytes"
            )
        # The host reads through the primary's port, so its view is the primary's.
        return compare(journal, None, primary.read, secondary.read, primary.size_bytes)
    finally:
        for port in ports:
            port.close()


def in_words(comparison: Comparison) -> str:
    """The first difference, for a person; "" when there is none."""
    first = comparison.first_difference
    if first is None:
        return ""
    return (
        f"{comparison.sectors_different} sectors differ; first: {first.side} at byte {first.offset_bytes} "
        f"({first.kind}), byte {first.first_byte} by bits {first.bit_mask:#04x}"
    )
