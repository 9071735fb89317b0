"""What a group of processes takes, read so seldom that reading does not slow the engine.

PSS costs the kernel a walk over every page of a process: about 40 ms for an engine of 4 GB, during
which one of its spinning threads does not run. Read four times a second it took a fifth off the
decode rate that the same trial measured (16.9 to 13.8 tok/s, docs/lab-log.md). RSS is a file of one
line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

SHARE = 0.005
"""The most of one core that looking for the processes and reading their PSS may take."""


class GroupMemory:
    """The memory of the processes that `family` names."""

    def __init__(
        self,
        family: Callable[[], Sequence[psutil.Process]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._family = family
        self._clock = clock
        self._known: Sequence[psutil.Process] = ()
        self._look_at = float("-inf")
        self._shared_bytes: int | None = None

    def read(self) -> tuple[int, int | None]:
        """Return the resident and the proportional set size of all, in bytes.

        PSS is None where the system does not give it. Between two readings of it, it is what RSS is
        now, less what was shared at the last reading. While there is no process yet, as of a
        container that is being created, each call looks for one: there are no pages to walk over.
        """
        began = self._clock()
        if began < self._look_at:
            rss = self._rss()
            return rss, None if self._shared_bytes is None else max(0, rss - self._shared_bytes)
        self._known = self._family()
        rss, pss = self._rss(), _pss_of([process.pid for process in self._known])
        self._shared_bytes = None if pss is None else rss - pss
        now = self._clock()
        if self._known:
            self._look_at = now + (now - began) / SHARE
        return rss, pss

    def _rss(self) -> int:
        total = 0
        for process in self._known:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_info().rss
        return total


def _pss_of(pids: Sequence[int]) -> int | None:
    total = 0
    for pid in pids:
        with suppress(ProcessLookupError, FileNotFoundError):
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except PermissionError:
                return None
            found = [line for line in rollup.splitlines() if line.startswith("Pss:")]
            if not found:
                return None
            total += int(found[0].split()[1]) * 1024
    return total or None
