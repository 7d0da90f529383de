"""What an incident was recorded and judged by, kept in its folder: copies of the bench file and of the rule files, the
program's version and commit.

Secrets do not enter the copies: values of keys that are named like one, and passwords in addresses, are replaced. So
are, in ``[notify]``, whole addresses, ``Bearer`` and ``user:password@``, and what an argument of its command names like a
secret. A file whose secrets cannot be replaced for certain is not copied, and a note says so.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from freezeframe.harness.bench.benchfile import Bench
from freezeframe.harness.bench.options import SECRET_NAME
from freezeframe.harness.edge.versions import commit, versions
from freezeframe.harness.errors import RigError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import BENCH, RULES

MAX_FILE_BYTES: Final = 1 << 20
MAX_RULE_FILES: Final = 64
REMOVED: Final = "(redacted)"
_ADDRESS: Final = re.compile(r"(?i)[a-z][a-z0-9+.-]*://\S+")
_BEARER: Final = re.compile(r"(?i)\b(?:bearer|basic)\s+(\S+)")
_LOGIN: Final = re.compile(r"[^\s/@:]+:([^\s@]+)@")
_NAMED: Final = re.compile(r"([\w-]+)\s*[=:]\s*(?:(?:bearer|basic)\s+)?(\S+)", re.IGNORECASE)
_OPTION: Final = re.compile(r"--?[\w-]+")
_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s\"']*:([^/@\s\"']+)@")


def keep_basis(incident: Incident, bench: Bench) -> None:
    """Copy the files and note them in incident.json. RigError: the incident's folder cannot be written."""
    keep_rules(
        incident,
        bench.rule_paths(),
        bench_file=_keep(incident, bench.path, BENCH),
        reaction_budget_us=bench.policy.reaction_budget_us,
    )


def keep_rules(
    incident: Incident,
    rule_files: Sequence[Path],
    *,
    bench_file: str = "",
    reaction_budget_us: float | None = None,
) -> None:
    """The same of an incident without a bench."""
    basis: dict[str, object] = {"version": versions()["freezeframe"], "commit": commit()}
    basis |= {"bench_file": bench_file, "reaction_budget_us": reaction_budget_us}
    kept = [
        _keep(incident, path, f"{RULES}/{number:02d}-{_plain_name(path)}")
        for number, path in enumerate(rule_files[:MAX_RULE_FILES], 1)
    ]
    basis["rule_files"] = [name for name in kept if name]
    incident.update(judged_by=basis)


def _plain_name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", path.stem)[:64] + ".toml"


def _keep(incident: Incident, path: Path, name: str) -> str:
    """The name of the copy; "" when there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        text = without_secrets(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        incident.note(f"no copy of {path} was kept: {error}")
        return ""
    try:
        incident.store_copy(name, text.encode())
    except RigError as error:
        incident.note(f"no copy of {path} was kept: {error}")
        return ""
    return name


def without_secrets(text: str) -> str:
    """A TOML file with ``REMOVED`` in the place of each secret. ValueError: it is no TOML, or a secret would stay."""
    secrets = sorted(set(_all_secrets(text)), key=len, reverse=True)
    for secret in secrets:
        for spelled in (json.dumps(secret, ensure_ascii=False)[1:-1], secret):
            text = text.replace(spelled, REMOVED)
    text = _USER_INFO.sub(lambda found: found[0].replace(f":{found[1]}@", f":{REMOVED}@"), text)
    left = {one for one in _all_secrets(text) if one != REMOVED}
    if left or any(secret in text for secret in secrets if secret != REMOVED):
        raise ValueError("its secrets cannot be taken out for certain")
    return text


def _all_secrets(text: str) -> Iterator[str]:
    table = tomllib.loads(text)
    yield from _secrets(table)
    yield from _notify_secrets(table.get("notify"))


def _notify_secrets(value: object) -> Iterator[str]:
    """What may let somebody in where notices are sent to: whole addresses (the path of a web hook
    is its password), and what the arguments of a command hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "post" and isinstance(inner, str) and inner:
                yield inner
            else:
                yield from _notify_secrets(inner)
    elif isinstance(value, list):
        for before, inner in zip(["", *value], value, strict=False):
            if isinstance(before, str) and isinstance(inner, str) and _is_for_secret(before):
                yield inner
            yield from _notify_secrets(inner)
    elif isinstance(value, str):
        yield from (found[0] for found in _ADDRESS.finditer(value))
        for pattern in (_BEARER, _LOGIN):
            yield from (found[1] for found in pattern.finditer(value))
        yield from (found[2] for found in _NAMED.finditer(value) if SECRET_NAME.search(found[1]))


def _is_for_secret(option: str) -> bool:
    """Whether the argument after this one is a secret: --token, or curl's -u."""
    return _OPTION.fullmatch(option) is not None and (
        option in ("-u", "--user") or SECRET_NAME.search(option) is not None
    )


def _secrets(value: object, name: str = "") -> Iterator[str]:
    """Texts and numbers that stand under a secret's name, and passwords in addresses."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _secrets(inner, name if SECRET_NAME.search(name) else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _secrets(inner, name)
    elif SECRET_NAME.search(name) and not isinstance(value, bool):
        if text := str(value):
            yield text
    elif isinstance(value, str):
        yield from (found[1] for found in _USER_INFO.finditer(value))
