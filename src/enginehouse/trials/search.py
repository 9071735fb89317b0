"""The search: propose, try, and again, until the ladder or the time is used up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.choose import finalists
from enginehouse.core.propose import Proposal, base_of, propose, throughput
from enginehouse.core.remedies import ACTIONS, NEXT_BUILD
from enginehouse.core.trial import AppliedRemedy, Outcome, Trial
from enginehouse.trials.run import Bench, TokenRatio, run_trial

FIRST_CANDIDATES = 3
CONFIRMING = "confirming the best against the minimal one"
CONFIRMATIONS = 2
"""How often the finalists are measured again, in turn: a machine's drift then hits both."""


class Watch(Protocol):
    """Who is told how a search goes."""

    def on_step(self, text: str) -> None:
        """Take one sentence on what happens next or was refused."""

    def on_trial_start(self, label: str, number: int) -> None:
        """Take the start of a trial."""

    def on_trial_end(self, trial: Trial, label: str) -> None:
        """Take a trial's record."""


async def search(
    bench: Bench, builds: Sequence[Build], budget_s: float, watch: Watch
) -> tuple[Trial, ...]:
    """Try candidates of every build within the budget and return the trials' records.

    Every build first gives a token, by remedies if need be; then the levers are tried, on the
    fastest build first. The budget ends proposing, not a trial under way. Time for a pair that
    confirms the best is kept: the highest of several noisy figures is so partly by luck. Where
    trials are long, the first candidates and one such pair may take up to twice the budget, since a
    search that tried one candidate found nothing.
    Cancelling keeps every finished trial's record.
    """
    began = time.monotonic()
    ratio = TokenRatio()
    trials: list[Trial] = []
    minimals = {build.digest: bench.minimal(build) for build in builds}
    bases = dict(minimals)

    async def attempt(proposal: Proposal, build: Build) -> Trial:
        label = proposal.candidate.describe_difference(minimals[build.digest]) or "minimal"
        watch.on_trial_start(f"{label} ({proposal.reason})", len(trials) + 1)
        if proposal.remedy is not None and proposal.remedy.action == "drop-page-cache":
            watch.on_step(bench.drop_page_cache())
        trial = await run_trial(bench, build, proposal.candidate, ratio, proposal.remedy)
        trials.append(trial)
        watch.on_trial_end(trial, label)
        return trial

    def left_s() -> float:
        return began + budget_s - time.monotonic()

    owns: dict[str, list[Trial]] = {build.digest: [] for build in builds}
    for build in builds:
        own = owns[build.digest]
        while not own or (not base_found(own) and left_s() > overrun_s(own, budget_s)):
            proposal = propose(bench.place(build), minimals[build.digest], own)
            if proposal is None:
                break
            if proposal.refusal is not None:
                watch.on_step(f"{build.label} is not tried: {proposal.refusal.reason}")
                break
            own.append(await attempt(proposal if own else following_build(proposal, trials), build))
        bases[build.digest] = base_of(own, minimals[build.digest])
    for build in fastest_first(builds, owns):
        own = owns[build.digest]
        while left_s() > kept_s(trials, budget_s):
            proposal = propose(bench.place(build), minimals[build.digest], own)
            if proposal is None or proposal.refusal is not None:
                break
            own.append(await attempt(proposal, build))
    deadlines = (began + 2 * budget_s, *[began + budget_s] * (CONFIRMATIONS - 1))
    await _confirm(builds, trials, bases, attempt, deadlines)
    return tuple(trials)


async def _confirm(
    builds: Sequence[Build],
    trials: list[Trial],
    bases: Mapping[str, Candidate],
    attempt: _Attempt,
    deadlines: Sequence[float],
) -> None:
    """Measure the best candidate and its base again, in turn, each round by its deadline."""
    by_digest = {build.digest: build for build in builds}
    for ends_at in deadlines:
        best = leader(trials)
        if best is None:
            return
        for candidate in finalists(trials, bases[best.build_digest]):
            if time.monotonic() + longest_s(trials) > ends_at:
                return
            came_from = next(
                (t.remedy for t in trials if t.candidate == candidate and t.remedy), None
            )
            proposal = Proposal(candidate, CONFIRMING, remedy=came_from)
            await attempt(proposal, by_digest[candidate.build_digest])


def leader(trials: Sequence[Trial]) -> Candidate | None:
    """Return the fastest candidate so far, None when none was measured."""
    measured = [trial for trial in trials if trial.has_measurement]
    return max(measured, key=throughput).candidate if measured else None


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


def longest_s(trials: Sequence[Trial]) -> float:
    """Return how long the longest measured trial took, 0 when there is none."""
    return max((t.duration_s for t in trials if t.outcome is Outcome.MEASURED), default=0.0)


def kept_s(trials: Sequence[Trial], budget_s: float) -> float:
    """Return how much of the budget must be left for another proposal; negative is beyond it."""
    if len(trials) < FIRST_CANDIDATES:
        return longest_s(trials) - budget_s
    return 3 * longest_s(trials)


class _Attempt(Protocol):
    async def __call__(self, proposal: Proposal, build: Build) -> Trial: ...
