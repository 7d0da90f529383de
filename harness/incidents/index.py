"""The index of an incidents folder: an SQLite file beside them, made from them, and thrown away
when in doubt.

The folders are what counts: a missing, stale, damaged or foreign index is made anew, and where none
can be written it is kept in memory. Text of consoles, triggers and notes is searched with FTS5.
"""

import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from freezeframe.harness.core.events import SIDES, Side
from freezeframe.harness.core.text import escape
from freezeframe.harness.core.verdict import signature
from freezeframe.harness.core.verdict.record import IncidentRecord
from freezeframe.harness.core.verdict.signature import Member, Recurrence
from freezeframe.harness.errors import RigError, UsageError
from freezeframe.harness.incidents import columns, store
from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.incidents.remarks import remarks_of
from freezeframe.harness.incidents.store import OPEN, RECORD, REMARKS, StoredIncident

FILE: Final = "index.sqlite"
SCHEMA_VERSION: Final = 2
"""Of the tables below; the stored columns of ``list`` count too (``_version``)."""
MAX_SEARCHED_BYTES: Final = 4 << 20
"""Of each console: its begin and its end, half each."""
MAX_HITS: Final = 200
MAX_TERMS: Final = 16
WAIT_S: Final = 10.0
"""For another command that is writing the index."""
_SCHEMA: Final = """
CREATE TABLE incident (
    name TEXT PRIMARY KEY, stamp TEXT NOT NULL, started_ns INTEGER NOT NULL, started TEXT NOT NULL,
    outcome TEXT NOT NULL, scenario TEXT NOT NULL, rule TEXT NOT NULL, side TEXT NOT NULL, stage TEXT NOT NULL,
    line TEXT NOT NULL, signature TEXT NOT NULL, firmware TEXT NOT NULL, contexts TEXT NOT NULL, listed TEXT NOT NULL
    ) WITHOUT ROWID;
CREATE INDEX by_signature ON incident (signature, started_ns);
CREATE VIRTUAL TABLE words USING fts5 (name UNINDEXED, console, trigger, notes);
"""
_COLUMNS: Final = (
    "name", "stamp", "started_ns", "started", "outcome", "scenario", "rule", "side", "stage", "line", "signature",
    "firmware", "contexts", "listed",
)  # fmt: skip
_PLAIN_COLUMNS: Final = [one for one in _COLUMNS if one not in ("stamp", "contexts", "listed")]
_MAX_INTEGER: Final = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What the index holds of one incident. Texts are escaped."""

    name: str
    started_ns: int
    started: str
    outcome: str
    scenario: str
    rule: str
    side: str
    stage: str
    line: str
    """The trigger's line, normalised."""
    signature: str
    firmware: str
    contexts: frozenset[str]
    listed: Mapping[str, columns.Value]
    """The stored columns of ``list``, by key."""

    @property
    def is_recording(self) -> bool:
        """It is being recorded, and nothing has triggered: it becomes an incident when something does."""
        return self.outcome == OPEN and not self.rule


