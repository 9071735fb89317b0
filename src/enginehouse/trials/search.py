"""The search: every build gives a token, the ladder is climbed, the space sampled, finals held.

What is decided stands in `core` (`propose`, `contest`, `choose`); this drives it against a `Lab`,
which is the machine in earnest and a stored grid in `benchmarks/search_grid.py`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from enginehouse.core.candidate import Build, Candidate, Settings, answer_key
from enginehouse.core.choose import choose
from enginehouse.core.contest import (
    ABLATION,
    EXPLORE,
    FINAL,
    MINIMAL,
    REFERENCE,
    Table,
    ablations,
    explored_rates,
    finalists,
)
from enginehouse.core.propose import Place, Proposal, base_of, propose, throughput
from enginehouse.core.remedies import ACTIONS, NEXT_BUILD
from enginehouse.core.space import Dimension, dimensions_of
from enginehouse.core.trial import AppliedRemedy, Outcome, Trial
from enginehouse.trials.sampler import Sampler

FIRST_CANDIDATES = 3
EXPLORING_SHARE = 0.5
"""How much of the budget the ladder and the sampler may take; exams, finals and ablations have the
rest."""
EXAM_S = 12.0
"""What two exams are taken to cost before one was seen: about 8 s each for a small model."""
FINALS_SHARE = 0.92
MOST_ROUNDS = 6
MOST_IN_FINALS = 2
LONG_BUDGET_S = 900.0
"""From here on the finals hold one more: there is time to be less sure of what was explored."""
REFERENCE_EVERY = 10
DRIFT = 0.1
WINDOW_SHARE = 1 / 36
LEAST_WINDOW_S, MOST_WINDOW_S = 6.0, 30.0
FINAL_WINDOW = 1.5
NO_TIME_TO_JUDGE = "its answers may differ, and the budget left no time to judge them"


class Watch(Protocol):
    """Who is told how a search goes."""

    def on_step(self, text: str) -> None:
        """Take one sentence on what happens next or was refused."""

    def on_trial_start(self, label: str, number: int) -> None:
        """Take the start of a trial."""

    def on_trial_end(self, trial: Trial, label: str) -> None:
        """Take a trial's record."""


class Lab(Protocol):
    """Where candidates are tried, with a clock in seconds."""

    def now(self) -> float:
        """Return the time."""

    def place(self, build: Build) -> Place:
        """Return what proposals for a build rest on."""

    def minimal(self, build: Build) -> Candidate:
        """Return a build's minimal candidate."""

    def pace_of(self, candidate: Candidate | None) -> None:
        """Hold the next loads against this candidate's pace, against none's for None."""

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        """Try a candidate and return its record."""

    def is_judged(self, candidate: Candidate, base: Candidate) -> bool:
        """Whether a verdict on a candidate is known without an exam."""

    async def judge(self, candidate: Candidate, base: Candidate) -> str:
        """Judge a candidate's answers by the base's; say why it is refused, empty when good."""


