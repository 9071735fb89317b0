"""Rank what was measured and say why every loser lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from enginehouse.core.candidate import Candidate, answer_key
from enginehouse.core.contest import (
    FINAL,
    TIE,
    Contribution,
    Table,
    contributions,
    explored_rates,
    undisturbed,
)
from enginehouse.core.interval import Interval
from enginehouse.core.propose import throughput
from enginehouse.core.quality import Quality
from enginehouse.core.trial import Outcome, Trial

HIDDEN = 0.06
"""How much of a gain may be given to noise: beyond it the faster one wins although noise is wide,
since a few rounds on a noisy machine would otherwise give every gain away."""


@dataclass(frozen=True)
class Ranked:
    """One candidate's place: its best-known trial, its rate over its trials, and why.

    `versus` is its rate ÷ the winner's with the 95 % interval, where the finals show one;
    `contributions` say what each setting brought, for the winner only. `quality` is what the exam
    said of its answers, None where none was needed or put.
    """

    trial: Trial
    output_tok_per_s: float
    trials: int
    reason: str
    versus: Interval | None = None
    contributions: tuple[Contribution, ...] = ()
    quality: Quality | None = None


@dataclass(frozen=True)
class _Scored:
    """A candidate's trial nearest its rate, that rate, and how many trials it rests on.

    `explored` is its rate under the loads that explored, which may be shorter than the finals'.
    """

    trial: Trial
    rate: float
    trials: int
    is_final: bool
    explored: float = 0.0

    @property
    def id(self) -> str:
        return self.trial.candidate.id


def choose(
    trials: Sequence[Trial], minimal: Candidate, refused: Mapping[str, str] | None = None
) -> tuple[Ranked, ...]:
    """Rank candidates, best first; then refused ones, given-up ones, and failed ones.

    The first is the winner when it has a measurement. Who was measured again in the finals goes
    before who was not. A finalist that cannot be told from the best, be it by noise or for less
    than 3 %, ties with it, and a tie goes to the one nearer the minimal candidate and smaller.
    `refused` says by candidate id why it may not win although it is fast.
    """
    refused = refused or {}
    answered = {t.remedy.trial_id: t.id for t in reversed(trials) if t.remedy is not None}
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.candidate.id, []).append(trial)
    scored = [_score(group) for group in groups.values()]
    good = [s for s in scored if s.rate > 0 and s.trial.has_measurement and s.id not in refused]
    good.sort(key=lambda s: (not s.is_final, -s.rate))
    ranked = _rank_good(good, minimal, trials) if good else []
    best = ranked[0].output_tok_per_s if ranked else 0.0
    for s in sorted(scored, key=lambda s: -s.rate):
        if s in good:
            continue
        if s.id in refused and s.trial.has_measurement:
            ranked.append(Ranked(s.trial, s.rate, s.trials, f"refused: {refused[s.id]}"))
        elif s.trial.outcome is Outcome.PRUNED:
            ranked.append(Ranked(s.trial, s.rate, s.trials, _why_given_up(s, best)))
        elif s.trial.outcome is Outcome.PROVEN:
            ranked.append(
                Ranked(s.trial, 0.0, s.trials, "gave a token; its speed was not measured")
            )
        else:
            why = _why_failed(s.trial, answered.get(s.trial.id, 0))
            ranked.append(Ranked(s.trial, 0.0, s.trials, why))
    return tuple(replace(r, quality=_quality_of(r.trial.candidate, trials)) for r in ranked)


def _quality_of(candidate: Candidate, trials: Sequence[Trial]) -> Quality | None:
    """Return the newest exam's verdict on the candidate, or on one with the same answers."""
    key = answer_key(candidate)
    found = [t.quality for t in trials if t.quality and answer_key(t.candidate) == key]
    return found[-1] if found else None


def _rank_good(good: list[_Scored], minimal: Candidate, trials: Sequence[Trial]) -> list[Ranked]:
    table = Table.of(trials, [s.trial.candidate for s in good if s.is_final])
    winner = _pick_winner(good, minimal, table)
    brought = contributions(trials, winner.trial.candidate, minimal)
    ranked = [
        Ranked(
            winner.trial, winner.rate, winner.trials,
            _why_won(winner, good, minimal, trials, table), None, brought,
        )
    ]  # fmt: skip
    for s in good:
        if s is not winner:
            versus = table.ratio(s.id, winner.id) if _both_final(s, winner) else None
            why = _why_lost(s, winner, versus)
            ranked.append(Ranked(s.trial, s.rate, s.trials, why, versus))
    return ranked


