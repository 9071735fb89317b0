"""Predict, then correct: what trials taught about the predictions of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from enginehouse.core.fit import Correction

SANE = (0.5, 2.0)
"""A factor beyond these is no residual but a mistake of ours, and is not used."""


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
    """Return the median of observed ÷ predicted, None without a sane observation.

    The median, since a trial beside other work may be anything.
    """
    factors = [
        item.observed_bytes / item.predicted_bytes
        for item in observations
        if item.predicted_bytes > 0 and item.observed_bytes > 0
    ]
    sane = [factor for factor in factors if SANE[0] <= factor <= SANE[1]]
    if not sane:
        return None
    newest = observations[-1]
    key = f"{newest.fingerprint[:8]}/{newest.build_digest[:8]}/{newest.architecture}"
    return Correction(median(sane), len(sane), key)
