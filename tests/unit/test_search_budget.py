"""A budget ends a search, but not before it tried something beside the minimal candidate."""

from __future__ import annotations

import dataclasses

import pytest

from enginehouse.core.candidate import Candidate
from enginehouse.trials.search import kept_s
from tests.unit.values import trial


@pytest.mark.parametrize(
    ("durations", "kept"),
    [
        ([], -60.0),
        ([50.0], -10.0),
        ([70.0, 40.0], 10.0),
        ([5.0, 4.0, 3.0], 15.0),
        ([5.0, 4.0, 3.0, 9.0], 27.0),
    ],
)
def test_what_is_kept_of_the_budget(durations: list[float], kept: float) -> None:
    """Of a minute: the first three may overrun it once, later ones leave time for a pair."""
    candidate = Candidate("llama.cpp", "d", ())
    trials = [
        dataclasses.replace(trial(candidate, 10.0), duration_s=duration) for duration in durations
    ]
    assert kept_s(trials, 60.0) == kept
