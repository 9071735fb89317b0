"""Records in SQLite: trials, choices, models, machine values."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from enginehouse.core.choice import Choice
from enginehouse.core.errors import MachineError
from enginehouse.core.model import Model
from enginehouse.core.trial import Outcome, Trial
from enginehouse.edges.leases import is_alive

T = TypeVar("T")

MIGRATIONS = (
    """
    CREATE TABLE trials (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, model_digest TEXT NOT NULL,
        outcome TEXT NOT NULL, owner_pid INTEGER NOT NULL, owner_started REAL NOT NULL,
        body BLOB NOT NULL);
    CREATE INDEX trials_by_run ON trials (run_id);
    CREATE TABLE choices (
        model_digest TEXT NOT NULL, workload TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (model_digest, workload));
    CREATE TABLE models (
        name TEXT PRIMARY KEY, path TEXT NOT NULL, size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE machine_values (
        fingerprint TEXT NOT NULL, key TEXT NOT NULL, value REAL NOT NULL,
        PRIMARY KEY (fingerprint, key));
    """,
)
"""Schema changes, in order; `PRAGMA user_version` counts those that were made."""


class Records:
    """The database of one state folder; several processes may use it at once (WAL)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the database and bring its schema up to date.

        Raises:
            MachineError: `records.unusable` (damaged, not writable, no space) or `records.newer`.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._run(self._connect)

    def _connect(self) -> None:
        database = sqlite3.connect(self._path, timeout=10.0, isolation_level=None)
        self._database = database
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        self._path.chmod(0o600)
        database.execute("BEGIN IMMEDIATE")
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            database.execute("ROLLBACK")
            raise MachineError(
                "records.newer",
                "the records were made by a newer Enginehouse; nothing was changed",
                evidence=(f"{self._path} has schema {version}, this one knows {len(MIGRATIONS)}",),
                remedies=("upgrade Enginehouse, or set ENGINEHOUSE_STATE_DIR to another folder",),
            )
        for migration in MIGRATIONS[version:]:
            for statement in migration.split(";"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        database.execute("COMMIT")

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _run(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except sqlite3.Error as problem:
            raise MachineError(
                "records.unusable",
                "the records cannot be used",
                evidence=(f"{self._path}: {problem}",),
                remedies=(
                    "check the disk's space and the file's permissions",
                    "move the file away to start new records",
                ),
            ) from problem

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[bytes, ...]]:
        if self._database is None:
            raise RuntimeError("the records are not open")
        database = self._database
        return self._run(lambda: database.execute(statement, values).fetchall())

    # trials

    def start_trial(self, trial: Trial) -> Trial:
        """Store a trial that begins and return it with its id."""
        me = psutil.Process()
        rows = self._rows(
            "INSERT INTO trials (run_id, model_digest, outcome, owner_pid, owner_started, body)"
            " VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            (
                trial.run_id, trial.model_digest, trial.outcome.value, os.getpid(),
                me.create_time(), msgspec.json.encode(trial),
            ),
        )  # fmt: skip
        return _with_id(trial, int(rows[0][0]))

    def update_trial(self, trial: Trial) -> None:
        """Store a trial's new state."""
        self._rows(
            "UPDATE trials SET outcome = ?, body = ? WHERE id = ?",
            (trial.outcome.value, msgspec.json.encode(trial), trial.id),
        )

    def trial(self, trial_id: int) -> Trial | None:
        """Return one trial."""
        rows = self._rows("SELECT id, body FROM trials WHERE id = ?", (trial_id,))
        return _read_trial(rows[0]) if rows else None

    def trials(self, limit: int = 50) -> tuple[Trial, ...]:
        """Return the newest trials first."""
        rows = self._rows("SELECT id, body FROM trials ORDER BY id DESC LIMIT ?", (limit,))
        return tuple(_read_trial(row) for row in rows)

    def mark_interrupted(self) -> tuple[int, ...]:
        """Turn trials that run for no living owner into interrupted ones; return their ids."""
        rows = self._rows(
            "SELECT id, body, owner_pid, owner_started FROM trials WHERE outcome = ?",
            (Outcome.RUNNING.value,),
        )
        dead = [row for row in rows if not is_alive(int(row[2]), float(row[3]))]
        for row in dead:
            self.update_trial(dataclasses.replace(_read_trial(row), outcome=Outcome.INTERRUPTED))
        return tuple(int(row[0]) for row in dead)

    # choices

    def store_choice(self, choice: Choice) -> None:
        """Store the choice for its model and workload in place of the last one."""
        self._rows(
            "INSERT OR REPLACE INTO choices (model_digest, workload, body) VALUES (?, ?, ?)",
            (choice.model_digest, choice.workload, msgspec.json.encode(choice)),
        )

    def choice(self, model_digest: str, workload: str) -> Choice | None:
        """Return the choice for a model and a workload."""
        rows = self._rows(
            "SELECT body FROM choices WHERE model_digest = ? AND workload = ?",
            (model_digest, workload),
        )
        return msgspec.json.decode(rows[0][0], type=Choice) if rows else None

    def choices(self) -> tuple[Choice, ...]:
        """Return every choice."""
        rows = self._rows("SELECT body FROM choices")
        return tuple(msgspec.json.decode(row[0], type=Choice) for row in rows)

    # models

    def remember(self, model: Model, mtime_ns: int) -> None:
        """Store a model's facts under its name, for the file as it is now."""
        self._rows(
            "INSERT OR REPLACE INTO models (name, path, size, mtime_ns, body)"
            " VALUES (?, ?, ?, ?, ?)",
            (model.name, model.path, model.file_bytes, mtime_ns, msgspec.json.encode(model)),
        )

    def by_file(self, path: str, size: int, mtime_ns: int) -> Model | None:
        """Return the facts of a file that has not changed since they were read."""
        rows = self._rows(
            "SELECT body FROM models WHERE path = ? AND size = ? AND mtime_ns = ?",
            (path, size, mtime_ns),
        )
        return msgspec.json.decode(rows[0][0], type=Model) if rows else None

    def by_name(self, name: str) -> Model | None:
        """Return a registered model."""
        rows = self._rows("SELECT body FROM models WHERE name = ?", (name,))
        return msgspec.json.decode(rows[0][0], type=Model) if rows else None

    def models(self) -> tuple[Model, ...]:
        """Return the registered models by name."""
        rows = self._rows("SELECT body FROM models ORDER BY name")
        return tuple(msgspec.json.decode(row[0], type=Model) for row in rows)

    def forget(self, name: str) -> bool:
        """Remove a model from the register; its file stays."""
        return bool(self._rows("DELETE FROM models WHERE name = ? RETURNING name", (name,)))

    # machine

    def machine_value(self, fingerprint: str, key: str) -> float | None:
        """Return a value that was measured on a machine."""
        rows = self._rows(
            "SELECT value FROM machine_values WHERE fingerprint = ? AND key = ?",
            (fingerprint, key),
        )
        return float(rows[0][0]) if rows else None

    def store_machine_value(self, fingerprint: str, key: str, value: float) -> None:
        """Store a value that was measured on a machine."""
        self._rows(
            "INSERT OR REPLACE INTO machine_values (fingerprint, key, value) VALUES (?, ?, ?)",
            (fingerprint, key, value),
        )


def _read_trial(row: tuple[bytes, ...]) -> Trial:
    return _with_id(msgspec.json.decode(row[1], type=Trial), int(row[0]))


def _with_id(trial: Trial, trial_id: int) -> Trial:
    return dataclasses.replace(trial, id=trial_id)
