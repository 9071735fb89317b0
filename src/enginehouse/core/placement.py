"""Where a model's engine finds room: load it, unload others first, wait, or refuse. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

MOST_BRUTE = 12
HALF_LIFE_S = 300.0
"""A model that was not asked for this long is half as likely to be asked for next."""


class Room(str, Enum):
    """What to do for a model that is not loaded."""

    LOAD = "load"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Held:
    """A loaded model: its bytes (observed, or predicted until then), and what unloading costs.

    `load_s` is how long it takes to load again; `idle_s` since its last request.
    """

    name: str
    bytes: int
    in_flight: int = 0
    is_pinned: bool = False
    load_s: float = 1.0
    idle_s: float = 0.0

    @property
    def cost(self) -> float:
        """The seconds that unloading it will cost, weighed by how likely it is asked for again."""
        return float(self.load_s * 0.5 ** (self.idle_s / HALF_LIFE_S))


@dataclass(frozen=True)
class Placement:
    """The decision; `evict` are unloaded first."""

    room: Room
    evict: tuple[str, ...] = ()
    reason: str = ""


def place(wanted_bytes: int, free_bytes: int, held: Sequence[Held]) -> Placement:
    """Decide on a model of `wanted_bytes` with `free_bytes` left above the machine's reserve.

    What is pinned is never unloaded, what answers a request is waited for. Among the sets of idle
    models that make enough room the one is taken that costs least to load again, then the one
    that frees least.
    """
    if wanted_bytes <= free_bytes:
        return Placement(Room.LOAD)
    missing = wanted_bytes - free_bytes
    idle = [one for one in held if not one.is_pinned and not one.in_flight]
    chosen = _cheapest(missing, idle)
    if chosen is not None:
        names = tuple(one.name for one in chosen)
        return Placement(Room.LOAD, names, f"{', '.join(names)} make room")
    busy = [one for one in held if not one.is_pinned]
    if sum(one.bytes for one in busy) >= missing:
        return Placement(Room.WAIT, reason="the models that could make room are answering requests")
    pinned = [one.name for one in held if one.is_pinned]
    kept = f"; {', '.join(pinned)} stay loaded" if pinned else ""
    return Placement(
        Room.REFUSE,
        reason=f"it needs about {_gib(wanted_bytes)}, and {_gib(free_bytes)} is free above the "
        f"reserve, {_gib(sum(one.bytes for one in busy))} could be freed{kept}",
    )


def _cheapest(missing: int, idle: Sequence[Held]) -> tuple[Held, ...] | None:
    if sum(one.bytes for one in idle) < missing:
        return None
    if len(idle) > MOST_BRUTE:
        taken: list[Held] = []
        for one in sorted(idle, key=lambda held: held.cost / max(1, held.bytes)):
            if sum(t.bytes for t in taken) >= missing:
                break
            taken.append(one)
        return tuple(taken)
    sets = (
        group
        for size in range(1, len(idle) + 1)
        for group in combinations(idle, size)
        if sum(one.bytes for one in group) >= missing
    )
    return min(
        sets,
        key=lambda group: (sum(one.cost for one in group), sum(one.bytes for one in group)),
        default=None,
    )


def _gib(size: int) -> str:
    return f"{max(0, size) / (1 << 30):.2f} GiB"
