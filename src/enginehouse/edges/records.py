"""Records in SQLite: trials, choices, models, machine values."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from enginehouse.core.choice import Choice
from enginehouse.core.correction import Observation
from enginehouse.core.model import Model
from enginehouse.core.trial import Outcome, Trial
from enginehouse.edges.leases import is_alive, started_at
from enginehouse.edges.record_schema import explain_failures, open_database, unreadable_record

T = TypeVar("T")


class Records:
    """The database of one state folder; several processes may use it at once (WAL)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the database and bring its schema up to date.

        Raises:
            MachineError: as `record_schema.open_database`.
        """
        self._database = open_database(self._path)
        self._database.create_function("is_alive", 2, is_alive)

    @contextmanager
    def opened(self) -> Iterator[Records]:
        """Open the database for the time of a block, in a thread of its own for instance."""
        self.open()
        try:
            yield self
        finally:
            self.close()

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[bytes, ...]]:
        if self._database is None:
            raise RuntimeError("the records are not open")
        database = self._database
        return explain_failures(self._path, lambda: database.execute(statement, values).fetchall())

    def _decode(self, what: str, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as problem:
            raise unreadable_record(self._path, what, problem) from problem

    # trials

    def start_trial(self, trial: Trial) -> Trial:
        """Store a trial that begins and return it with its id."""
        rows = self._rows(
            "INSERT INTO trials (run_id, model_digest, outcome, owner_pid, owner_started, body)"
            " VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            (
                trial.run_id, trial.model_digest, trial.outcome.value, os.getpid(),
                started_at(os.getpid()), msgspec.json.encode(trial),
            ),
        )  # fmt: skip
        return dataclasses.replace(trial, id=int(rows[0][0]))

    def update_trial(self, trial: Trial) -> None:
        """Store a trial's new state."""
        self._rows(
            "UPDATE trials SET outcome = ?, body = ? WHERE id = ?",
            (trial.outcome.value, msgspec.json.encode(trial), trial.id),
        )

    def trial(self, trial_id: int) -> Trial | None:
        """Return one trial."""
        rows = self._rows("SELECT id, outcome, body FROM trials WHERE id = ?", (trial_id,))
        return self._read_trial(rows[0]) if rows else None

    def trials(self, limit: int = 50) -> tuple[Trial, ...]:
        """Return the newest trials first."""
        rows = self._rows("SELECT id, outcome, body FROM trials ORDER BY id DESC LIMIT ?", (limit,))
        return tuple(self._read_trial(row) for row in rows)

    def trials_of(self, model_digest: str, workload: str, limit: int = 400) -> tuple[Trial, ...]:
        """Return the newest trials of a model under a workload, oldest first."""
        rows = self._rows(
            "SELECT id, outcome, body FROM trials WHERE model_digest = ?"
            " AND json_extract(body, '$.workload') = ? ORDER BY id DESC LIMIT ?",
            (model_digest, workload, limit),
        )
        return tuple(self._read_trial(row) for row in reversed(rows))

    def mark_interrupted(self) -> tuple[int, ...]:
        """Turn trials that run for no living owner into interrupted ones; return their ids.

        One statement, so that a trial whose end is stored at this moment keeps its end.
        """
        rows = self._rows(
            "UPDATE trials SET outcome = ?"
            " WHERE outcome = ? AND NOT is_alive(owner_pid, owner_started) RETURNING id",
            (Outcome.INTERRUPTED.value, Outcome.RUNNING.value),
        )
        return tuple(sorted(int(row[0]) for row in rows))

    def _read_trial(self, row: tuple[bytes, ...]) -> Trial:
        """Read a row; its outcome is the column's, which `mark_interrupted` writes alone."""
        trial_id, outcome, body = int(row[0]), str(row[1]), row[2]
        trial = self._decode(f"trial {trial_id}", body, Trial)
        try:
            return dataclasses.replace(trial, id=trial_id, outcome=Outcome(outcome))
        except ValueError as problem:
            raise unreadable_record(self._path, f"trial {trial_id}", problem) from problem

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
        return self._decode("a choice", rows[0][0], Choice) if rows else None

    def choices(self) -> tuple[Choice, ...]:
        """Return every choice."""
        rows = self._rows("SELECT body FROM choices")
        return tuple(self._decode("a choice", row[0], Choice) for row in rows)

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
        return self._decode("a model", rows[0][0], Model) if rows else None

    def by_name(self, name: str) -> Model | None:
        """Return a registered model."""
        rows = self._rows("SELECT body FROM models WHERE name = ?", (name,))
        return self._decode("a model", rows[0][0], Model) if rows else None

    def models(self) -> tuple[Model, ...]:
        """Return the registered models by name."""
        rows = self._rows("SELECT body FROM models ORDER BY name")
        return tuple(self._decode("a model", row[0], Model) for row in rows)

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

    # predictions

    def store_prediction(self, observation: Observation) -> None:
        """Store what was predicted and what was observed of a trial's memory."""
        self._rows(
            "INSERT OR REPLACE INTO predictions"
            " (trial_id, fingerprint, build_digest, architecture, predicted, observed)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                observation.trial_id, observation.fingerprint, observation.build_digest,
                observation.architecture, observation.predicted_bytes, observation.observed_bytes,
            ),
        )  # fmt: skip

    def predictions(
        self, fingerprint: str, build_digest: str, architecture: str
    ) -> tuple[Observation, ...]:
        """Return what was observed of an architecture with a build on a machine, oldest first."""
        rows = self._rows(
            "SELECT predicted, observed, trial_id FROM predictions"
            " WHERE fingerprint = ? AND build_digest = ? AND architecture = ? ORDER BY trial_id",
            (fingerprint, build_digest, architecture),
        )
        return tuple(
            Observation(
                fingerprint, build_digest, architecture, float(row[0]), float(row[1]), int(row[2])
            )
            for row in rows
        )
