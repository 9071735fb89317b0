"""Confidence intervals of means and of paired ratios, by Student's t distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""The 97.5 % quantile of Student's t for 1, 2, … 20 degrees of freedom (any table of it)."""
T_NORMAL = 1.96


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval, of `samples` measurements."""

    middle: float
    low: float
    high: float
    samples: int

    @property
    def holds_one(self) -> bool:
        """Whether a ratio of 1 lies in the interval: no difference has been shown."""
        return self.low <= 1.0 <= self.high


def interval_of(values: Sequence[float]) -> Interval | None:
    """Return the interval of the mean; None with fewer than two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    half = quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half, len(values))


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> Interval | None:
    """Return the interval of ours ÷ theirs, measured in pairs, by the mean of the logarithms.

    None with fewer than two pairs of positive values.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a > 0 and b > 0]
    logs = interval_of([math.log(a / b) for a, b in pairs])
    if logs is None:
        return None
    return Interval(math.exp(logs.middle), math.exp(logs.low), math.exp(logs.high), len(pairs))


def quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return T_975[degrees - 1] if degrees <= len(T_975) else T_NORMAL
