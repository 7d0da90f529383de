"""Linux's own TCP is the oracle: what an application read from a real socket under random scripts of
segments, the follower gives out, and no byte more. ``make tcp-diff`` runs 10,000 of them."""

import pytest
from tcp_follow import RULES
from tcpdiff import Report

from freezeframe.harness.edge.netns import missing_capabilities

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        bool(missing_capabilities()),
        reason=f"needs {', '.join(missing_capabilities())}: run as root",
    ),
]
SCRIPTS = 400


def test_the_follower_takes_what_linux_takes_and_each_rule_decides() -> None:
    report = Report().run(range(SCRIPTS))
    said = "\n".join(report.lines())
    assert not report.different, said
    assert not report.without_c, said
    assert all(report.decided[rule] for rule in RULES), said
    assert report.scripts + report.left_out == SCRIPTS
    assert report.left_out < SCRIPTS // 20
    assert report.reset > SCRIPTS // 10
    assert report.bytes_read > 100 * SCRIPTS
