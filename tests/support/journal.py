"""What the audit journal of the benches of a name has."""

import json
from pathlib import Path
from typing import Any

from freezeframe.harness.runs.audit import AuditJournal


def journal(name: str = "sim") -> list[dict[str, Any]]:
    text = AuditJournal(name, "", Path()).path.read_text()
    return [json.loads(line) for line in text.splitlines()]
