"""What a killed Enginehouse left is found at the next start, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from enginehouse.core.errors import MachineError
from enginehouse.edges.leases import DRAFT, MARKER, LeaseBook, is_alive, started_at

OWNER = """
import os, subprocess, sys
from pathlib import Path
from enginehouse.core.errors import MachineError
from enginehouse.edges.leases import DRAFT, MARKER, LeaseBook, is_alive, started_at
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


def test_an_owner_that_is_a_zombie_is_dead(tmp_path: Path) -> None:
    """A killed owner that nobody has waited for, as in a container without init, is not alive."""
    with subprocess.Popen(["sleep", "600"]) as child:
        started = started_at(child.pid)
        assert is_alive(child.pid, started)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert not is_alive(child.pid, started)
    assert not is_alive(child.pid, started)
    assert not is_alive(child.pid, started_at(child.pid))


def test_a_pid_used_again_is_another_owner(tmp_path: Path) -> None:
    """The same pid with another start is somebody else; a clock that is set changes nothing."""
    mine = started_at(os.getpid())
    ticks = os.sysconf("SC_CLK_TCK")
    assert is_alive(os.getpid(), mine)
    assert not is_alive(os.getpid(), mine - 1)
    with open("/proc/uptime") as uptime:
        assert 0 < mine / ticks < float(uptime.read().split()[0])


def test_what_a_killed_writer_drafted_is_cleared(tmp_path: Path) -> None:
    """A lease whose writing broke off is removed, but not one that is being written now."""
    old, new = tmp_path / f"old{DRAFT}", tmp_path / f"new{DRAFT}"
    for draft in (old, new):
        draft.write_bytes(b"{")
    os.utime(old, (1.0, 1.0))
    assert LeaseBook(tmp_path).clear_leftovers() == ()
    assert list(tmp_path.iterdir()) == [new]


def test_a_leased_folder_goes_with_its_lease(tmp_path: Path) -> None:
    """What a child saved in its scratch folder is removed; a link's target is not ours."""
    scratch, others = tmp_path / "scratch", tmp_path / "others"
    for folder in (scratch, others):
        folder.mkdir()
        (folder / "saved").touch()
    (tmp_path / "link").symlink_to(others)
    book = LeaseBook(tmp_path / "leases")
    book.close(book.open("the engine", [scratch, tmp_path / "link", tmp_path / "none"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leases", "others"]
    assert (others / "saved").exists()
    assert not list((tmp_path / "leases").iterdir())


def test_a_lease_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Without a place for the lease nothing is started: the machine refused, in words."""
    (tmp_path / "leases").touch()
    with pytest.raises(MachineError) as caught:
        LeaseBook(tmp_path / "leases").open("the engine")
    assert caught.value.report.id == "disk.cannot_write"
