"""What a killed Enginehouse left is found at the next start, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from enginehouse.edges.leases import MARKER, LeaseBook

OWNER = """
import os, subprocess, sys
from pathlib import Path
from enginehouse.edges.leases import MARKER, LeaseBook
book = LeaseBook(Path(sys.argv[1]))
Path(sys.argv[2]).touch()
lease = book.open("the engine", [Path(sys.argv[2])])
child = subprocess.Popen(["sleep", "600"], env={**os.environ, MARKER: lease.id},
                         start_new_session=True)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_owner_left_is_cleared(tmp_path: Path) -> None:
    """After SIGKILL of the owner its child, lease and files go; others' processes stay."""
    folder, file = tmp_path / "leases", tmp_path / "engine.sock"
    bystander = subprocess.Popen(["sleep", "600"], env={**os.environ, MARKER: "another"})
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    child = int(owner.stdout.readline())
    try:
        assert LeaseBook(folder).clear_leftovers() == ()
        assert psutil.pid_exists(child)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        (sentence,) = LeaseBook(folder).clear_leftovers()
        assert "ended 1 left process(es)" in sentence
        assert not file.exists()
        assert not list(folder.iterdir())
        assert not psutil.pid_exists(child) or (
            psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        )
        assert bystander.poll() is None
        assert LeaseBook(folder).clear_leftovers() == ()
    finally:
        owner.stdin.close()
        owner.stdout.close()
        bystander.kill()
        bystander.wait()
