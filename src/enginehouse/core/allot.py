"""How a search's time is shared out between exploring and finals, as pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.core.trial import Trial
from enginehouse.core.workload import Workload

LEAST_ROUNDS = 3
"""Rounds of finals that time is kept for: fewer leave intervals that say nothing."""
LEAST_EXPLORING, MOST_EXPLORING = 0.4, 0.6
"""Shares of the budget: exploring always has the former, since finals of the wrong candidates are
worth nothing, and never more than the latter, since rounds go on until noise hides nothing."""
FINALS_END = 0.92
"""The rest is for what each setting of the winner brought."""


def finals_reserve_s(lengths_s: Sequence[float], exams_s: float, budget_s: float) -> float:
    """Return the seconds to keep for finals of candidates whose whole trials take so long."""
    wanted = LEAST_ROUNDS * sum(lengths_s) + exams_s
    least, most = FINALS_END - MOST_EXPLORING, FINALS_END - LEAST_EXPLORING
    return min(most * budget_s, max(least * budget_s, wanted))


def whole_trial_s(trial: Trial, workload: Workload, window_s: float) -> float:
    """Predict how long a candidate's whole trial takes, from one that explored.

    Its start and warm-up are as long; its load lasts until every stream was answered once, or as
    long as the window, and answers are taken to have their full length.
    """
    figures = trial.measurement
    if figures is None or not figures.output_tok_per_s:
        return trial.duration_s
    start_s = max(0.0, trial.duration_s - figures.duration_s)
    wave_s = workload.streams * workload.output_tokens / figures.output_tok_per_s
    all_s = workload.requests * workload.output_tokens / figures.output_tok_per_s
    return start_s + min(all_s, max(window_s, wave_s))
