"""Write on in an incident whose process was killed."""

import fcntl
import json
import os
from pathlib import Path

from freezeframe.harness.core.events import SIDES
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents.incident import Incident
from freezeframe.harness.incidents.store import (
    LOCK,
    MAX_RECORD_BYTES,
    OUTCOMES,
    RECORD,
    TIMELINE,
    naming_errors,
    open_inside,
)


def reopen(path: Path) -> Incident:
    """Open the incident at ``path`` to be written on. UsageError: there is none, it is closed, or
    it is not one of a bench; RigError: another process writes it, or it cannot be written."""
    try:
        with open_inside(path, RECORD) as file:
            record = json.loads(file.read(MAX_RECORD_BYTES))
        incident_id = bytes.fromhex(record["incident_id_hex"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: its {RECORD} cannot be read: {error}") from error
    if record.get("outcome") in OUTCOMES:
        raise UsageError(f"{path} is closed: its outcome is {record['outcome']}")
    with naming_errors(path):
        lock_fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock_fd)
            raise RigError(f"{path} is being written by a process that lives") from error
        for side in SIDES:
            (path / side).mkdir(exist_ok=True)
        _end_half_row(path / TIMELINE)
    incident = Incident(path, incident_id, record, lock_fd)
    incident.note("its process was killed; it is written on by another one")
    return incident


def _end_half_row(path: Path) -> None:
    """A row that the kill cut stays as it is; the next one begins on a line of its own."""
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
