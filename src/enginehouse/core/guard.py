"""When a trial's engine has to be ended for the machine's sake, decided from what was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIB, GIB = 2**20, 2**30
LOOK_AHEAD_S = 0.2
"""How far the fall of available memory is followed: a reading, the kill and the kernel's work of
taking 10 GiB back together took less here (docs/safety.md)."""
FALL_OVER_S = 0.3
LOOK_SOON_S, LOOK_LATE_S = 0.05, 0.2
FASTEST_FILL_BYTES_PER_S = 20 * GIB
"""More than any machine's cores write into fresh pages."""
STALL_SHARE = 0.5
STALL_OVER_S = 2.0
SWAP_BYTES_PER_S = 64 * MIB
SWAP_OVER_S = 2.0


@dataclass(frozen=True)
class Reading:
    """The machine's memory at one moment.

    `stalled_s` (PSI: all tasks waited for memory) and `swapped_bytes` (in and out) are sums since
    the machine's start; None where the kernel does not say.
    """

    at_s: float
    available_bytes: int
    stalled_s: float | None = None
    swapped_bytes: int | None = None


def look_again_s(reading: Reading, reserve_bytes: int) -> float:
    """Return in how many seconds to look again: sooner, the sooner the reserve could be reached.

    A look takes a core from the engine (docs/lab-log.md), so there are fewer while there is room.
    """
    room = reading.available_bytes - reserve_bytes
    return min(LOOK_LATE_S, max(LOOK_SOON_S, room / FASTEST_FILL_BYTES_PER_S))


def judge(readings: Sequence[Reading], reserve_bytes: int) -> str:
    """Say why the engine must end now, empty while it may go on; the newest reading is last.

    Available memory may not fall under the reserve, nor fall so fast that it would before we looked
    again; and the machine may not stand still for memory, or swap without end, for two seconds.
    """
    if not readings:
        return ""
    now = readings[-1]
    if now.available_bytes < reserve_bytes:
        return (
            f"available memory fell under the reserve: {show(now.available_bytes)} of "
            f"{show(reserve_bytes)}"
        )
    fall = _fall_per_s(readings)
    if now.available_bytes - fall * LOOK_AHEAD_S < reserve_bytes / 2:
        return (
            f"available memory falls by {show(fall)} a second: the reserve of "
            f"{show(reserve_bytes)} would be gone in {now.available_bytes / fall:.1f} s"
        )
    return _stall(readings) or _swap_storm(readings)


def _fall_per_s(readings: Sequence[Reading]) -> float:
    """Return how fast available memory falls, by the latest readings; 0 when it does not."""
    now = readings[-1]
    before = [r for r in readings if FALL_OVER_S >= now.at_s - r.at_s > 0]
    if not before:
        return 0.0
    fallen = before[0].available_bytes - now.available_bytes
    return max(0.0, fallen / (now.at_s - before[0].at_s))


def _stall(readings: Sequence[Reading]) -> str:
    now = readings[-1]
    then = _reading_before(readings, STALL_OVER_S)
    if then is None or now.stalled_s is None or then.stalled_s is None:
        return ""
    share = (now.stalled_s - then.stalled_s) / (now.at_s - then.at_s)
    if share < STALL_SHARE:
        return ""
    return f"the machine stood still for memory {share:.0%} of the last {STALL_OVER_S:g} s"


def _swap_storm(readings: Sequence[Reading]) -> str:
    now = readings[-1]
    then = _reading_before(readings, SWAP_OVER_S)
    if then is None or now.swapped_bytes is None or then.swapped_bytes is None:
        return ""
    rate = (now.swapped_bytes - then.swapped_bytes) / (now.at_s - then.at_s)
    if rate < SWAP_BYTES_PER_S:
        return ""
    return f"the machine swapped {show(rate)} a second for {SWAP_OVER_S:g} s"


def _reading_before(readings: Sequence[Reading], seconds: float) -> Reading | None:
    """Return the newest reading that is at least so old."""
    end = readings[-1].at_s - seconds
    return next((r for r in reversed(readings) if r.at_s <= end), None)


def show(size: float) -> str:
    """Show a size as people read it."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
