"""Builds side by side in a search: which come first, what their first answers say, their space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.contest import MINIMAL, PROOF
from enginehouse.core.propose import Place, Proposal, throughput
from enginehouse.core.remedies import ACTIONS, NEXT_BUILD
from enginehouse.core.space import Dimension, dimensions_of
from enginehouse.core.trial import AppliedRemedy, Trial

FIRST_CANDIDATES = 3
"""So many first candidates of a build, or of a search, may go beyond the budget."""
BUILD_HINT = 1.1
"""A build is tuned before an earlier one when its first answer came this much faster: one answer is
a hint with a few percent of noise."""


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
    """Order the builds that gave a token by what their first candidates measured.

    One that was only proven stands right before the measured build of its engine when its first
    answer came clearly faster, else right behind it.
    """
    served = [build for build in builds if base_found(owns[build.digest])]
    hints = first_answers([trial for own in owns.values() for trial in own])
    rates = {build.digest: max(map(throughput, owns[build.digest])) for build in served}
    measured = {b.engine: b for b in reversed(served) if rates[b.digest]}

    def place(build: Build) -> tuple[float, float]:
        first = measured.get(build.engine, build)
        ours, theirs = (hints.get(b.digest, 0.0) for b in (build, first))
        ahead = ours / theirs if ours and theirs else 1.0
        is_ahead = build is first or ahead >= BUILD_HINT
        return -(rates[build.digest] or rates[first.digest]), -ahead if is_ahead else 0.0

    return tuple(sorted(served, key=place))


def first_answers(trials: Sequence[Trial]) -> dict[str, float]:
    """Return how fast each build's first answer came, by digest, in tokens per second."""
    hints: dict[str, float] = {}
    for trial in trials:
        if trial.first_tok_per_s and trial.purpose in (MINIMAL, PROOF):
            hints.setdefault(trial.candidate.build_digest, trial.first_tok_per_s)
    return hints


def overrun_s(own: Sequence[Trial], budget_s: float) -> float:
    """Return how far a build's first candidates may go beyond the budget, as negative seconds."""
    return -budget_s if len(own) < FIRST_CANDIDATES else 0.0


def base_found(own: Sequence[Trial]) -> bool:
    """Whether a build has produced a token: until then the budget alone bounds its remedies."""
    return any(trial.gave_a_token for trial in own)
