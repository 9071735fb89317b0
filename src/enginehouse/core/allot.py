"""How a search's time is shared out between exploring and finals, as pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.core.trial import Trial
from enginehouse.core.workload import Workload

LEAST_ROUNDS = 3
"""Rounds of finals that time is kept for: fewer leave intervals that say nothing."""
LEAST_EXPLORING, MOST_EXPLORING = 0.3, 0.55
"""Shares of the budget: exploring always has the former, since finals of the wrong candidates are
worth nothing, and never more than the latter, since rounds go on until noise hides nothing."""


def finals_reserve_s(lengths_s: Sequence[float], exams_s: float, budget_s: float) -> float:
    """Return the seconds to keep for finals of candidates whose whole trials take so long.

    The best comes first in `lengths_s`, the base last. Where three rounds of all leave too little
    for exploring, time is kept for as many rounds as can be: of all, else of the best and the base.
    """
    least, most = ((1.0 - share) * budget_s for share in (MOST_EXPLORING, LEAST_EXPLORING))
    pair_s = sum(lengths_s) if len(lengths_s) < 3 else lengths_s[0] + lengths_s[-1]
    rounds = range(LEAST_ROUNDS, 0, -1)
    wanted = (LEAST_ROUNDS * sum(lengths_s), *(number * pair_s for number in rounds))
    fitting = (one + exams_s for one in wanted if one + exams_s <= most)
    return max(least, next(fitting, most))


def whole_trial_s(trial: Trial, workload: Workload, window_s: float) -> float:
    """Predict how long a candidate's whole trial takes, from one that explored.

    Its start and warm-up are as long; its load lasts until every stream was answered once, or as
    long as the window, and answers are taken to have their full length.
    """
    figures = trial.measurement
    if figures is None or not figures.output_tok_per_s:
        return trial.duration_s
    start_s = max(0.0, trial.duration_s - figures.duration_s)
    wave_s = workload.least_answers * workload.output_tokens / figures.output_tok_per_s
    all_s = workload.requests * workload.output_tokens / figures.output_tok_per_s
    return start_s + min(all_s, max(window_s, wave_s))
