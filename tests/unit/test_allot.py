"""How a search's time is shared out: finals get their rounds, exploring its least."""

from __future__ import annotations

import dataclasses

import pytest

from enginehouse.core.allot import finals_reserve_s, whole_trial_s
from enginehouse.core.candidate import Candidate
from enginehouse.core.contest import EXPLORE, FINAL, contributions, explored_rates
from enginehouse.core.workload import WORKLOADS
from tests.unit.values import WHEEL, measurement, trial

BASE = Candidate("llama.cpp", WHEEL.digest, (("context", 1024), ("slots", 1)))
FAST = BASE.with_settings(slots=8, flash_attention="off")


@pytest.mark.parametrize(
    ("lengths_s", "exams_s", "kept_s"),
    [
        ((10, 10, 15), 0.0, 105.0),  # three rounds of all
        ((10, 10, 15), 9.0, 114.0),  # and the exams before them
        ((20, 20, 25), 0.0, 135.0),  # three of the best and the base
        ((25, 25, 40), 0.0, 130.0),  # two of them
        ((60, 60, 75), 0.0, 135.0),  # one
        ((90, 90, 99), 0.0, 140.0),  # none would fit: exploring keeps its least
        ((1, 1, 1), 0.0, 90.0),  # short ones: exploring takes no more than its most
    ],
)
def test_time_is_kept_for_as_many_rounds_as_can_be(
    lengths_s: tuple[float, ...], exams_s: float, kept_s: float
) -> None:
    """Of 200 s, three rounds of all come first, then of two, then fewer; 30 % stay to explore."""
    assert finals_reserve_s(lengths_s, exams_s, 200.0) == pytest.approx(kept_s)


def test_a_whole_trial_is_predicted_from_one_that_explored() -> None:
    """Start and warm-up stay; the load lasts until each of 16 streams has 96 tokens."""
    figures = dataclasses.replace(measurement(64.0), duration_s=8.0)
    explored = dataclasses.replace(trial(FAST, 64.0), duration_s=11.0, measurement=figures)
    assert whole_trial_s(explored, WORKLOADS["crowd"], 9.0) == pytest.approx(3.0 + 16 * 96 / 64.0)
    assert whole_trial_s(explored, WORKLOADS["chat"], 9.0) == pytest.approx(3.0 + 9.0)


def test_rates_of_shorter_and_of_whole_loads_are_never_compared() -> None:
    """Who is best is told by what explored; what a setting brought, by loads of one kind."""
    without = FAST.with_settings(flash_attention=None)
    trials = [
        dataclasses.replace(trial(candidate, rate), purpose=purpose)
        for candidate, rate, purpose in (
            (FAST, 100.0, EXPLORE), (without, 80.0, EXPLORE), (FAST, 200.0, FINAL),
        )
    ]  # fmt: skip
    assert explored_rates(trials) == {FAST.id: 100.0, without.id: 80.0}
    brought = {c.settings: c.ratio for c in contributions(trials, FAST, BASE)}
    assert brought == {(("flash_attention", "off"),): 1.25}
