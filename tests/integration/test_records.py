"""Records survive crashes, neighbours and newer schemas."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginehouse.core.candidate import Candidate
from enginehouse.core.choice import Choice, stale_reasons
from enginehouse.core.errors import MachineError
from enginehouse.core.trial import Outcome
from enginehouse.edges.record_schema import MIGRATIONS
from enginehouse.edges.records import Records
from tests.integration.houses import as_plain_user
from tests.unit.values import BINARY, MACHINE, MODEL, WHEEL, measurement, trial

ROOT = Path(__file__).parents[2]
CANDIDATE = Candidate("llama.cpp", WHEEL.digest, (("slots", 2),))
CHOICE = Choice(
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
    command = [sys.executable, "-c", WRITER, str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


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
    forget_owner(tmp_path / "records.sqlite")
    assert records.mark_interrupted() == (mine.id,)
    stored = records.trial(mine.id)
    assert stored is not None
    assert stored.outcome is Outcome.INTERRUPTED
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
    records = Records(tmp_path / "records.sqlite")
    records.open()
    records.store_choice(CHOICE)
    assert records.choice(MODEL.digest, "chat") == CHOICE
    assert records.choice(MODEL.digest, "crowd") is None
    records.close()
    assert stale_reasons(CHOICE, MACHINE, MODEL, [WHEEL]) == ()
    changed = dataclasses.replace(MACHINE, usable_cores=2)
    assert stale_reasons(CHOICE, changed, MODEL, [BINARY]) == (
        "the machine's usable cores changed from 4 to 2",
        "llama.cpp 2026.10 (wheel) is no longer what is installed "
        "(found: llama.cpp b11434 (binary))",
    )


OPENER = """
import sys, time
from pathlib import Path
from enginehouse.edges.records import Records
from tests.integration.test_records import CANDIDATE, trial
sys.stdin.readline()
records = Records(Path(sys.argv[1]))
records.open()
records.start_trial(trial(CANDIDATE, None))
records.close()
print("opened")
"""


@pytest.mark.parametrize("attempt", range(3))
def test_a_fresh_database_is_opened_by_many_at_once(tmp_path: Path, attempt: int) -> None:
    """Twelve processes that open the records of a new house together all get them."""
    path = tmp_path / "new" / "records.sqlite"
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(12)
    ]
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("\n")
        opener.stdin.flush()
    for opener in openers:
        assert opener.communicate(timeout=60) == ("opened\n", "")
    records = Records(path)
    records.open()
    assert len(records.trials()) == 12
    records.close()
    assert path.stat().st_mode & 0o077 == 0


def test_an_ending_trial_is_not_overwritten(tmp_path: Path) -> None:
    """A trial whose end was stored keeps it, also when its owner was seen dead before."""
    path = tmp_path / "records.sqlite"
    records, other = Records(path), Records(path)
    records.open()
    other.open()
    ended = records.start_trial(trial(CANDIDATE, None, Outcome.RUNNING))
    forget_owner(path)
    records.update_trial(dataclasses.replace(ended, outcome=Outcome.MEASURED))
    assert other.mark_interrupted() == ()
    late = records.start_trial(trial(CANDIDATE, None, Outcome.RUNNING))
    forget_owner(path)
    assert other.mark_interrupted() == (late.id,)
    records.update_trial(dataclasses.replace(late, outcome=Outcome.EXITED))
    assert [t.outcome for t in other.trials()] == [Outcome.EXITED, Outcome.MEASURED]
    records.close()
    other.close()


def forget_owner(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE trials SET owner_started = 1.0")


@pytest.mark.parametrize("state", ["closed", "in use", "killed"])
def test_a_newer_schema_is_left_byte_for_byte(tmp_path: Path, state: str) -> None:
    """Records of a newer Enginehouse are refused, and neither they nor their log change."""
    path, made = tmp_path / "records.sqlite", tmp_path / "made.sqlite"
    newer = sqlite3.connect(made if state == "killed" else path, isolation_level=None)
    newer.execute("PRAGMA journal_mode = WAL")
    newer.execute("CREATE TABLE of_the_future (x)")
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    if state == "killed":  # the log is there, and nobody holds it
        for suffix in ("", "-wal"):
            shutil.copy(f"{made}{suffix}", f"{path}{suffix}")
    if state != "in use":
        newer.close()
    before = contents(path)
    records = Records(path)
    with pytest.raises(MachineError) as caught:
        records.open()
    records.close()
    assert caught.value.report.id == "records.newer"
    assert str(len(MIGRATIONS) + 1) in caught.value.report.evidence[0]
    assert contents(path) == before
    newer.close()


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of the database and of its log, without an empty log."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return {file.name: file.read_bytes() for file in files if file.exists() and file.stat().st_size}


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("UPDATE trials SET body = x'ff00'", lambda records: records.trial(1)),
        ("UPDATE trials SET body = '{}'", lambda records: records.trials()),
        ("UPDATE trials SET outcome = 'exploded'", lambda records: records.trials()),
        ("UPDATE choices SET body = '[]'", lambda records: records.choices()),
        ("UPDATE choices SET body = 7", lambda records: records.choice(MODEL.digest, "chat")),
        ("UPDATE models SET body = '{\"name\": 3}'", lambda records: records.models()),
        ("UPDATE models SET body = ''", lambda records: records.by_name(MODEL.name)),
    ],
)
def test_a_row_that_cannot_be_read_is_said_to_be(
    tmp_path: Path, change: str, read: Callable[[Records], object]
) -> None:
    """A row of another make is `records.unreadable` with the file and what to do; others open."""
    path = tmp_path / "records.sqlite"
    records = Records(path)
    records.open()
    records.start_trial(trial(CANDIDATE, None, Outcome.RUNNING))
    records.store_choice(CHOICE)
    records.remember(MODEL, 1)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    with pytest.raises(MachineError) as caught:
        read(records)
    assert caught.value.report.id == "records.unreadable"
    assert str(path) in caught.value.report.evidence[0]
    assert caught.value.report.remedies
    forget_owner(path)
    records.mark_interrupted()
    records.close()


FILLER = """
import sys
from pathlib import Path
from enginehouse.core.errors import MachineError
from enginehouse.edges.records import Records
from tests.integration.test_records import CANDIDATE, trial
records = Records(Path(sys.argv[1]))
records.open()
try:
    for count in range(100_000):
        records.start_trial(trial(CANDIDATE, None))
