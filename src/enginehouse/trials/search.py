"""The search: every build gives a token, the ladder is climbed, the space sampled, finals held.

What is decided stands in `core` (`propose`, `contest`, `choose`); this drives it against a `Lab`,
which is the machine in earnest and a stored grid in `benchmarks/search_grid.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from enginehouse.core.allot import finals_reserve_s, whole_trial_s
from enginehouse.core.builds import (
    FIRST_CANDIDATES,
    base_found,
    fastest_first,
    following_build,
    overrun_s,
    space_of,
)
from enginehouse.core.candidate import Build, Candidate, Settings, answer_key, precision_key
from enginehouse.core.contest import (
    BAR,
    EXPLORE,
    MINIMAL,
    PROOF,
    REFERENCE,
    WHOLE,
    explored_rates,
    finalists,
    is_disturbed,
    undisturbed,
)
from enginehouse.core.propose import Proposal, base_of, propose, throughput
from enginehouse.core.trial import Outcome, Trial
from enginehouse.trials.contracts import Lab, Watch
from enginehouse.trials.finals import Finals
from enginehouse.trials.ladder import Ladder
from enginehouse.trials.sampler import Sampler

EXAM_S = 12.0
"""What two exams are taken to cost before one was seen: about 8 s each for a small model."""
LEAST_CANDIDATES, LEAST_CANDIDATES_SHARE = 4, 0.5
"""So many candidates are tried before time is kept for finals, within this share of the budget: the
minimal one, and what is known to bring most (on a CPU weights, slots, attention, drafting)."""
MOST_IN_FINALS = 2
LONG_BUDGET_S = 900.0
"""From here on the finals hold one more: there is time to be less sure of what was explored."""
LONGER = 1.25
"""How much longer than the last trial the next one may take."""
MOST_RETRIES, DISTURBED_SHARE = 6, 0.5
"""How often an exploring trial that was disturbed is made again, within this share of the budget;
no more once the second one was disturbed as well."""
MOST_REFUSED = 2
"""Weights that were refused under so many other settings are not sampled any more."""
REFERENCE_EVERY = 10
DRIFT = 0.1
WINDOW_SHARE = 1 / 36
LEAST_WINDOW_S, MOST_WINDOW_S = 6.0, 30.0
FINAL_WINDOW = 1.5
NO_TIME_TO_JUDGE = "its answers may differ, and the budget left no time to judge them"


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
    sound_keys: set[Settings] = field(default_factory=set)
    hints: tuple[Candidate, ...] = ()
    guests: int = 0
    """How many candidates of other searches will be in the finals, which time is kept for."""
    paused_at: float = 0.0
    retries_left: int = MOST_RETRIES

    async def run(self) -> None:
        """Search within the budget; cancelling keeps every finished trial's record."""
        await self.explore()
        finals = Finals(self)
        await finals.run()
        await finals.ablate()

    async def explore(self) -> None:
        """Do all that comes before the finals; `hints` are tried before anything is built."""
        self.began = self.lab.now()
        self.bases = {build.digest: self.lab.minimal(build) for build in self.builds}
        for build in self.builds:
            await self._first_token(build)
        await self._try_hints()
        ladder = Ladder(self)
        await ladder.climb()
        await self._sample([build for build in self.served() if ladder.may_win(build.engine)])

    def pause(self) -> None:
        """Stop this search's clock, while another one has the machine."""
        self.paused_at = self.lab.now()

    def resume(self) -> None:
        """Go on with this search's clock."""
        self.began += self.lab.now() - self.paused_at

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

    def best(self, trials: Sequence[Trial] | None = None) -> Candidate | None:
        """Return the fastest candidate that was explored and is not refused."""
        trials = self.known() if trials is None else trials
        rates = {i: r for i, r in explored_rates(trials).items() if i not in self.refused}
        if not rates:
            return None
        best = max(rates, key=lambda id: rates[id])
        return next(t.candidate for t in trials if t.candidate.id == best)

    def best_of(self, engine: str) -> Candidate | None:
        """Return the fastest of one engine's candidates."""
        return self.best([t for t in self.known() if t.candidate.engine == engine])

    def known(self) -> tuple[Trial, ...]:
        """Return the trials of this search and of earlier ones."""
        return (*self.earlier, *self.trials)

    def known_here(self) -> tuple[Trial, ...]:
        """Return those of them whose builds are still here."""
        here = {build.digest for build in self.builds}
        return tuple(t for t in self.known() if t.candidate.build_digest in here)

    def base(self) -> Candidate:
        """Return what everything is compared with: the first that gave a token in this search."""
        first = next((t.candidate for t in self.trials if t.has_measurement), None)
        return first or self.bases[self.builds[0].digest]

    def ends_with_a_trial_s(self, engine: str = "") -> float:
        """Return how long the next trial that explores may take: like the last one, and a bit.

        The last one of the engine where one is given: some start in a second, some in a minute.
        """
        measured = [t for t in self.trials if t.has_measurement]
        own = [t for t in measured if t.candidate.engine == engine] or measured
        return LONGER * own[-1].duration_s if own else 0.0

    def exploring_s(self) -> float:
        """Return the seconds left for exploring: the finals keep what they are likely to take.

        Not for an engine that is far behind: what it needs to come near is time to explore.
        """
        base = self.base()
        entered = finalists(self.known_here(), base, self.most_in_finals, self.refused, BAR)
        lengths = [self.whole_s(one) for one in entered or (base,)]
        lengths[1:1] = [max(lengths)] * self.guests
        exams = sum(not self.lab.is_judged(one, base) for one in entered)
        reserve_s = finals_reserve_s(lengths, exams * self.exams_s / 2, self.budget_s)
        return self.left_s() - reserve_s

    @property
    def most_in_finals(self) -> int:
        """How many of the best are measured beside the base."""
        return MOST_IN_FINALS + (self.budget_s >= LONG_BUDGET_S)

    @property
    def window_s(self) -> float:
        """How long an exploring load is measured."""
        return min(MOST_WINDOW_S, max(LEAST_WINDOW_S, WINDOW_SHARE * self.budget_s))

    # trying

    async def attempt(
        self, proposal: Proposal, build: Build, purpose: str, rivals: str = ""
    ) -> Trial:
        """Try a candidate, once more when it was disturbed while it explored.

        It is given up when it is far behind the best; with `rivals`, behind that engine's best.
        """
        trial = await self._try_once(proposal, build, purpose, rivals)
        if purpose in WHOLE or not self._is_worth_another(trial):
            return trial
        self.retries_left -= 1
        again = replace(proposal, reason=f"{proposal.reason}, again: it was disturbed")
        tried = await self._try_once(again, build, purpose, rivals)
        if is_disturbed(tried):
            self.retries_left = 0  # the machine is busy: it will not be calm for the next one
        return tried

    def _is_worth_another(self, trial: Trial) -> bool:
        """Whether an exploring trial says little, since something else used the machine."""
        tells = trial.has_measurement or trial.outcome is Outcome.PRUNED
        has_time = self.left_s(DISTURBED_SHARE) > LONGER * trial.duration_s
        return tells and is_disturbed(trial) and self.retries_left > 0 and has_time

    async def _try_once(self, proposal: Proposal, build: Build, purpose: str, rivals: str) -> Trial:
        label = self._label(proposal.candidate)
        best = self.best()
        if best is not None:
            rate = explored_rates(self.known())[best.id]
            self.watch.on_progress(self.left_s(), self._label(best), rate)
        else:
            self.watch.on_progress(self.left_s(), "", 0.0)
        self.watch.on_trial_start(f"{label} ({proposal.reason})", len(self.trials) + 1)
        # a build's minimal candidate has its figure whatever others do: its levers build on it
        may_be_given_up = purpose not in (*WHOLE, REFERENCE, MINIMAL)
        others = [t for t in self.trials if rivals in ("", t.candidate.engine)]
        self.lab.pace_of(self.best(others) if may_be_given_up else None)
        window_s = self.window_s * (FINAL_WINDOW if purpose in WHOLE else 1.0)
        trial = await self.lab.run(proposal, build, window_s, purpose)
        self.trials.append(trial)
        self.watch.on_trial_end(trial, label)
        return trial

    def _label(self, candidate: Candidate) -> str:
        build = next((b for b in self.builds if b.digest == candidate.build_digest), None)
        if build is None:
            return candidate.describe_difference(self.base()) or "minimal"
        label = candidate.describe_difference(self.lab.minimal(build)) or "minimal"
        return f"{build.label}: {label}" if len(self.builds) > 1 else label

    def build_of(self, candidate: Candidate) -> Build:
        """Return the build of a candidate of this search."""
        return next(b for b in self.builds if b.digest == candidate.build_digest)

    # the steps

    async def _first_token(self, build: Build) -> None:
        """Try a build's minimal candidate, and what its remedies lead to, until a token comes.

        Once a build of the same engine was measured, a token is all that is asked for: the engine
        is known, and time for a whole load is better spent on what may win.
        """
        measured = any(t.has_measurement and t.build.engine == build.engine for t in self.trials)
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
            own.append(await self.attempt(proposal, build, PROOF if measured else MINIMAL))
        self.bases[build.digest] = base_of(own, minimal)

    def served(self) -> tuple[Build, ...]:
        """Return the builds that gave a token in this search, the fastest first."""
        owns: dict[str, list[Trial]] = {build.digest: [] for build in self.builds}
        for trial in self.trials:
            owns[trial.candidate.build_digest].append(trial)
        return fastest_first(self.builds, owns)

    async def _try_hints(self) -> None:
        """Try what another workload's search found best."""
        served = {build.digest for build in self.served()}
        for candidate in self.hints:
            is_known = any(t.candidate == candidate for t in self.known())
            if is_known or candidate.build_digest not in served or not self.may_explore():
                continue
            build = self.build_of(candidate)
            if self.lab.place(build).refuse(candidate) is None:
                proposal = Proposal(candidate, "the best under another workload")
                await self.attempt(proposal, build, EXPLORE)
                if self.best() == candidate:
                    await self.judge_weights(candidate)

    async def judge_weights(self, candidate: Candidate) -> None:
        """Judge new weights at once, since much would be built on them.

        What else may change answers changes them little, and is judged in who enters the finals.
        """
        key, base = precision_key(candidate), precision_key(self.base())
        if key not in (base, *self.sound_keys) and await self.judge(candidate):
            self.sound_keys.add(key)

    async def judge(self, candidate: Candidate) -> bool:
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
        self.refused.update(dict.fromkeys({*same, candidate.id}, why))
        self.watch.on_step(f"refused: {self._label(candidate)}: {why}")
        return False

    def may_explore(self, engine: str = "", kept_s: float = 0.0) -> bool:
        """Whether there is time for another trial that explores, beside what is kept for others."""
        trial_s = self.ends_with_a_trial_s(engine) + kept_s
        explored = sum(trial.outcome is not Outcome.PROVEN for trial in self.trials)
        if explored < FIRST_CANDIDATES:
            return self.left_s(2.0) > trial_s
        if explored < LEAST_CANDIDATES:
            return self.left_s(LEAST_CANDIDATES_SHARE) > trial_s
        return self.exploring_s() > trial_s

    async def _sample(self, served: Sequence[Build]) -> None:
        """Sample the space of builds that may win, and look at the base again now and then."""
        if not served:
            return
        places = {build.digest: self.lab.place(build) for build in served}
        bases = {build.digest: self.bases[build.digest] for build in served}
        sampler = Sampler(bases, space_of(served, bases, places), self.seed)
        for trial in self.known():
            if trial.outcome not in (Outcome.INTERRUPTED, Outcome.PROVEN):
                sampler.learn(trial.candidate, throughput(trial))

        timely: set[str] = set()

        def is_allowed(candidate: Candidate) -> bool:
            if answer_key(candidate) in self.refused_keys or self._is_hopeless(candidate):
                return False
            is_possible = places[candidate.build_digest].refuse(candidate) is None
            return is_possible and candidate.engine in timely

        while timely := {build.engine for build in served if self.may_explore(build.engine)}:
            if len(self.trials) % REFERENCE_EVERY == REFERENCE_EVERY - 1:
                await self._look_at_the_base()
                continue
            candidate = sampler.ask(is_allowed)
            if candidate is None:
                self.watch.on_step(
                    "every candidate of the space that fits, in memory and in time, has been tried"
                )
                return
            proposal = Proposal(candidate, "what was measured points here")
            trial = await self.attempt(proposal, self.build_of(candidate), EXPLORE)
            sampler.learn(candidate, throughput(trial) if trial.measurement else 0.0)
            if self.best() == candidate:
                await self.judge_weights(candidate)

    def _is_hopeless(self, candidate: Candidate) -> bool:
        """Whether answers of these weights and caches were refused with two other settings."""
        tried = [t.candidate for t in self.trials if t.candidate.id in self.refused]
        key = precision_key(candidate)
        return len({answer_key(one) for one in tried if precision_key(one) == key}) >= MOST_REFUSED

    async def _look_at_the_base(self) -> None:
        base = self.base()
        first = next(t for t in self.trials if t.candidate.id == base.id and t.has_measurement)
        again = await self.attempt(
            Proposal(base, "has the machine changed?"), self.build_of(base), REFERENCE
        )
        if again.has_measurement and not is_disturbed(again):
            change = throughput(again) / throughput(first) - 1
            if abs(change) > DRIFT:
                self.watch.on_step(
                    f"the machine has drifted: the first candidate is {change:+.0%} now; "
                    "what was explored before and after is compared with care"
                )

    def whole_s(self, candidate: Candidate) -> float:
        """Return how long a whole trial of a candidate takes: by its last one, else predicted.

        Whom only another search knows is taken to be as fast as the base.
        """
        known = [t for t in undisturbed(self.known()) if t.has_measurement]
        mine = set(map(id, self.trials))
        own = [t for t in known if t.candidate == candidate and id(t) in mine]
        whole = [t.duration_s for t in own if t.purpose in WHOLE]
        if whole:
            return whole[-1]
        own = own or [t for t in known if t.candidate == candidate]
        own = own or [t for t in known if t.candidate == self.base()]
        if not own:
            return 0.0
        own.sort(key=throughput)
        place = self.lab.place(self.build_of(candidate))
        return whole_trial_s(own[len(own) // 2], place.workload, FINAL_WINDOW * self.window_s)
