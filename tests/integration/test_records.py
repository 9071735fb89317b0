"""Records survive crashes, neighbours and newer schemas."""

from __future__ import annotations

import dataclasses
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse.core.candidate import Candidate
from enginehouse.core.choice import Choice, stale_reasons
from enginehouse.core.errors import MachineError
from enginehouse.core.trial import Outcome
from enginehouse.edges.records import MIGRATIONS, Records
from tests.unit.values import BINARY, MACHINE, MODEL, WHEEL, measurement, trial

CANDIDATE = Candidate("llama.cpp", WHEEL.digest, (("slots", 2),))
WRITER = """
import sys
from pathlib import Path
from enginehouse.edges.records import Records
from tests.integration.test_records import CANDIDATE, trial
records = Records(Path(sys.argv[1]))
records.open()
for _ in range(int(sys.argv[2])):
    records.start_trial(trial(CANDIDATE, None))
    print("wrote", flush=True)
"""


def writer(path: Path, count: int) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """Two processes that write at the same time neither deadlock nor lose a row."""
    path = tmp_path / "records.sqlite"
    writers = [writer(path, 200), writer(path, 200)]
    assert [w.communicate()[0].count(b"wrote") for w in writers] == [200, 200]
    records = Records(path)
    records.open()
    assert len(records.trials(limit=1000)) == 400
    records.close()


def test_a_kill_in_the_middle_loses_at_most_the_row_in_flight(tmp_path: Path) -> None:
    """After SIGKILL all rows that were reported are there, and the trials are interrupted."""
    path = tmp_path / "records.sqlite"
    child = writer(path, 100_000)
    assert child.stdout is not None
    for _ in range(50):
        child.stdout.readline()
    child.kill()
    reported = 50 + child.communicate()[0].count(b"wrote")
    records = Records(path)
    records.open()
    marked = records.mark_interrupted() or tuple(t.id for t in records.trials(100_000))
    assert reported <= len(records.trials(limit=100_000)) <= reported + 1
    assert len(marked) >= reported
    records.close()


def test_a_running_trial_of_a_dead_owner_is_interrupted(tmp_path: Path) -> None:
    """A row that still says running is marked once its owner is gone, and only then."""
    records = Records(tmp_path / "records.sqlite")
    records.open()
    mine = records.start_trial(trial(CANDIDATE, None, Outcome.RUNNING))
    assert records.mark_interrupted() == ()
    with sqlite3.connect(tmp_path / "records.sqlite") as database:
        database.execute("UPDATE trials SET owner_started = 1.0")
    database.close()
    assert records.mark_interrupted() == (mine.id,)
    stored = records.trial(mine.id)
    assert stored is not None
    assert stored.outcome is Outcome.INTERRUPTED
    records.close()


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    """Records of a newer Enginehouse are refused and not changed."""
    path = tmp_path / "records.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    records = Records(path)
    with pytest.raises(MachineError) as caught:
        records.open()
    assert caught.value.report.id == "records.newer"
    records.close()


def test_damaged_records_are_said_to_be(tmp_path: Path) -> None:
    """A file that is no database gives the error with what to do, not a traceback."""
    path = tmp_path / "records.sqlite"
    path.write_bytes(b"this is not a database, however long it is" * 100)
    records = Records(path)
    with pytest.raises(MachineError) as caught:
        records.open()
    assert caught.value.report.id == "records.unusable"
    records.close()


def test_a_choice_says_what_changed(tmp_path: Path) -> None:
    """A stored choice comes back whole, and names every change that makes it doubtful."""
    choice = Choice(
        MODEL.digest,
        MODEL.name,
        "chat",
        MACHINE.fingerprint(),
        MACHINE.fingerprint_facts(),
        WHEEL,
        CANDIDATE,
        7,
        measurement(100.0),
        1.5,
    )
    records = Records(tmp_path / "records.sqlite")
    records.open()
    records.store_choice(choice)
    assert records.choice(MODEL.digest, "chat") == choice
    assert records.choice(MODEL.digest, "crowd") is None
    records.close()
    assert stale_reasons(choice, MACHINE, MODEL, [WHEEL]) == ()
    changed = dataclasses.replace(MACHINE, usable_cores=2)
    assert stale_reasons(choice, changed, MODEL, [BINARY]) == (
        "the machine's usable cores changed from 4 to 2",
        "llama.cpp 2026.10 (wheel) is no longer what is installed "
        "(found: llama.cpp b11434 (binary))",
    )
