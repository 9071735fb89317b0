"""Does a model fit this machine, in which settings, and how far could it go?

The budget is what is *available*, less a reserve for the rest of the machine. Where the GPU shares
the main memory there is one budget for everything; a card of its own has a second one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from enginehouse.core.conditions import show_size
from enginehouse.core.estimate import MemoryEstimate
from enginehouse.core.estimate_speed import Speed
from enginehouse.core.machine import Machine

FITS, TIGHT, NOT = "fits", "fits if", "does not fit"
CONTEXT_STEP = 256
MOST_CONTEXT, MOST_SEQUENCES = 1 << 20, 256


@dataclass(frozen=True)
class Budget:
    """What may be used, in bytes: of the main memory, and of a GPU's own when there is one."""

    host: float
    device: float | None = None
    name: str = "memory"

    def holds(self, estimate: MemoryEstimate, bound: str = "expected") -> bool:
        """Whether the `low`, `expected` or `high` values of an estimate stay within the budget."""
        if self.device is None:
            return float(getattr(estimate.total, bound)) <= self.host
        fits_host = getattr(estimate.on_host, bound) <= self.host
        return bool(fits_host and getattr(estimate.on_device, bound) <= self.device)


@dataclass(frozen=True)
class Correction:
    """A factor learnt from trials: observed ÷ predicted, its spread, and of how many trials."""

    factor: float
    trials: int
    key: str = ""


@dataclass(frozen=True)
class FitRow:
    """One way to serve a model here. `most_context` is for its sequences, `most_sequences` for its
    context; 0 when not even the smallest fits. `speed` is at an empty context, `speed_at_context`
    at a full one. `settings` are the engine's own flags.
    """

    engine: str
    quantization: str
    kv_type: str
    context: int
    sequences: int
    estimate: MemoryEstimate
    budget: Budget
    verdict: str
    reason: str
    most_context: int = 0
    most_sequences: int = 0
    speed: Speed | None = None
    speed_at_context: Speed | None = None
    correction: Correction | None = None
    settings: str = ""
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The verdict in one line."""
        link = {FITS: ":", TIGHT: "", NOT: " because"}[self.verdict]
        return f"{self.verdict}{link} {self.reason}"


def budget_of(machine: Machine, reserve_bytes: float, uses_gpu: bool) -> Budget:
    """Return what an engine may use: all on one budget unless a GPU has a memory of its own."""
    host = max(machine.memory_available_bytes - reserve_bytes, 0.0)
    cards = [gpu for gpu in machine.gpus if not gpu.unified and gpu.memory_total_bytes]
    if not (uses_gpu and cards):
        name = "memory shared with the GPU" if machine.has_unified_memory else "memory"
        return Budget(host, None, name)
    free = sum(gpu.memory_free_bytes or gpu.memory_total_bytes or 0 for gpu in cards)
    return Budget(host, float(free), "GPU memory")


Estimate = Callable[[int, int], MemoryEstimate]
"""Context of one sequence and the number of sequences → the estimate."""


def largest_context(estimate: Estimate, sequences: int, limit: int, budget: Budget) -> int:
    """Return the largest context (a multiple of 256) that is expected to fit, 0 if none is."""
    most = min(limit or MOST_CONTEXT, MOST_CONTEXT)
    steps = _largest(
        most // CONTEXT_STEP,
        lambda count: budget.holds(estimate(count * CONTEXT_STEP, sequences)),
    )
    return steps * CONTEXT_STEP


def most_sequences(estimate: Estimate, context: int, budget: Budget) -> int:
    """Return the largest number of sequences of this context expected to fit, 0 if none is."""
    return _largest(MOST_SEQUENCES, lambda count: budget.holds(estimate(context, count)))


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number from 1 on that holds, when all below it do; 0 for none."""
    if most < 1 or not holds(1):
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def judge(row: FitRow) -> FitRow:
    """Return the row with its verdict, from its estimate and what else would fit."""
    total, budget = row.estimate.total, row.budget
    have = show_size(budget.host if budget.device is None else budget.device)
    need = show_size(total.expected if budget.device is None else row.estimate.on_device.expected)
    if budget.holds(row.estimate, "high"):
        return replace(row, verdict=FITS, reason=f"{need} of {have} {budget.name}")
    if budget.holds(row.estimate):
        worst = _widest(row.estimate)
        reason = f"{worst} stays below its most: {need} of {have} expected"
        return replace(row, verdict=TIGHT, reason=f"the {reason}")
    if row.most_context >= CONTEXT_STEP:
        reason = f"the context is at most {row.most_context:,} (needs {need} of {have} at this one)"
        return replace(row, verdict=TIGHT, reason=reason)
    if row.most_sequences:
        reason = f"at most {row.most_sequences} sequences share it (needs {need} of {have})"
        return replace(row, verdict=TIGHT, reason=reason)
    largest = max(row.estimate.parts, key=lambda part: part.bytes.expected)
    largest_size = show_size(largest.bytes.expected)
    reason = f"it needs {need} ({largest.name} {largest_size}) of {have} {budget.name}"
    return replace(row, verdict=NOT, reason=reason)


def _widest(estimate: MemoryEstimate) -> str:
    """Name the part that could grow the most beyond what is expected."""
    needed = [part for part in estimate.parts if not part.is_reclaimable]
    return max(needed, key=lambda part: part.bytes.high - part.bytes.expected).name


def rank(rows: tuple[FitRow, ...]) -> tuple[FitRow, ...]:
    """Order rows: what fits first, then the fastest decode, then the least memory."""
    order = {FITS: 0, TIGHT: 1, NOT: 2}

    def place(row: FitRow) -> tuple[int, float, float]:
        rate = row.speed.decode.expected if row.speed else 0.0
        return order[row.verdict], -rate, row.estimate.total.expected

    return tuple(sorted(rows, key=place))
