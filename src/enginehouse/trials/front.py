"""Several workloads in one search: each explores in its share of the time, the finals are common.

What is decided stands in `core/front.py`. Every search has its own clock, which stands still while
another one has the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.core.allot import LEAST_ROUNDS
from enginehouse.core.candidate import Candidate
from enginehouse.core.front import Searched, entrants
from enginehouse.trials.contracts import Watch
from enginehouse.trials.finals import Finals
from enginehouse.trials.search import MOST_IN_FINALS, Hunt


@dataclass
class FrontHunt:
    """The searches of several workloads, by the workloads' names, in the order of asking."""

    hunts: Mapping[str, Hunt]
    watch: Watch

    async def run(self) -> None:
        """Search under each workload, then measure who may be on the front under every one.

        Answers do not depend on the workload: who is refused by one search is refused by all.
        """
        refused, keys = next((h.refused, h.refused_keys) for h in self.hunts.values())
        for hunt in self.hunts.values():
            hunt.refused, hunt.refused_keys = refused, keys
        for name, hunt in self.hunts.items():
            self.watch.on_step(f"searching under {name} for {hunt.budget_s:.0f} s")
            hunt.guests = len(self.hunts) - 1
            hunt.hints = self._best_so_far()
            await hunt.explore()
            hunt.pause()
            self._pass_on(hunt)
        if not any(hunt.trials for hunt in self.hunts.values()):
            return
        entered = await self._admit()
        for name, hunt in self.hunts.items():
            hunt.resume()
            mine = tuple(c for c in entered if self._fits(name, hunt, c))
            if len(mine) > 1:
                self.watch.on_step(f"finals under {name}: {len(mine)} candidates of all workloads")
                await Finals(hunt).hold(mine, is_hurried=True)
            hunt.pause()
        for hunt in self.hunts.values():
            hunt.resume()
            await Finals(hunt).ablate()
            hunt.pause()

    def _pass_on(self, ended: Hunt) -> None:
        """Give what an exhausted search did not need for exploring to those that come after it."""
        following = [hunt for hunt in self.hunts.values() if not hunt.trials]
        ended.resume()
        spare_s = ended.exploring_s() - ended.ends_with_a_trial_s()
        ended.pause()
        if spare_s > 0 and following:
            ended.budget_s -= spare_s
            for hunt in following:
                hunt.budget_s += spare_s / len(following)

    def known(self) -> tuple[Searched, ...]:
        """Return what each search knows, of earlier ones too."""
        return tuple(
            Searched(name, hunt.known_here(), hunt.base(), hunt.refused)
            for name, hunt in self.hunts.items()
        )

    def _best_so_far(self) -> tuple[Candidate, ...]:
        """Return the best of each search that has explored."""
        found = (hunt.best() for hunt in self.hunts.values() if hunt.trials)
        return tuple(dict.fromkeys(best for best in found if best is not None))

    async def _admit(self) -> tuple[Candidate, ...]:
        """Return who goes into the finals: of good answers, and as many as there is time for."""
        most = MOST_IN_FINALS * len(self.hunts) + 1
        while True:
            entered = entrants(self.known(), most)
            least = min(len(self.hunts) + 1, len(entered))
            while len(entered) > least and not self._have_time(entered):
                entered = entered[:-1]
            if await self._are_sound(entered):
                return entered

    def _have_time(self, entered: tuple[Candidate, ...]) -> bool:
        return all(
            hunt.budget_s - (hunt.paused_at - hunt.began)
            >= LEAST_ROUNDS * sum(hunt.whole_s(one) for one in entered)
            for hunt in self.hunts.values()
        )

    async def _are_sound(self, entered: tuple[Candidate, ...]) -> bool:
        """Have every search judge the entrants; an exam that one has put holds for all."""
        for hunt in self.hunts.values():
            hunt.resume()
            verdicts = [await hunt.judge(candidate) for candidate in entered]
            hunt.pause()
            if not all(verdicts):
                return False
        return True

    def _fits(self, name: str, hunt: Hunt, candidate: Candidate) -> bool:
        build = next(b for b in hunt.builds if b.digest == candidate.build_digest)
        refusal = hunt.lab.place(build).refuse(candidate)
        if refusal is not None:
            self.watch.on_step(f"not measured under {name}: {refusal.reason}")
        return refusal is None
