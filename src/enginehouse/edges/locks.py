"""A lock on a file that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginehouse.core.errors import MachineError


@contextmanager
def hold(path: Path, what: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock while the block runs; `what` names in words what is under way.

    One that is held is waited for, for at most `patience_s`.

    Raises:
        MachineError: `work.under_way`, when another Enginehouse holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _is_taken(file, time.monotonic() + patience_s):
            holder = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
            raise MachineError(
                "work.under_way",
                f"{what} is under way in another Enginehouse",
                evidence=(f"process {holder} holds {path}",),
                remedies=("wait for it, then run this again",),
            )
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def _is_taken(file: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        else:
            return True
