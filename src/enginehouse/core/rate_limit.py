"""A token bucket as a value: so many a minute, a minute's worth at once at most. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bucket:
    """What is left, and when that was so (monotonic seconds); it may be in debt."""

    left: float
    at_s: float


def full(per_min: int, now_s: float) -> Bucket:
    """Return a full bucket."""
    return Bucket(float(per_min), now_s)


def refilled(bucket: Bucket, per_min: int, now_s: float) -> Bucket:
    """Return the bucket as it stands now."""
    gained = max(0.0, now_s - bucket.at_s) * per_min / 60.0
    return Bucket(min(float(per_min), bucket.left + gained), now_s)


def take(bucket: Bucket, amount: float, per_min: int, now_s: float) -> tuple[Bucket, float]:
    """Return the bucket after a request that needs `amount` now, and the seconds to wait.

    Where it has to wait nothing is taken.
    """
    now = refilled(bucket, per_min, now_s)
    if now.left >= amount:
        return Bucket(now.left - amount, now_s), 0.0
    return now, (amount - now.left) * 60.0 / per_min


def charge(bucket: Bucket, amount: float, per_min: int, now_s: float) -> Bucket:
    """Return the bucket after something that is known only afterwards, as an answer's tokens."""
    now = refilled(bucket, per_min, now_s)
    return Bucket(now.left - amount, now_s)