def _score(group: list[Trial]) -> _Scored:
    """Score by the trials of the finals, else by all that were measured.

    A candidate that once failed loses, but not when a remedy mended the failure for the same
    candidate, as a free port does.
    """
    mended = {t.remedy.trial_id for t in group if t.remedy is not None and t.has_measurement}
    fine = (
        Outcome.MEASURED, Outcome.INTERRUPTED, Outcome.PRUNED, Outcome.EXAMINED, Outcome.PROVEN,
    )  # fmt: skip
    failed = [t for t in group if t.outcome not in fine and t.id not in mended]
    measured = [t for t in group if t.has_measurement]
    given_up = [t for t in group if t.outcome is Outcome.PRUNED]
    if failed or not (measured or given_up):
        return _Scored((failed or group)[-1], 0.0, len(group), False)
    if not measured:
        return _Scored(given_up[-1], throughput(given_up[-1]), len(given_up), False)
    finals = [t for t in measured if t.purpose == FINAL]
    counted = finals or [t for t in undisturbed(group) if t.has_measurement]
    middle = median(throughput(t) for t in counted)
    nearest = min(counted, key=lambda t: abs(throughput(t) - middle))
    explored = explored_rates(measured).get(nearest.candidate.id, 0.0)
    return _Scored(nearest, middle, len(counted), bool(finals), explored)


def _over(one: _Scored, other: _Scored) -> float:
    """Return one's rate ÷ the other's, both under loads of one kind."""
    if one.is_final == other.is_final or not (one.explored and other.explored):
        return one.rate / other.rate
    return one.explored / other.explored


def _both_final(one: _Scored, other: _Scored) -> bool:
    return one.is_final and other.is_final


def _pick_winner(good: list[_Scored], minimal: Candidate, table: Table) -> _Scored:
    best = good[0]
    tied = [s for s in good if s is best or _ties(s, best, table)]
    return min(
        tied,
        key=lambda s: (
            _distance(s.trial.candidate, minimal), s.trial.peak_memory_bytes, -s.rate,
        ),
    )  # fmt: skip


def _ties(s: _Scored, best: _Scored, table: Table) -> bool:
    if s.is_final != best.is_final:
        return False
    versus = table.ratio(s.id, best.id) if s.is_final else None
    if versus is None:
        return s.rate >= (1 - TIE) * best.rate
    return versus.middle >= 1 - TIE or (versus.middle >= 1 - HIDDEN and versus.high >= 1.0)


def _distance(candidate: Candidate, minimal: Candidate) -> int:
    return len(set(candidate.settings) ^ set(minimal.settings))


def _why_won(
    winner: _Scored, good: list[_Scored], minimal: Candidate, trials: Sequence[Trial], table: Table
) -> str:
    gain = _gain_over(winner, good, minimal, table)
    if winner is not good[0]:
        tie = "chosen: a tie with the fastest, with fewer changes from the minimal candidate"
        return f"{tie}; {gain}" if gain else tie
    if gain:
        return f"chosen: {gain}"
    own = (t.remedy for t in trials if t.candidate == winner.trial.candidate)
    remedy = next((remedy for remedy in own if remedy is not None), None)
    return f"chosen: {remedy.describe()}" if remedy is not None else "chosen: the fastest"


def _gain_over(winner: _Scored, good: list[_Scored], minimal: Candidate, table: Table) -> str:
    base = next((s for s in good if s.trial.candidate == minimal), None)
    if base is None or base is winner:
        return ""
    versus = table.ratio(winner.id, base.id) if _both_final(winner, base) else None
    if versus is None:
        share = f"{_over(winner, base):.2f}× the minimal candidate"
        return share if winner.is_final else f"{share}; explored only, without finals"
    sure = f"95 % interval {versus.low:.2f} to {versus.high:.2f}"
    return f"{versus.middle:.2f}× the minimal candidate ({sure})"


def _why_lost(s: _Scored, winner: _Scored, versus: Interval | None) -> str:
    behind = 1 - (versus.middle if versus else _over(s, winner))
    if versus is not None and versus.holds_one:
        shown = f"{-versus.high + 1:+.0%} to {-versus.low + 1:+.0%} slower"
        return f"a tie within noise ({shown}), but further from the minimal candidate"
    if abs(behind) <= TIE:
        return "a tie within 3 %, but further from the minimal candidate"
    if behind < 0:
        return f"{-behind:.0%} faster when it was explored, but not measured again in the finals"
    if versus is None:
        return f"{behind:.0%} slower than the chosen one"
    between = f"{1 - versus.high:.0%} to {1 - versus.low:.0%}"
    return f"{behind:.0%} slower than the chosen one ({between})"


def _why_given_up(s: _Scored, best: float) -> str:
    return f"given up: {s.trial.detail}" if best else f"given up: {s.trial.detail or 'too slow'}"


def _why_failed(trial: Trial, answered_by: int = 0) -> str:
    title = trial.diagnosis.title if trial.diagnosis is not None else ""
    why = f"failed: {title or trial.detail or trial.outcome.value}"
    return f"{why}; what was done about it: trial {answered_by}" if answered_by else why
