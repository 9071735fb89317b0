"""Under what conditions a measurement was made, and whether something else disturbed it."""

from __future__ import annotations

from dataclasses import dataclass

DISTURBING_CORES = 0.2
"""Cores that other processes may use before a measurement counts as disturbed: two measured
neighbours differ by more than noise from there on, on two cores."""


@dataclass(frozen=True)
class Conditions:
    """What the machine was like while a load was measured.

    `other_cores` is how many cores' time other processes used, on average; `busiest` names the one
    that used most; `throttling` says what slowed the machine down, empty when nothing was seen.
    Temperatures in degrees Celsius, clocks in MHz; None where it is not told.
    """

    seconds: float
    load_average: float
    other_cores: float
    busiest: str = ""
    governor: str = ""
    clock_mhz: float | None = None
    temperature_c: float | None = None
    swapped_bytes: int | None = None
    throttling: str = ""

    @property
    def disturbance(self) -> str:
        """Say what disturbed the measurement, empty when nothing did."""
        if self.throttling:
            return f"the machine throttled: {self.throttling}"
        if self.other_cores < DISTURBING_CORES:
            return ""
        who = f", most of it {self.busiest}" if self.busiest else ""
        return f"other processes used {self.other_cores:.1f} cores while this was measured{who}"


def other_cores(busy_s: float, ours_s: float, seconds: float) -> float:
    """Return the cores that others used: all busy processor time less ours, over the time."""
    return max(0.0, (busy_s - ours_s) / seconds) if seconds > 0 else 0.0
