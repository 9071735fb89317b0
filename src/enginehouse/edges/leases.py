"""Leases: who started which child, so that what a killed Enginehouse left is found and cleared.

A lease is a small file that is written before its child is started and removed after the child's
end. The child and all that descend from it carry the lease's id in their environment, so that
nothing else is ever signalled, whatever process group it moved to.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from enginehouse.core.container import remove_argv
from enginehouse.core.errors import MachineError

MARKER = "ENGINEHOUSE_LEASE"
"""Environment variable that marks every process we started."""
DRAFT = ".draft"
DRAFT_LIMIT_S = 60.0
CONTAINER_LIMIT_S = 30.0
GONE = -1.0


class Lease(msgspec.Struct, frozen=True):
    """One child's lease: its owner (pid and `started_at`), what it is, files to remove.

    `container` is the program and the name of the container that the child runs, empty for none:
    its processes are no descendants of the child.
    """

    id: str
    owner_pid: int
    owner_started: float
    label: str
    files: tuple[str, ...] = ()
    container: tuple[str, ...] = ()


class LeaseBook:
    """The leases of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(
        self, label: str, files: Sequence[Path] = (), container: tuple[str, ...] = ()
    ) -> Lease:
        """Write a new lease owned by this process and return it.

        Raises:
            MachineError: `disk.cannot_write`.
        """
        lease = Lease(
            id=uuid.uuid4().hex,
            owner_pid=os.getpid(),
            owner_started=started_at(os.getpid()),
            label=label,
            files=tuple(str(file) for file in files),
            container=container,
        )
        try:
            self._write(lease)
        except OSError as problem:
            raise MachineError(
                "disk.cannot_write",
                f"the lease of {label} cannot be written: {problem.strerror}",
                evidence=(str(problem),),
                remedies=("free some space, or set ENGINEHOUSE_STATE_DIR to a folder with room",),
            ) from problem
        return lease

    def _write(self, lease: Lease) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(lease)
        draft = path.with_suffix(DRAFT)
        try:
            draft.write_bytes(msgspec.json.encode(lease))
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def close(self, lease: Lease) -> None:
        """Remove what is left of an ended child: its files, then its lease."""
        for file in lease.files:
            _remove(Path(file))
        self._path(lease).unlink(missing_ok=True)

    def clear_leftovers(self) -> tuple[str, ...]:
        """End and remove what dead owners left; return one sentence for each lease cleared."""
        self._clear_drafts()
        dead = [
            lease
            for lease in self._read_all()
            if not is_alive(lease.owner_pid, lease.owner_started)
        ]
        if not dead:
            return ()
        for lease in dead:
            _remove_container(lease.container)
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
            except OSError:
                continue
            except msgspec.MsgspecError:
                path.unlink(missing_ok=True)
        return leases

    def _clear_drafts(self) -> None:
        """Remove what was left of leases whose writing was killed; no child had started yet."""
        for draft in self._folder.glob(f"*{DRAFT}"):
            with suppress(OSError):
                if time.time() - draft.stat().st_mtime > DRAFT_LIMIT_S:
                    draft.unlink()


def _remove_container(container: tuple[str, ...]) -> None:
    """End and remove a container; whether it was still there is not known."""
    if len(container) == 2:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                remove_argv(*container), stdin=subprocess.DEVNULL, capture_output=True,
                timeout=CONTAINER_LIMIT_S, check=False,
            )  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def started_at(pid: int) -> float:
    """Return when a process started, in clock ticks since boot; -1 when it is gone or a zombie.

    Not its Unix time: that is reckoned from the clock, and moves when the clock is set, as it is
    on boards without a battery once the network is there.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return GONE
    fields = status.rpartition(b")")[2].split()
    return GONE if fields[0] in b"ZX" else float(fields[19])


def is_alive(pid: int, started: float) -> bool:
    """Return whether the process that had this pid and this `started_at` still runs."""
    return started != GONE and started_at(pid) == started


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


def kill_all(pids: Iterable[int]) -> None:
    """Send SIGKILL to processes, as far as they are still there and ours."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


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
