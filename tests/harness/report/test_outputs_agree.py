"""The comparison of the outputs with the verdict notices an output that is about something else."""

from functools import cache

import msgspec
from outputs import contradicted, exported
from verdictrun import Outcome, virtual_run
from virtualbench import evidence

from freezeframe.harness.bench.benchfile import load_bench
from freezeframe.harness.core.verdict.writepath import write_path


@cache
def incident() -> Outcome:
    return virtual_run("bit_flip_sender", 3, load_bench("sim").rules())


def test_outputs_of_the_same_evidence_agree() -> None:
    assert contradicted(exported(evidence(incident().parts)), incident().verdict) == ""


def test_an_output_about_another_write_is_noticed() -> None:
    verdict = incident().verdict
    dossier = exported(evidence(incident().parts))
    other = next(one for one in dossier.link.writes if one.packet_no != verdict.packet_no)
    dossier.failing = other
    assert contradicted(dossier, verdict).startswith("the capture says")
    wrong = msgspec.structs.replace(
        verdict, write_id=other.write_id, write_lba=other.sector, write_sectors=other.sectors
    )
    dossier = exported(evidence(incident().parts))
    dossier.path = write_path(wrong, dossier.record, "")
    assert contradicted(dossier, verdict).startswith("the page says")
    dossier = exported(evidence(incident().parts))
    dossier.diff = None
    assert contradicted(dossier, verdict).startswith("the page says")


def test_a_command_that_says_something_else_is_noticed() -> None:
    verdict = msgspec.structs.replace(incident().verdict, text="Something else.")
    said = contradicted(exported(evidence(incident().parts)), verdict)
    assert said.startswith("show does not say")