@dataclass
class Hunt:
    """One search under way."""

    lab: Lab
    builds: tuple[Build, ...]
    budget_s: float
    watch: Watch
    seed: int = 0
    earlier: tuple[Trial, ...] = ()
    trials: list[Trial] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    bases: dict[str, Candidate] = field(default_factory=dict)
    began: float = 0.0
    exams_s: float = EXAM_S
    refused_keys: set[Settings] = field(default_factory=set)

    async def run(self) -> None:
        """Search within the budget; cancelling keeps every finished trial's record."""
        self.began = self.lab.now()
        self.bases = {build.digest: self.lab.minimal(build) for build in self.builds}
        for build in self.builds:
            await self._first_token(build)
        await self._climb()
        await self._sample()
        await self._finals()
        await self._ablate()

    async def run_first(self) -> None:
        """Try minimal candidates until one of the builds gives a token."""
        self.began = self.lab.now()
        self.bases = {build.digest: self.lab.minimal(build) for build in self.builds}
        for build in self.builds:
            await self._first_token(build)
            if base_found(self.trials):
                return

    # what is known

    def left_s(self, share: float = 1.0) -> float:
        """Return the seconds left of a share of the budget."""
        return self.began + share * self.budget_s - self.lab.now()

    def own(self, build: Build) -> list[Trial]:
        """Return all trials of a build, earlier searches' first."""
        every = (*self.earlier, *self.trials)
        return [t for t in every if t.candidate.build_digest == build.digest]

    def best(self) -> Candidate | None:
        """Return the fastest candidate that was explored and is not refused."""
        rates = {i: r for i, r in explored_rates(self.known()).items() if i not in self.refused}
        if not rates:
            return None
        best = max(rates, key=lambda id: rates[id])
        return next(t.candidate for t in self.known() if t.candidate.id == best)

    def known(self) -> tuple[Trial, ...]:
        """Return the trials of this search and of earlier ones."""
        return (*self.earlier, *self.trials)

    def base(self) -> Candidate:
        """Return what everything is compared with: the first that gave a token in this search."""
        first = next((t.candidate for t in self.trials if t.has_measurement), None)
        return first or self.bases[self.builds[0].digest]

    def ends_with_a_trial_s(self) -> float:
        """Return how long the next trial may take, judged by those before."""
        lengths = sorted(t.duration_s for t in self.trials if t.measurement is not None)
        return lengths[len(lengths) * 3 // 4] if lengths else 0.0

    @property
    def window_s(self) -> float:
        """How long an exploring load is measured."""
        return min(MOST_WINDOW_S, max(LEAST_WINDOW_S, WINDOW_SHARE * self.budget_s))

    # trying

    async def _try(self, proposal: Proposal, build: Build, purpose: str) -> Trial:
        minimal = self.lab.minimal(build)
        label = proposal.candidate.describe_difference(minimal) or "minimal"
        if len(self.builds) > 1:
            label = f"{build.label}: {label}"
        self.watch.on_trial_start(f"{label} ({proposal.reason})", len(self.trials) + 1)
        is_careful = purpose in (FINAL, ABLATION, REFERENCE)
        # a build's minimal candidate has its figure whatever the others do: its levers build on it
        is_whole = is_careful or purpose == MINIMAL
        self.lab.pace_of(None if is_whole else self.best())
        window_s = self.window_s * (FINAL_WINDOW if is_careful else 1.0)
        trial = await self.lab.run(proposal, build, window_s, purpose)
        self.trials.append(trial)
        self.watch.on_trial_end(trial, label)
        return trial

    def _build_of(self, candidate: Candidate) -> Build:
        return next(b for b in self.builds if b.digest == candidate.build_digest)

    # the steps

    async def _first_token(self, build: Build) -> None:
        """Try a build's minimal candidate, and what its remedies lead to, until a token comes."""
        minimal = self.lab.minimal(build)
        own: list[Trial] = []
        while not own or (not base_found(own) and self.left_s() > overrun_s(own, self.budget_s)):
            proposal = propose(self.lab.place(build), minimal, own)
            if proposal is None:
                break
            if proposal.refusal is not None:
                self.watch.on_step(f"{build.label} is not tried: {proposal.refusal.reason}")
                break
            proposal = proposal if own else following_build(proposal, self.trials)
            own.append(await self._try(proposal, build, MINIMAL))
        self.bases[build.digest] = base_of(own, minimal)

    def _served(self) -> tuple[Build, ...]:
        """Return the builds that gave a token in this search, the fastest first."""
        owns: dict[str, list[Trial]] = {build.digest: [] for build in self.builds}
        for trial in self.trials:
            owns[trial.candidate.build_digest].append(trial)
        return fastest_first(self.builds, owns)

    async def _climb(self) -> None:
        """Climb the ladder on the fastest build, each lever on top of the best so far."""
        for build in self._served()[:1]:
            while self._may_explore():
                own = [self._as_refused(trial) for trial in self.own(build)]
                proposal = propose(self.lab.place(build), self.lab.minimal(build), own)
                if proposal is None or proposal.refusal is not None:
                    break
                await self._try(proposal, build, EXPLORE)
                if self.best() == proposal.candidate:  # nothing is built on bad answers
                    await self._judge(proposal.candidate)

    def _as_refused(self, trial: Trial) -> Trial:
        """Return a trial without its figures when its candidate is refused."""
        if trial.candidate.id not in self.refused:
            return trial
        return replace(trial, outcome=Outcome.PRUNED, measurement=None)

    async def _judge(self, candidate: Candidate) -> bool:
        """Have a candidate's answers judged, within the budget; refuse all that answer like it."""
        base, why = self.base(), NO_TIME_TO_JUDGE
        if self.lab.is_judged(candidate, base) or self.left_s() > self.exams_s:
            began = self.lab.now()
            why = await self.lab.judge(candidate, base)
            self.exams_s = max(0.5 * self.exams_s, self.lab.now() - began)
        if not why:
            return True
        key = answer_key(candidate)
        self.refused_keys.add(key)
        same = {t.candidate.id for t in self.known() if answer_key(t.candidate) == key}
        self.refused |= dict.fromkeys(same, why)
        label = candidate.describe_difference(base) or "minimal"
        self.watch.on_step(f"refused: {label}: {why}")
        return False

    def _may_explore(self) -> bool:
        if len(self.trials) < FIRST_CANDIDATES:
            return self.left_s(2.0) > self.ends_with_a_trial_s()
        return self.left_s(EXPLORING_SHARE) > self.ends_with_a_trial_s()

    async def _sample(self) -> None:
        """Sample the space of all builds that serve, and look at the base again now and then."""
        served = self._served()
        if not served or not self._may_explore():
            return
        places = {build.digest: self.lab.place(build) for build in served}
        bases = {build.digest: self.bases[build.digest] for build in served}
        sampler = Sampler(bases, space_of(served, bases, places), self.seed)
        for trial in self.known():
            if trial.outcome is not Outcome.INTERRUPTED:
                sampler.learn(trial.candidate, throughput(trial))

        def is_allowed(candidate: Candidate) -> bool:
            if answer_key(candidate) in self.refused_keys:
                return False
            return places[candidate.build_digest].refuse(candidate) is None

        while self._may_explore():
            if len(self.trials) % REFERENCE_EVERY == REFERENCE_EVERY - 1:
                await self._look_at_the_base()
                continue
            candidate = sampler.ask(is_allowed)
            if candidate is None:
                self.watch.on_step("every candidate of the space that fits has been tried")
                return
            proposal = Proposal(candidate, "what was measured points here")
            trial = await self._try(proposal, self._build_of(candidate), EXPLORE)
            sampler.learn(candidate, throughput(trial) if trial.measurement else 0.0)

    async def _look_at_the_base(self) -> None:
        base = self.base()
        first = next(t for t in self.trials if t.candidate.id == base.id and t.has_measurement)
        again = await self._try(
            Proposal(base, "has the machine changed?"), self._build_of(base), REFERENCE
        )
        if again.has_measurement:
            change = throughput(again) / throughput(first) - 1
            if abs(change) > DRIFT:
                self.watch.on_step(
                    f"the machine has drifted: the first candidate is {change:+.0%} now; "
                    "what was explored before and after is compared with care"
                )

    async def _finals(self) -> None:
        """Measure the best and the base in rounds until noise no longer hides who is best.

        Who would win has its answers judged first; whose answers break is refused and replaced.
        """
        most = MOST_IN_FINALS + (self.budget_s >= LONG_BUDGET_S)
        base = self.base()
        entered = await self._admit(base, most)
        if len(entered) < 2:
            return
        for number in range(MOST_ROUNDS):
            needed = sum(self._last_s(c) for c in entered)
            share = FINALS_SHARE if number else 2.0 if len(self.trials) <= FIRST_CANDIDATES else 1.0
            if self.left_s(share) < needed:
                return
            order = list(entered)
            random.Random(f"{self.seed}/{number}").shuffle(order)
            for candidate in order:
                came_from = next(
                    (t.remedy for t in self.known() if t.candidate == candidate and t.remedy), None
                )
                proposal = Proposal(candidate, f"finals, round {number + 1}", remedy=came_from)
                await self._try(proposal, self._build_of(candidate), FINAL)
            if number and Table.of(self.trials, entered).is_decided():
                return

    async def _admit(self, base: Candidate, most: int) -> tuple[Candidate, ...]:
        """Return the finalists whose answers are good enough."""
        here = {build.digest for build in self.builds}
        while True:
            known = [t for t in self.known() if t.candidate.build_digest in here]
            entered = finalists(known, base, most, self.refused)
            for candidate in entered:
                if not await self._judge(candidate):
                    break
            else:
                return entered

    async def _ablate(self) -> None:
        """Measure the winner without each of its settings, where no trial shows it yet."""
        if not self.trials:
            return
        base = self.base()
        ranked = choose(self.trials, base, self.refused)
        if not ranked or not ranked[0].trial.has_measurement:
            return
        winner = ranked[0].trial.candidate
        build = self._build_of(winner)
        place = self.lab.place(build)
        for settings, without in ablations(winner, base):
            if self.left_s() < self._last_s(winner):
                return
            seen = any(t.candidate == without and t.has_measurement for t in self.trials)
            if seen or place.refuse(without) is not None:
                continue
            names = ", ".join(name for name, _ in settings) or "the default"
            await self._try(Proposal(without, f"what {names} brings"), build, ABLATION)

    def _last_s(self, candidate: Candidate) -> float:
        """Return how long a careful trial of a candidate takes, by its last one."""
        own = [t.duration_s for t in self.known() if t.candidate == candidate and t.measurement]
        return (own[-1] if own else 0.0) + (FINAL_WINDOW - 1) * self.window_s


def space_of(
    builds: Sequence[Build], bases: Mapping[str, Candidate], places: Mapping[str, Place]
) -> dict[str, tuple[Dimension, ...]]:
    """Return the dimensions of each engine, spanned by its builds' levers around their bases."""
    spaces = {}
    for engine in {build.engine for build in builds}:
        own = [build for build in builds if build.engine == engine]
        levers = [lever for build in own for lever in places[build.digest].levers()]
        spaces[engine] = dimensions_of([bases[build.digest] for build in own], levers)
    return spaces


def following_build(proposal: Proposal, trials: Sequence[Trial]) -> Proposal:
    """Say of a build's first candidate that it answers what the build before it failed of."""
    last = trials[-1] if trials else None
    if last is None or last.diagnosis is None or any(t.has_measurement for t in trials):
        return proposal
    action = next((a for a in last.diagnosis.actions if a in NEXT_BUILD), None)
    if action is None or proposal.remedy is not None:
        return proposal
    remedy = AppliedRemedy(last.id, last.diagnosis.cause, action, ACTIONS[action])
    return replace(proposal, remedy=remedy, reason=remedy.describe())


def fastest_first(
    builds: Sequence[Build], owns: Mapping[str, Sequence[Trial]]
) -> tuple[Build, ...]:
    """Order the builds that gave a token by what their first candidates measured."""
    served = [build for build in builds if base_found(owns[build.digest])]
    return tuple(sorted(served, key=lambda build: -max(map(throughput, owns[build.digest]))))


def overrun_s(own: Sequence[Trial], budget_s: float) -> float:
    """Return how far a build's first candidates may go beyond the budget, as negative seconds."""
    return -budget_s if len(own) < FIRST_CANDIDATES else 0.0


def base_found(own: Sequence[Trial]) -> bool:
    """Whether a build has produced a token: until then the budget alone bounds its remedies."""
    return any(trial.has_measurement for trial in own)
