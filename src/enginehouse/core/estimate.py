"""Predictions with low, expected and high values, and the parts that memory is made of.

What the parts of an engine weigh: `estimate_llama.py`, `estimate_vllm.py`; how fast it will be:
`estimate_speed.py`; what follows from both on a machine: `fit.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Range:
    """A prediction: what is likely at least, expected, and likely at most."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Range:
        """Return the range scaled by one factor."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)


def exactly(value: float) -> Range:
    """Return the range of a value that is known."""
    return Range(value, value, value)


def within(value: float, share: float) -> Range:
    """Return the range of a value that is known up to a share of it."""
    return Range(value * (1 - share), value, value * (1 + share))


@dataclass(frozen=True)
class MemoryPart:
    """One part of the memory an engine will hold, in bytes.

    `is_reclaimable` marks pages of a file that are mapped but not read again once the model is
    loaded: they stand in the process's resident size, and the kernel may drop them at no cost.
    `is_on_device` marks what lies in a GPU's memory, where that is a memory of its own.
    """

    name: str
    bytes: Range
    is_reclaimable: bool = False
    note: str = ""
    is_on_device: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """The parts of the memory an engine will hold."""

    parts: tuple[MemoryPart, ...]

    @property
    def total(self) -> Range:
        """What must be there: the sum over the parts that cannot be given back."""
        return _sum(part.bytes for part in self.parts if not part.is_reclaimable)

    @property
    def on_device(self) -> Range:
        """What of the total lies in a GPU's memory."""
        return _sum(part.bytes for part in self.parts if part.is_on_device)

    @property
    def on_host(self) -> Range:
        """What of the total lies in the main memory."""
        return _sum(
            part.bytes for part in self.parts if not (part.is_on_device or part.is_reclaimable)
        )

    @property
    def resident(self) -> Range:
        """What the process is seen to hold at its peak, mapped file pages included."""
        return _sum(part.bytes for part in self.parts)

    def part(self, name: str) -> Range:
        """Return one part's bytes, 0 where there is none of that name."""
        return _sum(part.bytes for part in self.parts if part.name == name)

    def corrected(self, factor: float) -> MemoryEstimate:
        """Return the estimate whose *resident* memory is `factor` times what it was.

        A correction is learnt from resident memory. File pages are known exactly, so all of the
        difference goes to the parts that cannot be given back, each by the same share.
        """
        needed = self.total.expected
        if not needed:
            return self
        share = max(1 + (factor - 1) * self.resident.expected / needed, 0.0)
        return MemoryEstimate(
            tuple(
                part if part.is_reclaimable else replace(part, bytes=part.bytes.times(share))
                for part in self.parts
            )
        )


def _sum(ranges: Iterable[Range]) -> Range:
    low = expected = high = 0.0
    for item in ranges:
        low, expected, high = low + item.low, expected + item.expected, high + item.high
    return Range(low, expected, high)
