"""What a candidate will make, by those that were measured: a Gaussian process over settings.

Rates are taken by their logarithm, where settings multiply: each has an effect of its own, whatever
the others are, and what is left of a combination is alike in combinations that differ little. So
ten noisy trials of a space of hundreds tell of most of it, since each tells of all its settings.
The method is common (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter
2); the figures below are this project's (docs/adr/0049-an-additive-process.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int16]
"""Points × features: equal numbers in a column stand for equal values."""
Floats = npt.NDArray[np.float64]

LARGE, SMALL, TOGETHER = 0.35, 0.12, 0.1
"""Standard deviations of logarithms of rates: of the effect of a large feature and of another one,
and of what a combination adds to its parts."""
NOISE = 0.07
"""That of a trial that explores: 0.05 to 0.08 was seen."""
SCALES = (0.5, 1.0, 2.0)
"""What all but the noise may be multiplied by, whichever explains best what was measured."""
JITTER = 1e-9

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Belief:
    """What is expected at points: means and standard deviations of the logarithm of the rate."""

    means: Floats
    deviations: Floats

    def improvements(self, bar: float) -> Floats:
        """Return by how much each point is expected to exceed a bar, none of them below 0."""
        z = (self.means - bar) / self.deviations
        below = 0.5 * (1.0 + _erf(z / math.sqrt(2.0)))
        density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        found: Floats = (self.means - bar) * below + self.deviations * density
        return found


def believe(
    points: Codes, measured: Codes, log_rates: Sequence[float], is_large: Sequence[bool]
) -> Belief:
    """Return what is expected at points, by what was measured at others (one at least).

    `is_large` tells of each feature whether it may change much.
    """
    variances = np.where(np.asarray(is_large, dtype=bool), LARGE, SMALL) ** 2
    rates = np.asarray(log_rates, dtype=np.float64)
    mean = rates.mean()
    among = _covariance(measured, measured, variances)
    noise = NOISE**2 * np.eye(len(rates))
    scale = max(SCALES, key=lambda one: _likelihood(one**2 * among + noise, rates - mean))
    across = scale**2 * _covariance(points, measured, variances)
    solved = np.linalg.solve(scale**2 * among + noise, np.column_stack((rates - mean, across.T)))
    before = scale**2 * (variances.sum() + TOGETHER**2)
    left = before - (across * solved[:, 1:].T).sum(axis=1)
    return Belief(mean + across @ solved[:, 0], np.sqrt(np.maximum(left, JITTER)))


def _covariance(some: Codes, others: Codes, variances: Floats) -> Floats:
    """Return how much of their rates points have in common."""
    shared = np.zeros((len(some), len(others)))
    apart = np.zeros_like(shared)
    for feature, variance in enumerate(variances):
        equal = some[:, None, feature] == others[None, :, feature]
        shared += variance * equal
        apart += ~equal
    return shared + TOGETHER**2 * np.exp(-apart)


def _likelihood(covariance: Floats, residuals: Floats) -> float:
    """Return the logarithm of how likely residuals are, but for a constant."""
    _, log_determinant = np.linalg.slogdet(covariance)
    return float(-0.5 * (residuals @ np.linalg.solve(covariance, residuals) + log_determinant))
