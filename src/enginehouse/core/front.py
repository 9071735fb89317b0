"""Several workloads at once: who stands on the Pareto front of their rates, and why others do not.

A candidate is on the front when no other one beats it: is better under one workload and not worse
under any. Rates of different workloads are never compared with one another. What is better is told
by the finals' tables (`core/contest.py`), and a tie there counts as neither better nor worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from enginehouse.core.candidate import Candidate
from enginehouse.core.choose import HIDDEN, Ranked, choose
from enginehouse.core.contest import BAR, FINAL, TIE, Table, explored_rates
from enginehouse.core.interval import Interval
from enginehouse.core.propose import throughput
from enginehouse.core.trial import Trial


@dataclass(frozen=True)
class Searched:
    """What is known of one workload: its trials, what they are compared with, who may not win."""

    workload: str
    trials: tuple[Trial, ...]
    base: Candidate
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Mark:
    """A candidate's rate under one workload.

    `share` is that rate ÷ the best one's there of those that are compared, so above 1 for one that
    is not and was faster; `interval` its 95 % interval, where finals show it.
    """

    workload: str
    tok_per_s: float
    share: float
    interval: Interval | None
    trial_id: int


@dataclass(frozen=True)
class FrontRow:
    """One candidate with its marks; `choice_for` are the workloads that it was chosen for."""

    candidate: Candidate
    trial: Trial
    marks: tuple[Mark, ...]
    is_on_front: bool
    reason: str
    choice_for: tuple[str, ...] = ()
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Front:
    """The front over some workloads, its members first, by their rates under the first workload.

    `is_explored_only` says that no finals were held under all of them, so noise is not known.
    """

    workloads: tuple[str, ...]
    rows: tuple[FrontRow, ...]
    is_explored_only: bool = False

    @property
    def members(self) -> tuple[FrontRow, ...]:
        """Who is on the front."""
        return tuple(row for row in self.rows if row.is_on_front)

    def choice(self, workload: str) -> FrontRow | None:
        """Return what was chosen for a workload."""
        return next((row for row in self.rows if workload in row.choice_for), None)


def entrants(searched: Sequence[Searched], most: int) -> tuple[Candidate, ...]:
    """Return who is worth measuring under every workload, the most wanted first.

    The best of each workload, the bases, whoever is furthest from being bad at any of them, then
    those that came near a best one.
    """
    rates = [_eligible(explored_rates(one.trials), searched) for one in searched]
    by_id = {t.candidate.id: t.candidate for one in searched for t in one.trials}
    best = [max(own.values(), default=0.0) for own in rates]
    firsts = [max(own, key=lambda id: own[id]) for own in rates if own]
    shared = set.intersection(*map(set, rates)) if rates else set()

    def worst(id: str) -> float:
        return min(own[id] / top for own, top in zip(rates, best, strict=True))

    compromise = sorted(shared, key=lambda id: (-worst(id), id))[:1]
    near = [
        (-own[id] / top, id)
        for own, top in zip(rates, best, strict=True)
        for id in own
        if own[id] >= BAR * top
    ]
    bases = [one.base.id for one in searched if one.base.id in by_id]
    wanted = dict.fromkeys((*firsts, *bases, *compromise, *(id for _, id in sorted(near))))
    return tuple(by_id[id] for id in wanted)[:most]


def stand(searched: Sequence[Searched]) -> Front:
    """Build the front from what was measured under each workload.

    Answers do not depend on the workload: who is refused by one is refused by all.
    """
    refused = {id: why for one in searched for id, why in one.refused.items()}
    searched = [replace(one, refused=refused) for one in searched]
    arena = _Arena.of(searched)
    beaten = {
        id: [other for other in arena.ids if arena.beats(other, id)] for id in arena.ids
    }  # fmt: skip
    unbeaten = [id for id in arena.ids if not beaten[id]]
    # ties are not transitive: three can beat one another in a ring, and then none of them is out
    front = unbeaten or list(arena.ids)
    chosen = {one.workload: _chosen(one, arena, front, beaten) for one in searched}
    kept = _without_ties(arena, front, set(chosen.values()), searched[0].base)
    rows = []
    for id in arena.candidates:
        choice_for = tuple(name for name, chosen_id in chosen.items() if chosen_id == id)
        if id in kept:
            reason = _why_on(arena, id, choice_for)
        elif id in arena.ids:
            reason = _why_off(arena, id, kept, beaten[id], searched[0].base)
        else:
            reason = _why_not_compared(id, searched, arena.is_explored_only)
        rows.append(arena.row(id, id in kept, reason, choice_for))
    rows.sort(key=lambda row: (not row.is_on_front, not row.marks, -_first_rate(row)))
    names = tuple(one.workload for one in searched)
    return Front(names, tuple(rows), arena.is_explored_only)


def settled(ranked: tuple[Ranked, ...], front: Front, workload: str) -> tuple[Ranked, ...]:
    """Return a workload's ranking with its choice first, where another workload decided a tie."""
    row = front.choice(workload)
    if row is None or not ranked or ranked[0].trial.candidate == row.candidate:
        return ranked
    others = ", ".join(name for name in front.workloads if name != workload)
    first = next(r for r in ranked if r.trial.candidate == row.candidate)
    was = ranked[0]
    tied = replace(was, reason=f"a tie with the chosen one here, which is better under {others}")
    now = replace(
        first,
        reason=f"chosen: a tie with the fastest here, and better under {others}",
        contributions=(),
    )
    return (now, tied, *(r for r in ranked[1:] if r is not first))


