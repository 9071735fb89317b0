"""The ladder of every engine that serves: each lever on top of the best so far, build by build.

The engine whose first candidate was fastest is climbed first. Another one gets its turn while it
may still win: its minimal candidate says little of that (vLLM's leaves a core free and compiles
nothing), its first lever, which is what its engine does best here, says more. So do the best one's
settings, where it reads the same files: other weights may serve it far better.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from enginehouse.core.builds import BUILD_HINT, first_answers
from enginehouse.core.candidate import Build, Candidate, Setting
from enginehouse.core.contest import EXPLORE, explored_rates
from enginehouse.core.measurement import scaled
from enginehouse.core.propose import Place, Proposal, propose
from enginehouse.core.trial import Outcome, Trial

if TYPE_CHECKING:
    from enginehouse.trials.search import Hunt

BUILD_NEAR = 0.85
"""With a first answer this near the tuned build's, another build tries the best one's settings."""
CLEARLY_SLOWER = 0.9
"""A build with less than this share of another's rate, with the same settings, is left alone."""
MINIMAL_SHARE, CLIMBED_SHARE = 0.2, 0.6
"""An engine is climbed while it has this share of the best's rate: by its minimal candidate, and
once a lever of its own was tried, other weights where it has them. vLLM's minimal candidate was
seen to make 0.4 of what its tuned one makes, llama.cpp's a quarter (docs/lab-log.md)."""
WEIGHTS = {"quantization"}
QUICK_SHARE = 0.05
"""A minimal candidate is judged early where a trial of its engine takes less of the budget."""
MOST_OTHER_WEIGHTS = 2
"""So many formats are tried on an engine that computes the minimal candidate's wrongly."""
FIRST_STEPS = 3
"""So many trials an engine has for itself before time is kept for others."""
STEPS_OF_OTHERS = 2
"""So many trials are kept for each engine whose turn is still to come."""


