"""Whether a machine throttles, told by what its kernel shows, and what was waited for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SLOWING = ("cpufreq", "devfreq", "Processor", "throttle")
"""What the names of cooling devices hold that slow a processor down; the others are fans, or states
that are settings. https://docs.kernel.org/driver-api/thermal/sysfs-api.html; Jetson's end in
`-throttle-alert`."""


@dataclass(frozen=True)
class Zone:
    """A thermal zone and the passive trip point from which the kernel slows down, in °C."""

    name: str
    celsius: float
    passive_celsius: float | None = None


@dataclass(frozen=True)
class Signs:
    """What a kernel shows of throttling at one moment.

    `devices` are cooling devices that are in force, with how far; `counts` is how often each
    processor was throttled since the start, by a name.
    """

    zones: tuple[Zone, ...] = ()
    devices: tuple[tuple[str, int], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CoolDown:
    """What was waited before a trial, and why; `is_over` is False where the limit ended it."""

    seconds: float
    why: str
    is_over: bool

    def describe(self) -> str:
        """Say it in one line."""
        end = "" if self.is_over else ", and it was not over then"
        return f"waited {self.seconds:.0f} s before it{end}: {self.why}"


def slows_down(name: str) -> bool:
    """Whether a cooling device of this name slows a processor, rather than turning a fan."""
    return any(mark in name for mark in SLOWING)


def throttling(now: Signs, before: Signs | None = None) -> str:
    """Say why a machine counts as throttling, empty when it does not.

    Counts tell only what was since an earlier look.
    """
    for name, state in now.devices:
        if state > 0 and slows_down(name):
            return f"{name} slows the machine down (step {state})"
    for zone in now.zones:
        if zone.passive_celsius is not None and zone.celsius >= zone.passive_celsius:
            return (
                f"{zone.name} is at {zone.celsius:.0f} °C, and the kernel slows down from "
                f"{zone.passive_celsius:.0f} °C"
            )
    if before is not None:
        risen = sum(max(0, n - before.counts.get(name, n)) for name, n in now.counts.items())
        if risen:
            return f"the processor was throttled {risen} times since the last look"
    return ""
