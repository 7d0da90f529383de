"""A rule file's console rules alone."""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path


def only_consoles(files: Iterable[Path], path: Path) -> Path:
    """Write to ``path`` the console rules of these files. Without the link rules: the end of the
    link would race the line that says why it ended."""
    lines = []
    for file in files:
        for rule in tomllib.loads(file.read_text())["rule"]:
            if rule["source"] == "console":
                lines += [
                    "[[rule]]",
                    *(f"{key} = {json.dumps(value)}" for key, value in rule.items()),
                ]
    path.write_text("\n".join(lines))
    return path