class Ladder:
    """The climbing of one search."""

    def __init__(self, hunt: Hunt) -> None:
        self._hunt = hunt
        self._waiting: list[Build] = []
        self._slower: set[str] = set()
        """Builds, by digest, that were clearly slower than another one with the same settings."""

    async def climb(self) -> None:
        """Climb each engine's ladder, the fastest engine's first."""
        firsts: dict[str, Build] = {}
        for build in self._hunt.served():
            firsts.setdefault(build.engine, build)
        self._waiting = list(firsts.values())
        while self._waiting:
            build = self._waiting.pop(0)
            await self._borrow(build)
            await self._climb_engine(build)
        await self._try_on_other_builds(None)

    async def _borrow(self, build: Build) -> None:
        """Try the best candidate of another engine's settings, as far as this one has them."""
        hunt, best = self._hunt, self._hunt.best()
        if best is None or best.engine == build.engine or not self.may_win(build.engine):
            return
        place, minimal = hunt.lab.place(build), hunt.lab.minimal(build)
        theirs = next((one for one in hunt.builds if one.digest == best.build_digest), None)
        if theirs is None or not _read_the_same(place, hunt.lab.place(theirs)):
            return
        names = {tunable.name for tunable in place.engine.tunables} | WEIGHTS
        borrowed = {n: value for n, value in best.settings if n in names and n != "context"}
        candidate = minimal.with_settings(**borrowed)
        is_known = any(trial.candidate == candidate for trial in hunt.known())
        if is_known or not self._has_time(build.engine) or place.refuse(candidate) is not None:
            return
        proposal = Proposal(candidate, "the best one's settings, on another engine")
        await hunt.attempt(proposal, build, EXPLORE, build.engine)
        if hunt.best() == candidate:
            await hunt.judge_weights(candidate)

    async def _climb_engine(self, first: Build) -> None:
        """Climb the ladder on one engine's fastest build.

        With the first thing that helps, builds are tried too whose first answers came about as
        fast, and the ladder goes on where it helps most: what decides between builds (vector units,
        say) shows under the load, and not in one short answer.
        """
        hunt, build, was_compared = self._hunt, first, False
        weights = await self._sound_weights(first)
        while self.may_win(first.engine) and self._has_time(first.engine):
            place = hunt.lab.place(build)
            minimal = hunt.lab.minimal(build).with_settings(**weights)
            proposal = propose(place, minimal, self._known_of(build))
            if proposal is None or proposal.refusal is not None:
                break
            await hunt.attempt(proposal, build, EXPLORE, first.engine)
            if hunt.best_of(first.engine) != proposal.candidate:
                continue
            if hunt.best() == proposal.candidate:
                await hunt.judge_weights(proposal.candidate)
            if not was_compared and hunt.best_of(first.engine) == proposal.candidate:
                was_compared = True
                near = 1 / BUILD_HINT
                build = await self._try_on_other_builds(first.engine, near) or build

    async def _sound_weights(self, build: Build) -> dict[str, Setting]:
        """Return the weights to climb on: the minimal candidate's, unless they break the answers.

        It is judged where it is the best so far, since much would be built on it, and where another
        start for that costs little; else when it enters the finals. An engine may
        compute one format wrongly and others well: then the next best formats are tried.
        """
        hunt, minimal = self._hunt, self._hunt.lab.minimal(build)
        is_quick = hunt.ends_with_a_trial_s(build.engine) < QUICK_SHARE * hunt.budget_s
        if hunt.best() == minimal and is_quick:
            await hunt.judge_weights(minimal)
        if minimal.id not in hunt.refused:
            return {}
        place = hunt.lab.place(build)
        for lever in place.levers():
            of_weights = [s for s in (*lever.steps, *lever.spare) if dict(s).keys() == WEIGHTS]
            for step in of_weights[:MOST_OTHER_WEIGHTS]:
                candidate = minimal.with_settings(**dict(step))
                if place.refuse(candidate) is not None or not self._has_time(build.engine):
                    continue
                await hunt.attempt(Proposal(candidate, lever.why), build, EXPLORE, build.engine)
                if hunt.best() == candidate:
                    await hunt.judge_weights(candidate)
                if hunt.best_of(build.engine) == candidate:
                    return dict(step)
        return {}

    def may_win(self, engine: str) -> bool:
        """Whether an engine is near enough to the best to be climbed, or climbed further."""
        hunt = self._hunt
        best, own = hunt.best(), hunt.best_of(engine)
        if best is None or best.engine == engine:
            return True
        rates = explored_rates(hunt.known())
        minimals = {base.id for base in hunt.bases.values()}
        candidates = [t.candidate for t in hunt.known() if t.candidate.engine == engine]
        tried = {one.id for one in candidates}
        is_climbed = any(one.get("quantization") for one in candidates) or (
            bool(tried - minimals) and not self._has_other_weights(engine)
        )
        # what was refused tells how fast the engine is: with other weights it may be sound
        counted = tried if own is None else {own.id}
        mine = max((rates.get(id, 0.0) for id in counted), default=0.0)
        return mine >= (CLIMBED_SHARE if is_climbed else MINIMAL_SHARE) * rates[best.id]

    def _has_other_weights(self, engine: str) -> bool:
        """Whether an engine's levers hold other weights, which may decide more than its first."""
        hunt = self._hunt
        build = next(one for one in hunt.builds if one.engine == engine)
        return any(
            dict(step).keys() == WEIGHTS
            for lever in hunt.lab.place(build).levers()
            for step in lever.steps
        )

    def _has_time(self, engine: str) -> bool:
        """Whether there is time for a trial beside what is kept for engines that still wait.

        An engine's first steps come before those of slower ones, however long these take to start.
        """
        hunt = self._hunt
        own = [t for t in hunt.trials if t.candidate.engine == engine and t.purpose == EXPLORE]
        if len(own) < FIRST_STEPS:
            return hunt.may_explore(engine)
        waiting = [b.engine for b in self._waiting if self.may_win(b.engine)]
        kept_s = sum(STEPS_OF_OTHERS * hunt.ends_with_a_trial_s(other) for other in waiting)
        return hunt.may_explore(engine, kept_s)

    async def _try_on_other_builds(
        self, engine: str | None, near: float = BUILD_NEAR
    ) -> Build | None:
        """Try the best candidate's settings on builds whose first answer came nearly as fast.

        The best is the engine's where one is given. Return the build of the best candidate then.
        One that was clearly slower with other settings of the best one's is not tried again.
        """
        hunt = self._hunt
        best = hunt.best_of(engine) if engine else hunt.best()
        if best is None:
            return None
        hints = first_answers(hunt.trials)
        for build in hunt.served():
            same = replace(best, build_digest=build.digest)
            hint, ours = (hints.get(digest, 0.0) for digest in (build.digest, best.build_digest))
            is_near = hint >= near * ours > 0 and build.digest not in self._slower
            is_known = any(t.candidate == same for t in hunt.known())
            if build.engine != best.engine or not is_near or is_known:
                continue
            if not hunt.may_explore(build.engine) or hunt.lab.place(build).refuse(same) is not None:
                continue
            await hunt.attempt(Proposal(same, "the best one, on another build"), build, EXPLORE)
            self._compare(best, same)
        now = hunt.best_of(best.engine)
        return hunt.build_of(now) if now is not None else None

    def _compare(self, one: Candidate, other: Candidate) -> None:
        rates = explored_rates(self._hunt.known())
        if rates.get(other.id, 0.0) < CLEARLY_SLOWER * rates.get(one.id, 0.0):
            self._slower.add(other.build_digest)
        elif rates.get(one.id, 0.0) < CLEARLY_SLOWER * rates.get(other.id, 0.0):
            self._slower.add(one.build_digest)

    def _known_of(self, build: Build) -> list[Trial]:
        """Return what the ladder may know of a build: its own trials, and others' supposed here.

        Where another build was measured with the same settings, what they differ by holds for its
        other settings too, so that a ladder which was begun there goes on here.
        """
        own = self._hunt.own(build)
        known = [self._as_known(trial) for trial in own]
        tried = {t.candidate.id for t in own if t.outcome is not Outcome.PROVEN}
        for other in self._hunt.builds:
            ratio = self._ratio(build, other)
            if other.digest == build.digest or ratio is None:
                continue
            for trial in map(self._as_known, self._hunt.own(other)):
                here = replace(trial.candidate, build_digest=build.digest)
                if here.id not in tried and trial.outcome in (Outcome.MEASURED, Outcome.PRUNED):
                    figures = scaled(trial.measurement, ratio) if trial.measurement else None
                    known.append(replace(trial, candidate=here, measurement=figures))
        return known

    def _ratio(self, build: Build, other: Build) -> float | None:
        """Return a build's rate ÷ another's, None where no settings were measured on both."""
        rates = explored_rates(self._hunt.known())
        for trial in self._hunt.own(build):
            theirs = rates.get(replace(trial.candidate, build_digest=other.digest).id)
            ours = rates.get(trial.candidate.id)
            if ours and theirs:
                return ours / theirs
        return None

    def _as_known(self, trial: Trial) -> Trial:
        """Return a trial as the ladder may see it.

        A refused candidate has no figures. A build that only gave a token is taken to be as fast
        as its first answer was beside the measured build's; nothing else rests on that.
        """
        if trial.candidate.id in self._hunt.refused:
            return replace(trial, outcome=Outcome.PRUNED, measurement=None)
        if trial.outcome is not Outcome.PROVEN:
            return trial
        trials = self._hunt.trials
        first = next(
            (t for t in trials if t.has_measurement and t.build.engine == trial.build.engine), None
        )
        if first is None or first.measurement is None:
            return trial
        hint = trial.first_tok_per_s / first.first_tok_per_s if first.first_tok_per_s else 0.0
        supposed = scaled(first.measurement, hint or 1.0)
        return replace(trial, outcome=Outcome.MEASURED, measurement=supposed)


def _read_the_same(one: Place, other: Place) -> bool:
    """Whether two engines read files of the same form."""
    return bool(set(one.engine.formats) & set(other.engine.formats))
