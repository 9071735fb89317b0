"""Look whether the machine throttles, and wait until it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.throttling import CoolDown, Signs, Zone, throttling

SYSFS = Path("/sys")
LOOK_EVERY_S = 1.0
COUNTERS = ("core_throttle_count", "package_throttle_count")


@dataclass
class Cooler:
    """Waits before a trial while the machine throttles, `limit_s` at most; 0 waits never."""

    limit_s: float = 0.0
    sysfs: Path = SYSFS
    look_every_s: float = LOOK_EVERY_S
    last: Signs | None = None

    async def wait(self, say: Callable[[str], None]) -> CoolDown | None:
        """Wait until it is over and return what was waited for, None when there was nothing."""
        if not self.limit_s:
            return None
        why = self._look()
        if not why:
            return None
        say(f"waiting {self.limit_s:.0f} s at most until the machine has cooled down: {why}")
        began, now = time.monotonic(), why
        while now and time.monotonic() - began < self.limit_s:
            await asyncio.sleep(self.look_every_s)
            now = self._look()
        return CoolDown(time.monotonic() - began, why, not now)

    def _look(self) -> str:
        before, self.last = self.last, read_signs(self.sysfs)
        return throttling(self.last, before)


def read_signs(sysfs: Path = SYSFS) -> Signs:
    """Return what the kernel shows of throttling now; nothing where it shows nothing."""
    thermal = sysfs / "class/thermal"
    zones = tuple(_zone(folder) for folder in sorted(thermal.glob("thermal_zone*")))
    devices = [
        (_read(folder / "type"), _number(folder / "cur_state") or 0)
        for folder in sorted(thermal.glob("cooling_device*"))
    ]
    counts = {}
    for folder in sorted(sysfs.glob("devices/system/cpu/cpu*/thermal_throttle")):
        for name in COUNTERS:
            count = _number(folder / name)
            if count is not None:
                counts[f"{folder.parent.name} {name}"] = count
    return Signs(tuple(zone for zone in zones if zone is not None), tuple(devices), counts)


def _zone(folder: Path) -> Zone | None:
    millis = _number(folder / "temp")
    if millis is None:
        return None
    passive = []
    for kind in folder.glob("trip_point_*_type"):
        at = _number(folder / kind.name.replace("_type", "_temp"))
        if _read(kind) == "passive" and at is not None and at > 0:  # unset ones are 0 or below
            passive.append(at / 1000)
    return Zone(_read(folder / "type"), millis / 1000, min(passive, default=None))


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.lstrip("-").isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