@dataclass(frozen=True)
class _Arena:
    """The rates by workload and candidate, of one kind of load; `ids` have one under all."""

    searched: Sequence[Searched]
    candidates: Mapping[str, Candidate]
    ids: tuple[str, ...]
    rates: Mapping[str, Mapping[str, float]]
    tables: Mapping[str, Table]
    is_explored_only: bool

    @staticmethod
    def of(searched: Sequence[Searched]) -> _Arena:
        finals = {one.workload: _final_rates(one, searched) for one in searched}
        explored = {
            one.workload: _eligible(explored_rates(one.trials), searched) for one in searched
        }
        shared = set.intersection(*(set(own) for own in finals.values()))
        is_explored_only = not shared
        rates = explored if is_explored_only else finals
        shared = shared or set.intersection(*(set(own) for own in rates.values()))
        by_id = {t.candidate.id: t.candidate for one in searched for t in one.trials}
        ids = tuple(sorted(shared))
        tables = {one.workload: Table.of(one.trials, [by_id[id] for id in ids]) for one in searched}
        if not is_explored_only:
            rates = {
                name: {**own, **{id: tables[name].rate(id) for id in ids}}
                for name, own in rates.items()
            }
        seen = {*ids, *(id for own in finals.values() for id in own)}
        for one in searched:
            seen |= {r.trial.candidate.id for r in choose(one.trials, one.base, one.refused)[:1]}
        candidates = {id: by_id[id] for id in sorted(seen)}
        return _Arena(searched, candidates, ids, rates, tables, is_explored_only)

    def ratio(self, name: str, ours: str, theirs: str) -> Interval | None:
        return None if self.is_explored_only else self.tables[name].ratio(ours, theirs)

    def leads(self, name: str, ours: str, theirs: str) -> bool:
        """Whether one is better than another under a workload: by more than a tie.

        Where noise is not known, a lead must be as large as noise may hide elsewhere.
        """
        versus = self.ratio(name, theirs, ours)
        if versus is None:
            return self.rates[name][theirs] < (1 - HIDDEN) * self.rates[name][ours]
        is_hidden = versus.middle >= 1 - HIDDEN and versus.high >= 1.0
        return versus.middle < 1 - TIE and not is_hidden

    def beats(self, ours: str, theirs: str) -> bool:
        names = [one.workload for one in self.searched]
        return any(self.leads(name, ours, theirs) for name in names) and not any(
            self.leads(name, theirs, ours) for name in names
        )

    def ties(self, ours: str, theirs: str) -> bool:
        names = [one.workload for one in self.searched]
        return not any(
            self.leads(name, a, b) for name in names for a, b in ((ours, theirs), (theirs, ours))
        )

    def best(self, name: str) -> str:
        own = self.rates[name]
        return max(self.ids or own, key=lambda id: own[id])

    def row(self, id: str, is_on: bool, reason: str, choice_for: tuple[str, ...]) -> FrontRow:
        marks, peak, shown = [], 0, None
        for one in self.searched:
            own = [t for t in one.trials if t.candidate.id == id and t.has_measurement]
            shown = shown or next(iter(own), None)
            peak = max([peak, *(t.peak_memory_bytes for t in own)])
            rate = self.rates[one.workload].get(id)
            if rate is None:
                continue
            best = self.best(one.workload)
            is_compared = id in self.ids and best in self.ids and best != id
            marks.append(
                Mark(
                    one.workload, rate, rate / self.rates[one.workload][best],
                    self.ratio(one.workload, id, best) if is_compared else None,
                    min(own, key=lambda t: (t.purpose != FINAL, abs(throughput(t) - rate))).id,
                )
            )  # fmt: skip
        every = [t for one in self.searched for t in one.trials if t.candidate.id == id]
        candidate = self.candidates[id]
        trial = shown or every[0]
        return FrontRow(candidate, trial, tuple(marks), is_on, reason, choice_for, peak)