except MachineError as problem:
    print(problem.report.id)
records.close()
records.open()
print(count, len(records.trials(100_000)))
"""


def fill(path: Path, *prefix: str) -> tuple[str, int, int]:
    """Write until it fails; return the error's id, the rows reported, the rows found again."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", FILLER, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error_id, reported, found = done.stdout.split()
    return error_id, int(reported), int(found)


def test_a_full_disk_loses_at_most_the_row_in_flight(tmp_path: Path) -> None:
    """On a real small disk that fills up: told by id, and every reported row is there again.

    A tmpfs of 1 MiB in a mount namespace of the child's own, where that is permitted.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("unshare", "-rm", "sh", "-c")
    script = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    if subprocess.run([*mount, script, str(disk), "true"], check=False).returncode:
        pytest.skip("no mount namespace is permitted here")
    error_id, reported, found = fill(disk / "records.sqlite", *mount, script, str(disk))
    assert error_id == "records.no_space"
    assert reported > 10
    assert found in (reported, reported + 1)


def test_a_limit_on_file_size_is_told(tmp_path: Path) -> None:
    """Under `ulimit -f` (RLIMIT_FSIZE) writing fails in words, and nothing reported is lost."""
    limit = ("sh", "-c", 'ulimit -f 512; exec "$@"', "sh")
    error_id, reported, found = fill(tmp_path / "records.sqlite", *limit)
    assert error_id in ("records.io_error", "records.no_space")
    assert reported > 10
    assert found in (reported, reported + 1)


READER = """
import sys
from pathlib import Path
from enginehouse.core.errors import MachineError
from enginehouse.edges.records import Records
try:
    Records(Path(sys.argv[1])).open()
except MachineError as problem:
    print(problem.report.id)
"""


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_folder_is_told(tmp_path: Path, exists: bool) -> None:
    """A folder that may not be written gives `records.not_writable`, with records or without."""
    folder = tmp_path / "state"
    folder.mkdir()
    if exists:
        records = Records(folder / "records.sqlite")
        records.open()
        records.close()
    folder.chmod(0o500)
    done = subprocess.run(
        [*as_plain_user(), sys.executable, "-c", READER, str(folder / "records.sqlite")],
        capture_output=True,
        text=True,
        check=False,
    )
    folder.chmod(0o700)
    assert (done.stdout, done.stderr) == ("records.not_writable\n", "")
