"""The finals of a search: who may win is measured with the base in rounds, then without its parts.

What is decided stands in `core/contest.py` and `core/choose.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from enginehouse.core.allot import LEAST_ROUNDS
from enginehouse.core.builds import FIRST_CANDIDATES
from enginehouse.core.candidate import Candidate
from enginehouse.core.choose import choose
from enginehouse.core.contest import (
    ABLATION,
    FINAL,
    Table,
    ablations,
    finalists,
    is_compared,
    is_disturbed,
)
from enginehouse.core.propose import Proposal

if TYPE_CHECKING:
    from enginehouse.trials.search import Hunt

FINALS_SHARE = 0.92
MOST_ROUNDS = 6


class Finals:
    """The finals of one search."""

    def __init__(self, hunt: Hunt) -> None:
        self._hunt = hunt

    async def run(self) -> None:
        """Measure the best and the base in rounds until noise no longer hides who is best.

        Who would win has its answers judged first; whose answers break is refused and replaced.
        """
        hunt = self._hunt
        if not hunt.trials:
            return
        base = hunt.base()
        entered = await self._admit()
        if len(entered) < 2:
            return
        rounds_s = LEAST_ROUNDS * sum(map(hunt.whole_s, entered))
        if hunt.left_s() < rounds_s and base in entered[1:]:
            entered = (entered[0], base)  # rounds tell more than another that is nearly as good
        await self.hold(entered, is_hurried=len(hunt.trials) <= FIRST_CANDIDATES)

    async def hold(self, entered: Sequence[Candidate], is_hurried: bool) -> None:
        """Measure finalists in rounds; a hurried first round may go beyond the budget.

        Who fails is not measured again: a table of whole rounds has no place for it. What something
        else on the machine disturbed is, once, while there is time.
        """
        hunt = self._hunt
        for number in range(MOST_ROUNDS):
            needed_s = sum(map(hunt.whole_s, entered))
            share = 1.0 if number < LEAST_ROUNDS else FINALS_SHARE
            share = 2.0 if is_hurried and number == 0 else share
            if not entered or hunt.left_s(share) < needed_s:
                return
            order = list(entered)
            random.Random(f"{hunt.seed}/{number}").shuffle(order)
            for place, candidate in enumerate(order):
                if not await self._measure(candidate, number + 1, order[place:]):
                    entered = tuple(one for one in entered if one != candidate)
            is_enough = number + 1 >= LEAST_ROUNDS
            if is_enough and Table.of(hunt.trials, entered).is_decided():
                return

    async def _measure(self, candidate: Candidate, number: int, rest: Sequence[Candidate]) -> bool:
        """Measure one in a round, return whether it served.

        Once more when it was disturbed and the rest of the round, itself first, has the time.
        """
        hunt = self._hunt
        own = (t for t in hunt.known() if t.candidate == candidate)
        remedy = next((t.remedy for t in own if t.remedy), None)
        proposal = Proposal(candidate, f"finals, round {number}", remedy=remedy)
        tried = await hunt.attempt(proposal, hunt.build_of(candidate), FINAL)
        rest_s = sum(map(hunt.whole_s, rest))
        if tried.has_measurement and is_disturbed(tried) and hunt.left_s() > rest_s:
            again = replace(proposal, reason=f"{proposal.reason}, again: it was disturbed")
            tried = await hunt.attempt(again, hunt.build_of(candidate), FINAL)
        return tried.has_measurement

    async def _admit(self) -> tuple[Candidate, ...]:
        """Return the finalists whose answers are good enough."""
        hunt = self._hunt
        while True:
            entered = finalists(hunt.known_here(), hunt.base(), hunt.most_in_finals, hunt.refused)
            for candidate in entered:
                if not await hunt.judge(candidate):
                    break
            else:
                return entered

    async def ablate(self) -> None:
        """Measure the winner without each of its settings, where no trial shows it yet."""
        hunt = self._hunt
        if not hunt.trials:
            return
        base = hunt.base()
        ranked = choose(hunt.trials, base, hunt.refused)
        if not ranked or not ranked[0].trial.has_measurement:
            return
        winner = ranked[0].trial.candidate
        build = hunt.build_of(winner)
        place = hunt.lab.place(build)
        for settings, without in ablations(winner, base):
            if hunt.left_s() < hunt.whole_s(winner):
                return
            seen = is_compared(hunt.trials, winner, without)
            if seen or place.refuse(without) is not None:
                continue
            names = ", ".join(name for name, _ in settings) or "the default"
            await hunt.attempt(Proposal(without, f"what {names} brings"), build, ABLATION)
