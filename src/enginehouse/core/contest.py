"""The finals of a search: who is in them, when they are decided, and what each setting brought.

Finalists are measured in rounds, one after another, so that a drift of the machine hits all. Their
log rates form a table of candidates × rounds; what a candidate's row and a round's column do not
explain is noise, pooled over the table (a two-way layout without repetition), which gives tighter
intervals from few rounds than each pair on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from enginehouse.core.candidate import Candidate, Setting, Settings
from enginehouse.core.interval import Interval, quantile
from enginehouse.core.propose import throughput
from enginehouse.core.trial import Outcome, Trial

MINIMAL, PROOF, EXPLORE, FINAL, ABLATION, REFERENCE, EXAM = (
    "minimal", "proof", "explore", "final", "ablation", "reference", "exam",
)  # fmt: skip
"""What a trial is for."""
WHOLE = (FINAL, ABLATION)
"""What whole requests are measured for; the others' may be shorter (`Workload.shortened`)."""
TIE = 0.03
"""Means closer than this share count as a tie although noise is smaller: not worth a risk."""
BAR = 0.9
"""Who explored at less than this share of the best is not measured again: noise is not so large."""
BAR_OF_ENGINES = 0.6
"""An engine's best enters the finals with this share of the best rate: between engines a short load
tells less than between settings of one (attention over long contexts, say)."""
LEAST_CALM = 2
"""Rounds that have to be undisturbed for the disturbed ones to be left out."""
COUPLED = (("slots", "prefix_sharing"),)
"""Settings that mean nothing without one another, and are taken away together."""


@dataclass(frozen=True)
class Table:
    """The finals so far: each finalist's rates by round, all of the same number of rounds."""

    rates: Mapping[str, tuple[float, ...]]

    @staticmethod
    def of(trials: Sequence[Trial], candidates: Sequence[Candidate]) -> Table:
        """Build the table of whole rounds of the finals' trials, oldest first.

        What something else on the machine disturbed is left out, where two rounds are left then.
        """
        finals = {
            c.id: [
                t
                for t in trials
                if t.candidate.id == c.id and t.purpose == FINAL and t.has_measurement
            ]
            for c in candidates
        }
        calm = {id: [t for t in row if not is_disturbed(t)] for id, row in finals.items()}
        chosen = calm if min(map(len, calm.values()), default=0) >= LEAST_CALM else finals
        rounds = min(map(len, chosen.values()), default=0)
        return Table({id: tuple(map(throughput, row[:rounds])) for id, row in chosen.items()})

    @property
    def rounds(self) -> int:
        """How many whole rounds there are."""
        return min(map(len, self.rates.values()), default=0)

    def rate(self, id: str) -> float:
        """Return a finalist's rate: the geometric mean over the rounds, in tokens per second."""
        return math.exp(mean(math.log(rate) for rate in self.rates[id]))

    def noise(self) -> tuple[float, int]:
        """Return the standard deviation of one log rate, and its degrees of freedom."""
        logs = [[math.log(rate) for rate in row] for row in self.rates.values()]
        rows, columns = len(logs), self.rounds
        degrees = (rows - 1) * (columns - 1)
        if degrees < 1:
            return 0.0, 0
        of_row = [mean(row) for row in logs]
        of_column = [mean(row[j] for row in logs) for j in range(columns)]
        grand = mean(of_row)
        squares = sum(
            (logs[i][j] - of_row[i] - of_column[j] + grand) ** 2
            for i in range(rows)
            for j in range(columns)
        )
        return math.sqrt(squares / degrees), degrees

    def ratio(self, ours: str, theirs: str) -> Interval | None:
        """Return ours ÷ theirs with its 95 % interval; None before two rounds."""
        deviation, degrees = self.noise()
        if not degrees:
            return None
        difference = math.log(self.rate(ours) / self.rate(theirs))
        half = quantile(degrees) * deviation * math.sqrt(2 / self.rounds)
        low, high = math.exp(difference - half), math.exp(difference + half)
        return Interval(math.exp(difference), low, high, self.rounds)

    def is_decided(self) -> bool:
        """Whether noise no longer hides who is best: every other one is worse, or close to it."""
        if self.rounds < 2:
            return False
        best = max(self.rates, key=self.rate)
        ratios = [self.ratio(other, best) for other in self.rates if other != best]
        return all(r is not None and (r.high < 1.0 or r.low > 1 - TIE) for r in ratios)


def is_disturbed(trial: Trial) -> bool:
    """Whether something else on the machine disturbed a measurement."""
    return trial.conditions is not None and bool(trial.conditions.disturbance)


