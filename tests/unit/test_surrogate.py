"""What is expected of candidates, by those that were measured."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from enginehouse.core.surrogate import NOISE, Belief, believe

SMALL = (False, False, False)
POINTS = np.array(list(itertools.product((0, 1), repeat=3)), dtype=np.int16)
"""All combinations of three switches, the plain one first."""


def index_of(*switches: int) -> int:
    return int(np.flatnonzero(np.all(np.equal(POINTS, switches), axis=1))[0])


def test_effects_that_were_seen_apart_are_expected_together() -> None:
    """Two settings that gained alone promise most together, although nobody tried them so."""
    measured = POINTS[[index_of(0, 0, 0), index_of(1, 0, 0), index_of(0, 1, 0), index_of(0, 0, 1)]]
    logs = [math.log(rate) for rate in (100, 130, 120, 80)]
    belief = believe(POINTS, measured, logs, SMALL)
    assert int(np.argmax(belief.means)) == index_of(1, 1, 0)
    assert int(np.argmin(belief.means)) == index_of(0, 0, 1)
    assert int(np.argmax(belief.improvements(math.log(130)))) == index_of(1, 1, 0)


def test_what_was_measured_often_is_known_best() -> None:
    """A trial leaves less doubt than the noise; nine leave a third of it; untried ones most."""
    once, nine = index_of(1, 0, 0), index_of(0, 0, 0)
    measured = POINTS[[once, *(nine for _ in range(9))]]
    belief = believe(POINTS, measured, [4.9, *(4.6 for _ in range(9))], SMALL)
    assert belief.deviations[nine] < 0.4 * NOISE < belief.deviations[once] < NOISE
    assert belief.deviations[index_of(1, 1, 1)] > belief.deviations[once]
    assert belief.means[nine] == pytest.approx(4.6, abs=0.02)


def test_a_large_feature_is_trusted_to_have_done_it() -> None:
    """Where two changes came together, the one that may change much is taken to be the cause."""
    measured = POINTS[[index_of(0, 0, 0), index_of(1, 1, 0)]]
    belief = believe(POINTS, measured, [4.0, 4.6], (True, False, False))
    assert belief.means[index_of(1, 0, 0)] > belief.means[index_of(0, 1, 0)] + 0.3


def test_equal_rates_leave_nothing_to_be_torn_by() -> None:
    """One trial, or several alike, is enough to begin with."""
    belief = believe(POINTS, POINTS[:1], [4.6], SMALL)
    assert np.all(np.isfinite(belief.means))
    assert np.argmin(belief.deviations) == 0


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.1), (-0.5, 0.1), (0.3, 0.0001)])
def test_an_improvement_is_what_it_is_on_average(mean: float, deviation: float) -> None:
    """It is the mean of what lies above the bar, here against a million draws."""
    belief = Belief(np.array([mean]), np.array([deviation]))
    draws = np.random.default_rng(1).normal(mean, deviation, 1_000_000)
    expected = np.maximum(draws - 0.05, 0.0).mean()
    assert belief.improvements(0.05)[0] == pytest.approx(expected, abs=2e-4)
