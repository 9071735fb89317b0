"""Watch the machine's memory in a thread of its own, and end an engine before the kernel would.

A thread, since the event loop may be busy with a load's answers at the moment that counts. What is
read is /proc/meminfo, /proc/vmstat and /proc/pressure/memory, and a cgroup's files where it limits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from enginehouse.core.guard import LOOK_SOON_S, Reading, judge, look_again_s
from enginehouse.edges.probes import AvailableMemory

KEPT_READINGS = 60
PAGE_BYTES = 4096
PRESSURE = Path("/proc/pressure/memory")
VMSTAT = Path("/proc/vmstat")


class Guard:
    """One engine's guard; `on_danger` is called in its thread, once, with the reason."""

    def __init__(self, reserve_bytes: int, on_danger: Callable[[str], None]) -> None:
        self._reserve_bytes = reserve_bytes
        self._on_danger = on_danger
        self._available = AvailableMemory()
        self._readings: deque[Reading] = deque(maxlen=KEPT_READINGS)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End watching; it returns when the thread has ended."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        wait_s = LOOK_SOON_S
        while not self._end.wait(wait_s):
            now = read_now(self._available)
            self._readings.append(now)
            reason = judge(tuple(self._readings), self._reserve_bytes)
            if reason:
                self._on_danger(reason)
                return
            wait_s = look_again_s(now, self._reserve_bytes)


def read_now(available: AvailableMemory) -> Reading:
    """Read the machine's memory; what the kernel does not say is None."""
    return Reading(time.monotonic(), available.read(), read_stalled_s(), read_swapped_bytes())


def read_stalled_s() -> float | None:
    """Return for how long all tasks have waited for memory since the start, None without PSI."""
    with suppress(OSError, ValueError, StopIteration):
        full = next(x for x in PRESSURE.read_text().splitlines() if x.startswith("full"))
        return int(full.rpartition("total=")[2]) / 1e6
    return None


def read_swapped_bytes() -> int | None:
    """Return what was swapped in and out since the start, None where it is not told."""
    with suppress(OSError, ValueError):
        pages = 0
        for line in VMSTAT.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("pswpin", "pswpout"):
                pages += int(value)
        return pages * PAGE_BYTES
    return None
