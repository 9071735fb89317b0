"""The search: propose, try, and again, until the ladder or the time is used up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.choose import finalists
from enginehouse.core.propose import propose
from enginehouse.core.trial import Outcome, Trial
from enginehouse.trials.run import Bench, TokenRatio, run_trial

FIRST_CANDIDATES = 3
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

    The budget ends proposing, not a trial under way. Time for a pair that confirms the best is
    kept: the highest of several noisy figures is so partly by luck. Where trials are long, the
    first candidates and one such pair may take up to twice the budget, since a search that tried
    one candidate found nothing.
    Cancelling keeps every finished trial's record.
    """
    began = time.monotonic()
    ratio = TokenRatio()
    trials: list[Trial] = []

    async def attempt(build: Build, candidate: Candidate, minimal: Candidate, why: str) -> Trial:
        label = candidate.describe_difference(minimal) or "minimal"
        watch.on_trial_start(f"{label} ({why})", len(trials) + 1)
        trial = await run_trial(bench, build, candidate, ratio)
        trials.append(trial)
        watch.on_trial_end(trial, label)
        return trial

    for build in builds:
        minimal = bench.engine.minimal(build, bench.model, bench.workload)
        own: list[Trial] = []
        while not own or began + budget_s - time.monotonic() > kept_s(trials, budget_s):
            proposal = propose(
                bench.engine, minimal, bench.look(), bench.model, bench.workload, own,
                bench.memory_reserve_bytes,
            )  # fmt: skip
            if proposal is None:
                break
            if proposal.refusal is not None:
                watch.on_step(f"{build.label} is not tried: {proposal.refusal.reason}")
                break
            own.append(await attempt(build, proposal.candidate, minimal, proposal.reason))
    deadlines = (began + 2 * budget_s, *[began + budget_s] * (CONFIRMATIONS - 1))
    await _confirm(bench, builds, trials, attempt, deadlines)
    return tuple(trials)


async def _confirm(
    bench: Bench,
    builds: Sequence[Build],
    trials: list[Trial],
    attempt: _Attempt,
    deadlines: Sequence[float],
) -> None:
    """Measure the best candidate and the minimal one again, in turn, each round by its deadline."""
    by_digest = {build.digest: build for build in builds}
    for ends_at in deadlines:
        if not trials:
            return
        best_build = by_digest[trials[0].candidate.build_digest]
        minimal = bench.engine.minimal(best_build, bench.model, bench.workload)
        for candidate in finalists(trials, minimal):
            if time.monotonic() + longest_s(trials) > ends_at:
                return
            build = by_digest[candidate.build_digest]
            await attempt(build, candidate, minimal, "confirming the best against the minimal one")


def longest_s(trials: Sequence[Trial]) -> float:
    """Return how long the longest measured trial took, 0 when there is none."""
    return max((t.duration_s for t in trials if t.outcome is Outcome.MEASURED), default=0.0)


def kept_s(trials: Sequence[Trial], budget_s: float) -> float:
    """Return how much of the budget must be left for another proposal; negative is beyond it."""
    if len(trials) < FIRST_CANDIDATES:
        return longest_s(trials) - budget_s
    return 3 * longest_s(trials)


class _Attempt(Protocol):
    async def __call__(
        self, build: Build, candidate: Candidate, minimal: Candidate, why: str
    ) -> Trial: ...
