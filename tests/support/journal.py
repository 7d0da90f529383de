"""What the audit journal of the benches named ``sim`` has."""

import json
from pathlib import Path
from typing import Any

from freezeframe.harness.runs.audit import AuditJournal


def journal() -> list[dict[str, Any]]:
    text = AuditJournal("sim", "", Path()).path.read_text()
    return [json.loads(line) for line in text.splitlines()]
