"""Rank what was measured and say why every loser lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from enginehouse.core.candidate import Candidate
from enginehouse.core.propose import throughput
from enginehouse.core.trial import Outcome, Trial

TIE = 0.03
"""Medians closer than this share count as a tie, which goes to the candidate nearer the minimal."""


@dataclass(frozen=True)
class Ranked:
    """One candidate's place: its best-known trial, the median over its trials, and why."""

    trial: Trial
    output_tok_per_s: float
    trials: int
    reason: str


def choose(trials: Sequence[Trial], minimal: Candidate) -> tuple[Ranked, ...]:
    """Rank candidates by median output throughput, best first; failed ones last, with their cause.

    The first is the winner when it has a measurement. A candidate within 3 % of the best that
    differs less from the minimal candidate goes before it: equal speed, fewer assumptions.
    """
    answered = {t.remedy.trial_id: t.id for t in reversed(trials) if t.remedy is not None}
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.candidate.id, []).append(trial)
    scored = [_score(group) for group in groups.values()]
    good = sorted((s for s in scored if s[1] > 0), key=lambda s: -s[1])
    bad = [s for s in scored if s[1] <= 0]
    if not good:
        return tuple(Ranked(t, 0.0, n, _why_failed(t, answered.get(t.id, 0))) for t, _, n in bad)
    winner = _pick_winner(good, minimal)
    rest = [s for s in good if s is not winner]
    ranked = [Ranked(winner[0], winner[1], winner[2], _why_won(winner, good, minimal, trials))]
    ranked += [Ranked(t, rate, n, _why_lost(rate, winner[1])) for t, rate, n in rest]
    ranked += [Ranked(t, 0.0, n, _why_failed(t, answered.get(t.id, 0))) for t, _, n in bad]
    return tuple(ranked)


def finalists(trials: Sequence[Trial], minimal: Candidate) -> tuple[Candidate, ...]:
    """Return the candidates to measure once more: the best one and the minimal one."""
    ranked = [r for r in choose(trials, minimal) if r.output_tok_per_s > 0]
    if len(ranked) < 2 or ranked[0].trial.candidate == minimal:
        return ()
    return (ranked[0].trial.candidate, minimal)


_Scored = tuple[Trial, float, int]


def _score(group: list[Trial]) -> _Scored:
    """Score by the median of the trials that were measured; a candidate that once failed loses.

    Not so when a remedy mended the failure for the same candidate, as a free port does.
    """
    mended = {t.remedy.trial_id for t in group if t.remedy is not None and t.has_measurement}
    failed = [
        t
        for t in group
        if t.outcome not in (Outcome.MEASURED, Outcome.INTERRUPTED) and t.id not in mended
    ]
    measured = [t for t in group if t.has_measurement]
    if failed or not measured:
        return (failed or group)[-1], 0.0, len(group)
    middle = median(throughput(t) for t in measured)
    nearest = min(measured, key=lambda t: abs(throughput(t) - middle))
    return nearest, middle, len(measured)


def _pick_winner(good: list[_Scored], minimal: Candidate) -> _Scored:
    best = good[0]
    tied = [s for s in good if s[1] >= (1 - TIE) * best[1]]
    return min(tied, key=lambda s: (_distance(s[0].candidate, minimal), -s[1]))


def _distance(candidate: Candidate, minimal: Candidate) -> int:
    return len(set(candidate.settings) ^ set(minimal.settings))


def _why_won(
    winner: _Scored, good: list[_Scored], minimal: Candidate, trials: Sequence[Trial]
) -> str:
    if winner is not good[0]:
        return "chosen: a tie with the fastest, with fewer changes from the minimal candidate"
    base = next((rate for trial, rate, _ in good if trial.candidate == minimal), 0.0)
    if base and winner[0].candidate != minimal:
        return f"chosen: {winner[1] / base:.2f}× the minimal candidate"
    own = (t.remedy for t in trials if t.candidate == winner[0].candidate)
    remedy = next((remedy for remedy in own if remedy is not None), None)
    if remedy is not None:
        return f"chosen: {remedy.describe()}"
    return "chosen: the fastest"


def _why_lost(rate: float, best: float) -> str:
    behind = 1 - rate / best
    if abs(behind) <= TIE:
        return "a tie within noise, but further from the minimal candidate"
    return f"{behind:.0%} slower than the chosen one"


def _why_failed(trial: Trial, answered_by: int = 0) -> str:
    title = trial.diagnosis.title if trial.diagnosis is not None else ""
    why = f"failed: {title or trial.detail or trial.outcome.value}"
    return f"{why}; what was done about it: trial {answered_by}" if answered_by else why
