"""Bytes and speed of a candidate before it is tried, with low, expected and high values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A prediction: what is likely at least, expected, and likely at most."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class MemoryPart:
    """One part of the memory an engine will hold, in bytes."""

    name: str
    bytes: Range


@dataclass(frozen=True)
class MemoryEstimate:
    """The parts of the memory an engine will hold."""

    parts: tuple[MemoryPart, ...]

    @property
    def total(self) -> Range:
        """The sum over the parts, in bytes."""
        return Range(
            sum(part.bytes.low for part in self.parts),
            sum(part.bytes.expected for part in self.parts),
            sum(part.bytes.high for part in self.parts),
        )


def estimate_decode(
    bytes_per_token: int, memory_bandwidth_bytes_per_s: float | None
) -> Range | None:
    """Predict one stream's decode rate in tok/s, None where the bandwidth is not known.

    The upper bound is bandwidth ÷ bytes read per token; real engines reach 50–80 % of it on memory
    that is the limit, less where a small model leaves the compute as the limit.
    """
    if not (bytes_per_token and memory_bandwidth_bytes_per_s):
        return None
    bound = memory_bandwidth_bytes_per_s / bytes_per_token
    return Range(0.2 * bound, 0.6 * bound, bound)
