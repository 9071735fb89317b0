"""A lock on a file that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginehouse.core.errors import MachineError


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; `what` names in words what is under way.

    Raises:
        MachineError: `work.under_way`, when another Enginehouse holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
            raise MachineError(
                "work.under_way",
                f"{what} is under way in another Enginehouse",
                evidence=(f"process {holder} holds {path}",),
                remedies=("wait for it, then run this again",),
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)
