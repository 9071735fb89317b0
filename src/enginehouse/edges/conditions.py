"""Watch what else a machine does while a load is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from enginehouse.core.conditions_of_trial import Conditions, other_cores
from enginehouse.core.throttling import throttling
from enginehouse.edges.guard import read_swapped_bytes
from enginehouse.edges.throttling import read_signs

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
ZONES = "/sys/class/thermal/thermal_zone*/temp"


class ConditionsWatch:
    """One measurement's conditions, from its making until `read`; `engine` are its processes."""

    def __init__(self, engine: Sequence[psutil.Process]) -> None:
        self._began = time.monotonic()
        self._engine = tuple(engine)
        self._ours = self._own_seconds()
        self._busy = busy_seconds()
        self._each = seconds_by_process()
        self._swapped = read_swapped_bytes()
        self._signs = read_signs()

    def read(self) -> Conditions:
        """Return the conditions from the start until now."""
        seconds = time.monotonic() - self._began
        others = other_cores(busy_seconds() - self._busy, self._own_seconds() - self._ours, seconds)
        swapped = read_swapped_bytes()
        return Conditions(
            seconds=seconds,
            load_average=os.getloadavg()[0],
            other_cores=others,
            busiest=self._busiest(),
            governor=_read(GOVERNOR),
            clock_mhz=float(_read(CLOCK)) / 1000 if _read(CLOCK).isdecimal() else None,
            temperature_c=hottest(),
            swapped_bytes=(
                swapped - self._swapped if swapped is not None and self._swapped is not None
                else None
            ),
            throttling=throttling(read_signs(), self._signs),
        )  # fmt: skip

    def _own_seconds(self) -> float:
        total = sum(os.times()[:2])
        for process in self._engine:
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _busiest(self) -> str:
        ours = {os.getpid(), *(process.pid for process in self._engine)}
        used = [
            (seconds - self._each.get(pid, seconds), pid)
            for pid, seconds in seconds_by_process().items()
            if pid not in ours
        ]
        most, pid = max(used, default=(0.0, 0))
        if most <= 0.0:
            return ""
        with suppress(psutil.Error):
            return f"{psutil.Process(pid).name()} (pid {pid})"
        return ""


def busy_seconds() -> float:
    """Return the processor time that was not idle since the machine's start, all cores together."""
    times = psutil.cpu_times()
    return float(
        times.user
        + times.system
        + times.nice
        + getattr(times, "irq", 0.0)
        + getattr(times, "softirq", 0.0)
        + getattr(times, "steal", 0.0)
    )


def seconds_by_process() -> dict[int, float]:
    """Return each process's processor time."""
    found = {}
    for process in psutil.process_iter(("cpu_times",)):
        times = process.info["cpu_times"]
        if times is not None:
            found[process.pid] = float(times.user + times.system)
    return found


def hottest() -> float | None:
    """Return the highest temperature of the machine's thermal zones, None without any."""
    degrees = []
    for zone in Path("/").glob(ZONES.lstrip("/")):
        text = _read(zone)
        if text.lstrip("-").isdecimal():
            degrees.append(int(text) / 1000)
    return max(degrees, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
