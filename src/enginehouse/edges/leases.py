"""Leases: who started which child, so that what a killed Enginehouse left is found and cleared.

A lease is a small file that is written before its child is started and removed after the child's
end. The child and all that descend from it carry the lease's id in their environment, so that
nothing else is ever signalled, whatever process group it moved to.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import psutil

MARKER = "ENGINEHOUSE_LEASE"
"""Environment variable that marks every process we started."""


class Lease(msgspec.Struct, frozen=True):
    """One child's lease: its owner (pid and Unix start time), what it is, files to remove."""

    id: str
    owner_pid: int
    owner_started: float
    label: str
    files: tuple[str, ...] = ()


class LeaseBook:
    """The leases of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, label: str, files: Sequence[Path] = ()) -> Lease:
        """Write a new lease owned by this process and return it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lease = Lease(
            id=uuid.uuid4().hex,
            owner_pid=os.getpid(),
            owner_started=psutil.Process().create_time(),
            label=label,
            files=tuple(str(file) for file in files),
        )
        path = self._path(lease)
        draft = path.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(lease))
        draft.replace(path)
        return lease

    def close(self, lease: Lease) -> None:
        """Remove what is left of an ended child: its files, then its lease."""
        for file in lease.files:
            _remove(Path(file))
        self._path(lease).unlink(missing_ok=True)

    def clear_leftovers(self) -> tuple[str, ...]:
        """End and remove what dead owners left; return one sentence for each lease cleared."""
        dead = [
            lease
            for lease in self._read_all()
            if not is_alive(lease.owner_pid, lease.owner_started)
        ]
        if not dead:
            return ()
        killed = _kill_marked({lease.id for lease in dead})
        sentences = []
        for lease in dead:
            count = killed.get(lease.id, 0)
            ended = f"ended {count} left process(es)" if count else "no process was left"
            sentences.append(
                f"{lease.label} of a killed Enginehouse (pid {lease.owner_pid}): {ended}, "
                f"its files removed"
            )
            self.close(lease)
        return tuple(sentences)

    def _path(self, lease: Lease) -> Path:
        return self._folder / f"{lease.id}.json"

    def _read_all(self) -> list[Lease]:
        leases = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                leases.append(msgspec.json.decode(path.read_bytes(), type=Lease))
            except FileNotFoundError:
                continue
            except (msgspec.MsgspecError, OSError):
                path.unlink(missing_ok=True)
        return leases


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_alive(pid: int, started: float) -> bool:
    """Return whether the process that had this pid and this Unix start time still lives."""
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.Error:
        return False


def find_marked(lease_ids: Iterable[str]) -> dict[int, str]:
    """Return the processes that carry one of these leases: pid → lease id."""
    wanted = {f"{MARKER}={lease_id}".encode(): lease_id for lease_id in lease_ids}
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable in wanted:
                found[int(entry.name)] = wanted[variable]
    return found


def _kill_marked(lease_ids: set[str]) -> dict[str, int]:
    killed: dict[str, int] = {}
    for pid, lease_id in find_marked(lease_ids).items():
        if pid == os.getpid():
            continue
        try:
            process = psutil.Process(pid)
            process.kill()
            process.wait(timeout=5)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.TimeoutExpired):
            continue
        killed[lease_id] = killed.get(lease_id, 0) + 1
    return killed
