"""A program that does a piece of work for us: in a group of its own, its output in a log."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from enginehouse.edges.leases import MARKER, LeaseBook, find_marked, kill_all
from enginehouse.edges.processes import Ended, die_with_parent

POLL_S = 0.2
GRACE_S = 5.0


def run_logged(
    argv: Sequence[str],
    log_path: Path,
    leases: LeaseBook,
    *,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Run a program to its end, telling each line as it is written; it ends when we do.

    Ctrl-C (or whatever else ends the wait) ends its whole group first: SIGTERM, then SIGKILL.

    Raises:
        OSError: when it cannot be started.
    """
    lease = leases.open(f"the work of `{Path(argv[0]).name}`")
    try:
        with log_path.open("ab") as log, log_path.open("rb") as reader:
            reader.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [*die_with_parent(), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {}), MARKER: lease.id},
                start_new_session=True,
            )
            lines = _Lines(on_line)
            try:
                while child.poll() is None:
                    lines.feed(reader.read())
                    time.sleep(POLL_S)
                lines.feed(reader.read())
            finally:
                _end_group(child)
    finally:
        kill_all(find_marked((lease.id,)))
        leases.close(lease)
    return Ended.of(child.returncode)


class _Lines:
    """Cuts bytes into lines; an unfinished one waits for its end."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was written since."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._on_line(line.decode(errors="replace"))


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a child's group; nothing when it has ended by itself."""
    if child.poll() is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