def undisturbed(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Leave out what was disturbed, where the candidate has a calm measurement of the same kind.

    Loads that explore and whole ones are two kinds.
    """
    calm = {_kind(t) for t in trials if t.has_measurement and not is_disturbed(t)}
    return tuple(t for t in trials if not is_disturbed(t) or _kind(t) not in calm)


def _kind(trial: Trial) -> tuple[str, bool]:
    return trial.candidate.id, trial.purpose in WHOLE


def explored_rates(trials: Sequence[Trial]) -> dict[str, float]:
    """Return each measured candidate's median rate by id; a candidate that once failed has none.

    Only trials that explored count, so that loads of one kind are compared; whole loads do for a
    candidate that has no other. What was disturbed does not count beside what was not.
    """
    trials = undisturbed(trials)
    mended = {t.remedy.trial_id for t in trials if t.remedy is not None and t.has_measurement}
    fine = (
        Outcome.MEASURED, Outcome.INTERRUPTED, Outcome.RUNNING, Outcome.EXAMINED, Outcome.PROVEN,
    )  # fmt: skip
    failed = {t.candidate.id for t in trials if t.outcome not in fine and t.id not in mended}
    measured = [t for t in trials if t.has_measurement and t.candidate.id not in failed]
    explored: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    for trial in measured:
        rates = whole if trial.purpose in WHOLE else explored
        rates.setdefault(trial.candidate.id, []).append(throughput(trial))
    return {id: median(values) for id, values in {**whole, **explored}.items()}


def finalists(
    trials: Sequence[Trial],
    base: Candidate,
    most: int,
    refused: Mapping[str, str],
    bar_of_engines: float = BAR_OF_ENGINES,
) -> tuple[Candidate, ...]:
    """Return the best explored candidates and the base, the best first; nobody when that is all.

    Other engines that are near (`bar_of_engines`) have their best one among them, before the best
    engine's second.
    """
    rates = {id: r for id, r in explored_rates(trials).items() if id not in refused}
    if not rates:
        return ()
    best = max(rates.values())
    by_id = {trial.candidate.id: trial.candidate for trial in trials}
    ordered = sorted(rates, key=lambda id: -rates[id])
    others: dict[str, Candidate] = {}
    for one in (by_id[id] for id in ordered if rates[id] >= bar_of_engines * best):
        others.setdefault(one.engine, one)
    firsts = [one for one in others.values() if one.id != base.id]
    rest = [by_id[id] for id in ordered if rates[id] >= BAR * best and id != base.id]
    chosen = [*firsts, *(one for one in rest if one not in firsts)][: max(most, len(firsts))]
    return (*chosen, base) if chosen and base.id in rates else tuple(chosen)


@dataclass(frozen=True)
class Contribution:
    """What one setting (or settings that belong together) of the winner brought.

    `ratio` is the winner's rate ÷ the rate without it; `interval` is None when it is one pair.
    """

    settings: Settings
    without: Settings
    ratio: float
    interval: Interval | None
    trial_ids: tuple[int, ...]


def ablations(winner: Candidate, base: Candidate) -> tuple[tuple[Settings, Candidate], ...]:
    """Return each change from the base with the winner as it would be without it.

    None when the winner is of another build: then the build is what changed.
    """
    if winner.build_digest != base.build_digest:
        return ()
    mine, theirs = dict(winner.settings), dict(base.settings)
    changed = [n for n in sorted({*mine, *theirs}) if mine.get(n) != theirs.get(n)]
    groups: list[tuple[str, ...]] = []
    for name in changed:
        group: tuple[str, ...] = next((g for g in COUPLED if name in g), (name,))
        if group not in groups:
            groups.append(group)
    if len(groups) < 2:
        return ()
    found = []
    for group in groups:
        without: dict[str, Setting | None] = {name: theirs.get(name) for name in group}
        held = tuple((n, mine[n]) for n in group if n in mine)
        found.append((held, winner.with_settings(**without)))
    return tuple(found)


def contributions(
    trials: Sequence[Trial], winner: Candidate, base: Candidate
) -> tuple[Contribution, ...]:
    """Return what each setting of the winner brought, from the trials with and without it.

    Whole loads of both count, else what was explored of both: the two kinds are never compared.
    """
    found = []
    for settings, without in ablations(winner, base):
        ours, theirs = _like_evidence(trials, winner, without)
        if not ours or not theirs:
            continue
        ratio = median(map(throughput, ours)) / median(map(throughput, theirs))
        ids = tuple(t.id for t in (*ours, *theirs))
        held = tuple((n, v) for n, v in without.settings if (n, v) not in winner.settings)
        found.append(Contribution(settings, held, ratio, None, ids))
    return tuple(found)


def is_compared(trials: Sequence[Trial], winner: Candidate, without: Candidate) -> bool:
    """Whether trials show what the winner's setting brought."""
    return all(_like_evidence(trials, winner, without))


def _like_evidence(
    trials: Sequence[Trial], one: Candidate, other: Candidate
) -> tuple[tuple[Trial, ...], tuple[Trial, ...]]:
    """Return trials of both candidates under loads of one kind, whole ones where both have some."""

    def of(candidate: Candidate, is_whole: bool) -> tuple[Trial, ...]:
        own = (t for t in trials if t.candidate.id == candidate.id and t.has_measurement)
        return tuple(t for t in own if (t.purpose in WHOLE) is is_whole)

    pairs = [(of(one, is_whole), of(other, is_whole)) for is_whole in (True, False)]
    return next((pair for pair in pairs if all(pair)), ((), ()))
