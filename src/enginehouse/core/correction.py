"""Predict, then correct: what trials taught about the predictions of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.fit import Correction

SANE = (0.5, 2.0)
"""A factor beyond these is no residual but a mistake of ours, and is not used."""
SETTLED = 0.02
"""Residuals of one architecture differ by so much from setting to setting (`fit_accuracy`), so a
smaller one says nothing of the next setting."""


@dataclass(frozen=True)
class Observation:
    """One trial's peak of resident memory, as predicted and as observed; bytes."""

    fingerprint: str
    build_digest: str
    architecture: str
    predicted_bytes: float
    observed_bytes: float
    trial_id: int = 0


def correction_from(observations: Sequence[Observation]) -> Correction | None:
    """Return the factor that most observations agree on, None without a sane one.

    It is the quartile of observed ÷ predicted that lies nearer to 1, and exactly 1 where the
    quartiles lie on both sides of it: what three quarters of the trials would not gain from is
    noise, and correcting by noise makes a good prediction worse. A trial beside other work may be
    anything, which a quartile bears.
    """
    factors = [
        item.observed_bytes / item.predicted_bytes
        for item in observations
        if item.predicted_bytes > 0 and item.observed_bytes > 0
    ]
    sane = sorted(factor for factor in factors if SANE[0] <= factor <= SANE[1])
    if not sane:
        return None
    newest = observations[-1]
    key = f"{newest.fingerprint[:8]}/{newest.build_digest[:8]}/{newest.architecture}"
    return Correction(cautious_factor(sane), len(sane), key)


def cautious_factor(ordered: Sequence[float]) -> float:
    """Return the quartile nearer to 1 of some ordered ratios; 1 between them and within SETTLED."""
    outer = (len(ordered) - 1) // 4
    low, high = ordered[outer], ordered[-1 - outer]
    factor = low if low > 1 else min(high, 1.0)
    return factor if abs(factor - 1) > SETTLED else 1.0