def _eligible(rates: Mapping[str, float], searched: Sequence[Searched]) -> dict[str, float]:
    """Return the rates of those that may win: refused answers are refused under any workload."""
    return {
        id: rate
        for id, rate in rates.items()
        if rate > 0 and not any(id in one.refused for one in searched)
    }


def _final_rates(one: Searched, searched: Sequence[Searched]) -> dict[str, float]:
    """Return who was measured in the finals and never failed, with the median rate."""
    fine = _eligible(explored_rates(one.trials), searched)
    finals: dict[str, list[float]] = {}
    for trial in one.trials:
        if trial.purpose == FINAL and trial.has_measurement and trial.candidate.id in fine:
            finals.setdefault(trial.candidate.id, []).append(throughput(trial))
    return {id: median(values) for id, values in finals.items()}


def _chosen(
    one: Searched, arena: _Arena, front: Sequence[str], beaten: Mapping[str, Sequence[str]]
) -> str:
    """Return whom a workload chooses; "" for none.

    A tie under this workload that one of the front wins by another workload goes to that one.
    """
    ranked = choose(one.trials, one.base, one.refused)
    if not ranked or not ranked[0].trial.has_measurement:
        return ""
    winner = ranked[0].trial.candidate.id
    better = [id for id in beaten.get(winner, ()) if id in front]
    if winner in front or not better:
        return winner
    return max(better, key=lambda id: arena.rates[one.workload][id])


def _without_ties(
    arena: _Arena, front: Sequence[str], chosen: set[str], base: Candidate
) -> tuple[str, ...]:
    """Leave out whoever ties under every workload with another one of the front.

    Who is chosen stays, then who is nearer to the minimal candidate.
    """

    def order(id: str) -> tuple[bool, int, float]:
        sum_of_logs = sum(math.log(own[id]) for own in arena.rates.values())
        return id not in chosen, _distance(arena.candidates[id], base), -sum_of_logs

    kept: list[str] = []
    for id in sorted(front, key=order):
        if id in chosen or not any(arena.ties(id, other) for other in kept):
            kept.append(id)
    return tuple(kept)


def _distance(candidate: Candidate, base: Candidate) -> int:
    return len(set(candidate.settings) ^ set(base.settings))


def _first_rate(row: FrontRow) -> float:
    return row.marks[0].tok_per_s if row.marks else 0.0


def _why_on(arena: _Arena, id: str, choice_for: Sequence[str]) -> str:
    said = [f"chosen for {name}" for name in choice_for]
    for one in arena.searched:
        name, best = one.workload, arena.best(one.workload)
        if name in choice_for:
            continue
        share = 1 - arena.rates[name][id] / arena.rates[name][best]
        if best in arena.ids and arena.leads(name, best, id):
            said.append(f"{share:.0%} slower than the best under {name}")
        else:
            said.append(f"as good as the best under {name}")
    return "; ".join(said)


def _why_off(
    arena: _Arena, id: str, kept: Sequence[str], beaten_by: Sequence[str], base: Candidate
) -> str:
    better = [other for other in kept if other in beaten_by] or list(beaten_by)
    if not better:
        other = next(other for other in kept if arena.ties(id, other))
        return f"a tie with {_name(arena, other, base)} under every workload"

    def gain(other: str) -> float:
        return max(own[other] / own[id] for own in arena.rates.values())

    other = max(better, key=gain)
    leads = [one.workload for one in arena.searched if arena.leads(one.workload, other, id)]
    shares = ", ".join(
        f"{arena.rates[name][other] / arena.rates[name][id] - 1:.0%} faster under {name}"
        for name in leads
    )
    rest = [one.workload for one in arena.searched if one.workload not in leads]
    beside = f", not slower under {', '.join(rest)}" if rest else ""
    return f"{_name(arena, other, base)} is {shares}{beside}"


def _name(arena: _Arena, id: str, base: Candidate) -> str:
    return arena.candidates[id].describe_difference(base) or "the minimal candidate"


def _why_not_compared(id: str, searched: Sequence[Searched], is_explored_only: bool) -> str:
    failed, missing = [], []
    for one in searched:
        if id in explored_rates(one.trials):
            is_whole = any(t.purpose == FINAL and t.candidate.id == id for t in one.trials)
            missing += [] if is_whole or is_explored_only else [one.workload]
        elif any(t.candidate.id == id for t in one.trials):
            failed.append(one.workload)
        else:
            missing.append(one.workload)
    if failed:
        return f"not compared: it failed under {', '.join(failed)}"
    return f"not compared: there was no time to measure it under {', '.join(missing)}"
