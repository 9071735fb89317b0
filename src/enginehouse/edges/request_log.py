"""The request log: one row a request in SQLite, written beside the requests and never before them.

A request only puts its row into a bounded queue; one thread writes. What cannot be written (a full
disk, a locked file) is counted and said once; serving goes on, and so does the log when it can.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from enginehouse.core.errors import MachineError

log = logging.getLogger(__name__)
QUEUE_ROWS = 10_000
BATCH_ROWS = 200
TIDY_EVERY_S = 600.0
LOCK_WAIT_S = 2.0


@dataclass(frozen=True)
class RequestRow:
    """One request; times in seconds, `at` in Unix seconds; its text only when that is asked for."""

    id: str
    at: float
    key: str
    dialect: str
    operation: str
    model: str
    engine: str
    status: int
    outcome: str
    error: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    queue_s: float
    load_s: float
    first_byte_s: float
    total_s: float
    truncated: int
    fell_back: int
    prompt: str | None = None
    answer: str | None = None


NAMES = tuple(field.name for field in fields(RequestRow))
_KINDS = {"str": "TEXT", "float": "REAL", "int": "INTEGER", "str | None": "TEXT"}
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS requests ("
    + ", ".join(f"{field.name} {_KINDS[str(field.type)]}" for field in fields(RequestRow))
    + ")",
    "CREATE INDEX IF NOT EXISTS requests_at ON requests (at)",
)
INSERT = f"INSERT INTO requests ({', '.join(NAMES)}) VALUES ({', '.join('?' * len(NAMES))})"


def open_log(path: Path) -> sqlite3.Connection:
    """Open the log's database, made for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(0o600)
    database = sqlite3.connect(path, timeout=LOCK_WAIT_S)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    for statement in SCHEMA:
        database.execute(statement)
    return database


class RequestLog:
    """Writes rows in a thread of its own; `note` never waits and never raises."""

    def __init__(
        self, path: Path, keep_s: float, open_database: Callable[[Path], sqlite3.Connection]
        = open_log,
    ) -> None:  # fmt: skip
        self._path = path
        self._keep_s = keep_s
        self._open = open_database
        self._rows: queue.Queue[RequestRow | None] = queue.Queue(QUEUE_ROWS)
        self._thread = threading.Thread(target=self._write_all, name="request log", daemon=True)
        self._tidied_at = 0.0
        self._has_complained = False
        self.lost = 0
        self.written = 0

    def start(self) -> None:
        """Start the writing thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is queued, and end."""
        with suppress(queue.Full):
            self._rows.put(None, timeout=1.0)
        self._thread.join(timeout=5.0)

    def note(self, row: RequestRow) -> None:
        """Queue a row; it is lost where the queue is full."""
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self.lost += 1

    def _write_all(self) -> None:
        database: sqlite3.Connection | None = None
        is_over = False
        while not is_over:
            batch, is_over = self._take()
            try:
                if database is None:
                    database = self._open(self._path)
                self._write(database, batch)
            except (sqlite3.Error, OSError) as problem:
                self._lose(len(batch), problem)
                if database is not None:
                    with suppress(sqlite3.Error):
                        database.close()
                database = None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    def _take(self) -> tuple[list[RequestRow], bool]:
        """Return the rows that are queued, at least one, and whether it is over."""
        first = self._rows.get()
        batch = [] if first is None else [first]
        while first is not None and len(batch) < BATCH_ROWS:
            try:
                more = self._rows.get_nowait()
            except queue.Empty:
                return batch, False
            if more is None:
                return batch, True
            batch.append(more)
        return batch, first is None

    def _write(self, database: sqlite3.Connection, batch: list[RequestRow]) -> None:
        with database:
            database.executemany(INSERT, [astuple(row) for row in batch])
            now = time.time()
            if self._keep_s and now - self._tidied_at > TIDY_EVERY_S:
                database.execute("DELETE FROM requests WHERE at < ?", (now - self._keep_s,))
                self._tidied_at = now
        self.written += len(batch)
        if self._has_complained and batch:
            log.warning("the request log is written again; %d rows were lost", self.lost)
            self._has_complained = False

    def _lose(self, rows: int, problem: Exception) -> None:
        self.lost += rows
        if not self._has_complained:
            self._has_complained = True
            log.warning("the request log cannot be written, serving goes on: %s", problem)


def read_log(path: Path, limit: int, model: str = "", since: float = 0.0) -> tuple[RequestRow, ...]:
    """Return the newest rows first; none where there is no log.

    Raises:
        MachineError: `requests.unreadable`.
    """
    if not path.exists() or not path.stat().st_size:
        return ()
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                f"SELECT {', '.join(NAMES)} FROM requests WHERE at >= ? AND (? = '' OR model = ?) "
                "ORDER BY at DESC, rowid DESC LIMIT ?",
                (since, model, model, limit),
            ).fetchall()
    except sqlite3.Error as problem:
        raise MachineError(
            "requests.unreadable",
            "the request log cannot be read",
            evidence=(f"{path}: {problem}",),
            remedies=("move it away: the next start begins a new one",),
        ) from problem
    return tuple(RequestRow(*row) for row in rows)
