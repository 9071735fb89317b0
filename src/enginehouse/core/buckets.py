"""Percentiles of a distribution that is known by its buckets only. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A distribution in seconds; None where there are no samples.

    A percentile `is_least` when it lies beyond the last bucket's bound: it is at least that bound.
    """

    samples: int = 0
    mean_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    p50_is_least: bool = False
    p95_is_least: bool = False


def spread_of(buckets: Mapping[float, float], sum_s: float) -> Spread:
    """Return the spread of cumulative counts by upper bound; the last bound is infinite."""
    samples = max(buckets.values(), default=0.0)
    if samples <= 0:
        return Spread()
    p50_s, p50_is_least = percentile(buckets, 0.50)
    p95_s, p95_is_least = percentile(buckets, 0.95)
    return Spread(round(samples), sum_s / samples, p50_s, p95_s, p50_is_least, p95_is_least)


def percentile(buckets: Mapping[float, float], share: float) -> tuple[float | None, bool]:
    """Return a percentile and whether it is only known to be at least that.

    Within a bucket samples are taken to lie evenly, the first one beginning at 0, as Prometheus'
    `histogram_quantile` does: https://prometheus.io/docs/prometheus/latest/querying/functions/
    """
    rank = share * max(buckets.values(), default=0.0)
    below, lower = 0.0, 0.0
    for bound in sorted(buckets):
        count = buckets[bound]
        if count >= rank and count > below:
            if math.isinf(bound):
                return (lower, True) if lower else (None, False)
            return lower + (bound - lower) * (rank - below) / (count - below), False
        below, lower = max(below, count), bound if math.isfinite(bound) else lower
    return None, False