class Index:
    """A context manager; up to date when entered."""

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir
        self._db = _opened(out_dir)

    def __enter__(self) -> Self:
        try:
            self.refresh()
        except sqlite3.DatabaseError:
            # Damaged, locked for too long, or no longer writable: memory serves as well.
            self._db.close()
            self._db = _fresh(":memory:")
            self.refresh()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._db.close()

    def refresh(self) -> None:
        """Read what is new or has changed, and forget what is gone."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            known = dict(self._db.execute("SELECT name, stamp || outcome FROM incident").fetchall())
            there = set()
            for name in _folder_names(self.out_dir):
                stamp = _stamp(f"{self.out_dir}/{name}")
                there.add(name)
                stamped = known.get(name)
                if stamped is not None and stamped.startswith(stamp) and not stamped.endswith(OPEN):
                    continue
                try:
                    one = StoredIncident.open(self.out_dir / name)
                except UsageError:
                    there.discard(name)
                    continue
                self._put(one, stamp)
            for name in set(known) - there:
                self._forget(name)

    def incidents(self) -> list[Indexed]:
        """All of them, oldest first."""
        return [
            _indexed(row)
            for row in self._db.execute("SELECT * FROM incident ORDER BY started_ns, name")
        ]

    def search(self, text: str) -> list[tuple[Indexed, str]]:
        """Incidents that hold every word of ``text`` or words that begin with it, the best first,
        with an excerpt."""
        terms = [
            f'"{term}"*' for term in text.replace('"', " ").replace("\0", " ").split()[:MAX_TERMS]
        ]
        if not terms:
            raise UsageError("search: no word to look for")
        query = (
            "SELECT incident.*, snippet(words, -1, '', '', ' ... ', 16) AS excerpt FROM words JOIN incident USING (name) "
            "WHERE words MATCH ? ORDER BY rank LIMIT ?"
        )
        try:
            rows = self._db.execute(query, (" ".join(terms), MAX_HITS)).fetchall()
        except sqlite3.OperationalError as error:  # words of nothing but punctuation
            raise UsageError(f"search: {error}") from error
        return [(_indexed(row), escape(" ".join(row["excerpt"].split()))) for row in rows]

    def recurrences(self, everything: Sequence[Indexed] | None = None) -> dict[str, Recurrence]:
        """Signature -> what is known of that kind. ``everything``: what ``incidents`` gave, if it was
        asked for already."""
        members: dict[str, list[Member]] = {}
        everything = self.incidents() if everything is None else everything
        everything = [one for one in everything if not one.is_recording]
        for one in everything:
            member = Member(
                name=one.name, started=one.started, firmware=one.firmware, contexts=one.contexts
            )
            members.setdefault(one.signature, []).append(member)
        total = Counter(name for one in everything for name in one.contexts)
        own = {
            kind: Counter(name for one in same for name in one.contexts)
            for kind, same in members.items()
        }
        return {
            kind: Recurrence(
                members=same,
                others=len(everything) - len(same),
                others_after={name: count - own[kind][name] for name, count in total.items()},
            )
            for kind, same in members.items()
        }

    def _put(self, one: StoredIncident, stamp: str) -> None:
        self._forget(one.id)
        values, words = _read(one, stamp)
        marks = ", ".join("?" * len(_COLUMNS))
        self._db.execute(
            f"INSERT INTO incident VALUES ({marks})", [values[name] for name in _COLUMNS]
        )
        self._db.execute("INSERT INTO words VALUES (?, ?, ?, ?)", (one.id, *words))

    def _forget(self, name: str) -> None:
        self._db.execute("DELETE FROM incident WHERE name = ?", (name,))
        self._db.execute("DELETE FROM words WHERE name = ?", (name,))


def _folder_names(out_dir: Path) -> list[str]:
    """Names of folders that may be incidents, by name. A link is none: what it points to is elsewhere."""
    if not out_dir.is_dir():
        return []
    with store.naming_errors(out_dir), os.scandir(out_dir) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
        )


def _stamp(path: str) -> str:
    """Changes with incident.json, which is replaced at each milestone, and with the remarks."""
    stamp = ""
    for name in (RECORD, REMARKS):
        try:
            found = os.lstat(f"{path}/{name}")
        except OSError:
            stamp += "none/"
        else:
            stamp += f"{found.st_mtime_ns}:{found.st_size}:{found.st_ino}/"
    return stamp


def _opened(out_dir: Path) -> sqlite3.Connection:
    path = out_dir / FILE
    if not out_dir.is_dir():
        return _fresh(":memory:")
    with contextlib.suppress(OSError, sqlite3.DatabaseError):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return _fresh(":memory:")  # not ours, and not ours to remove
        if path.exists():
            connection = _connect(str(path))
            if _is_ours(connection):
                return connection
            connection.close()
            path.unlink()
        return _fresh(str(path))
    with contextlib.suppress(OSError, sqlite3.DatabaseError):
        path.unlink()
        return _fresh(str(path))
    return _fresh(":memory:")


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=WAIT_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Made by this version, and without code of somebody else's in it."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    foreign = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')"
    ).fetchone()[0]
    return bool(version == _version() and foreign == 0)


def _version() -> int:
    return SCHEMA_VERSION << 16 | columns.stored_version(columns.COLUMNS)


def _fresh(name: str) -> sqlite3.Connection:
    connection = _connect(name)
    connection.executescript(
        f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_version()}; COMMIT;"
    )
    return connection


def _indexed(row: sqlite3.Row) -> Indexed:
    fields = {name: row[name] for name in _PLAIN_COLUMNS}
    return Indexed(
        **fields,
        contexts=frozenset(msgspec.json.decode(row["contexts"])),
        listed=msgspec.json.decode(row["listed"]),
    )


def _text(value: object, limit: int = 300) -> str:
    return "" if value is None else escape(str(value)[:limit])


def _read(
    one: StoredIncident, stamp: str
) -> tuple[Mapping[str, str | int | None], tuple[str, str, str]]:
    """The row of one incident, and its words: consoles, triggers, notes."""
    dossier, record, trigger = Dossier(one), one.record, one.record.trigger
    rule = _text(trigger.rule if trigger is not None else "", 80)
    stage = _text(signature.stage_of(record.verdict), 80)
    line = signature.normalised(escape(dossier.trigger_text))
    if trigger is None:
        line = signature.normalised(_text(record.reasons[0] if record.reasons else one.outcome))
    consoles = [_console(one, f"{side}/{store.CONSOLE}") for side in SIDES]
    values: dict[str, str | int | None] = {
        "name": one.id,
        "stamp": stamp,
        "started_ns": min(max(one.started_ns, 0), _MAX_INTEGER),
        "started": _text(record.created, 40),
        "outcome": one.outcome,
        "scenario": _text(record.scenario),
        "rule": rule,
        "side": _text(trigger.side if trigger is not None else "", 20),
        "stage": stage,
        "line": line,
        "signature": signature.signature(rule, stage, line),
        "firmware": _firmware(record),
        "contexts": json.dumps(signature.contexts(_before(dossier))),
        "listed": json.dumps(_listed(record)),
    }
    words = (
        "\n".join(
            escape(line.rstrip(b"\r")) for console in consoles for line in console.split(b"\n")
        ),
        "\n".join(
            _text(said) for one in dossier.triggers[:1000] for said in (one.rule, one.detail)
        ),
        "\n".join((*_notes(record), *_remarks(one))),
    )
    return values, words


def _listed(record: IncidentRecord) -> dict[str, columns.Value]:
    """Return the stored columns of ``list``, by key."""
    values = {one.key: one.read(record) for one in columns.COLUMNS if one.read is not None}
    return {
        key: _text(value, columns.MAX_VALUE_CHARS) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _console(one: StoredIncident, name: str) -> bytes:
    """The begin and the end of a console."""
    try:
        data = one.part(name, store.MAX_TIMELINE_BYTES)
    except RigError:
        return b""
    half = MAX_SEARCHED_BYTES // 2
    return data if len(data) <= MAX_SEARCHED_BYTES else data[:half] + b"\n" + data[-half:]


def _before(dossier: Dossier) -> bytes:
    """What both consoles printed before the trigger."""
    trigger = dossier.record.trigger
    if trigger is None or trigger.t_arrival_ns is None:
        return b""
    return b"\n".join(
        line.data
        for side in SIDES
        for line in dossier.consoles[side]
        if line.t_ns and line.t_ns < trigger.t_arrival_ns
    )


def _firmware(record: IncidentRecord) -> str:
    side: Side = "primary"
    if record.trigger is not None and record.trigger.side == "secondary":
        side = "secondary"
    who = record.controllers.get(side)
    return _text(who.firmware_version if who is not None else "", 40)


def _remarks(one: StoredIncident) -> list[str]:
    try:
        return [remark.text for remark in remarks_of(one)]
    except RigError:
        return []


def _notes(record: IncidentRecord) -> Iterator[str]:
    yield from map(_text, (record.scenario, record.bench, record.outcome))
    yield from map(_text, (*record.notes[:1000], *record.reasons[:1000]))
    yield from (_text(one.detail) for one in record.recovery[:1000])
    if record.verdict is not None:
        yield from map(_text, (record.verdict.text, record.verdict.reason))
