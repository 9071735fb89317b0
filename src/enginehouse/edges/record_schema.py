"""The records' schema: opening, migrating, and saying in words why a database cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from enginehouse.core.errors import MachineError

T = TypeVar("T")

BUSY_S = 10.0
"""How long to wait for another process that writes."""
ROOM_BYTES = 256 << 10
"""What SQLite's log and shared index need at the least, and some more."""

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
    """
    CREATE TABLE predictions (
        trial_id INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, build_digest TEXT NOT NULL,
        architecture TEXT NOT NULL, predicted REAL NOT NULL, observed REAL NOT NULL);
    CREATE INDEX predictions_by_place ON predictions (fingerprint, build_digest, architecture);
    """,
)
"""Schema changes, in order; `PRAGMA user_version` counts those that were made."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database, made and migrated when need be, readable by its owner only.

    A database of a newer schema is left as it was found, byte for byte, its log (WAL) included.

    Raises:
        MachineError: as `explain_failures`, and `records.newer`.
    """
    return explain_failures(path, lambda: _open(path))


def explain_failures(path: Path, work: Callable[[], T]) -> T:
    """Do some work on the database and return its result.

    Raises:
        MachineError: `records.no_space`, `records.not_writable`, `records.io_error`,
            `records.busy` or `records.unusable`.
    """
    try:
        return work()
    except (sqlite3.Error, OSError) as problem:
        raise _explain(path, problem) from problem


def _explain(path: Path, problem: Exception) -> MachineError:
    # By text: sqlite3.Error has no error code before Python 3.11.
    text = str(problem)
    is_full = "disk is full" in text or "No space left" in text or "quota" in text
    if is_full or ("disk I/O error" in text and _has_no_room(path)):
        id, what = "records.no_space", "no space is left for the records"
        remedy = f"free some space in {path.parent}, or set ENGINEHOUSE_STATE_DIR elsewhere"
    elif isinstance(problem, OSError) or "readonly" in text or "unable to open" in text:
        id, what = "records.not_writable", "the records cannot be written"
        remedy = f"make {path.parent} writable, or set ENGINEHOUSE_STATE_DIR to another folder"
    elif "disk I/O error" in text:
        id, what = "records.io_error", "the disk refused to read or write the records"
        remedy = f"look at the space, quota and health of the disk of {path.parent}"
    elif "locked" in text:
        id, what = "records.busy", f"the records were held by another process for {BUSY_S:.0f} s"
        remedy = "end the other Enginehouse, or wait for it"
    else:
        id, what = "records.unusable", "the records are damaged or cannot be used"
        remedy = _away(path)
    return MachineError(id, what, evidence=(f"{path}: {text}",), remedies=(remedy,))


def _has_no_room(path: Path) -> bool:
    """Tell a full disk apart: where SQLite cannot grow its shared index it says `I/O error`."""
    return shutil.disk_usage(path.parent).free < ROOM_BYTES


def unreadable_record(path: Path, what: str, problem: Exception) -> MachineError:
    """Build the error for a row whose content cannot be read, such as `trial 7`."""
    return MachineError(
        "records.unreadable",
        f"the record of {what} cannot be read",
        evidence=(f"{path}: {problem}",),
        remedies=("use the Enginehouse that wrote it", _away(path)),
    )


def _away(path: Path) -> str:
    return f"move {path} away to start new records"


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Only a file that was not there: to close a descriptor of a database that this process has
    # open would drop SQLite's POSIX locks on it.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        _look_first(path)
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        _switch_to_wal(database)
        database.execute("PRAGMA synchronous = NORMAL")
        if _version(database) != len(MIGRATIONS):
            _migrate(path, database)
    except BaseException:
        database.close()
        raise
    return database


def _look_first(path: Path) -> None:
    """Refuse a newer schema through a read-only connection: a writing one folds the WAL in."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, timeout=BUSY_S, uri=True)) as database:
        _refuse_newer(path, _version(database))


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _refuse_newer(path: Path, version: int) -> None:
    if version > len(MIGRATIONS):
        raise MachineError(
            "records.newer",
            "the records were made by a newer Enginehouse; nothing was changed",
            evidence=(f"{path} has schema {version}, this one knows {len(MIGRATIONS)}",),
            remedies=("upgrade Enginehouse, or set ENGINEHOUSE_STATE_DIR to another folder",),
        )


def _switch_to_wal(database: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not honour the busy timeout here when several switch at once."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as problem:
            if "locked" not in str(problem) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _migrate(path: Path, database: sqlite3.Connection) -> None:
    """Make the missing schema changes in one transaction; the version is read again inside."""
    database.execute("BEGIN IMMEDIATE")
    version = _version(database)
    _refuse_newer(path, version)
    for migration in MIGRATIONS[version:]:
        for statement in migration.split(";"):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    database.execute("COMMIT")
