"""Proposing and choosing: minimal first, the best wins, every loser has a reason."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.choose import choose
from enginehouse.core.contest import finalists
from enginehouse.core.forms import Forms
from enginehouse.core.propose import Place, propose
from enginehouse.core.trial import Outcome, Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.llama_cpp import ENGINE
from tests.unit.values import MACHINE, MODEL, WHEEL, trial

CROWD = WORKLOADS["crowd"]
MINIMAL = ENGINE.minimal(WHEEL, MODEL, CROWD)


def next_of(trials: list[Trial], available_bytes: int = 12 << 30) -> object:
    machine = dataclasses.replace(MACHINE, memory_available_bytes=available_bytes)
    return propose(Place(ENGINE, machine, Forms((MODEL,)), CROWD, 512 << 20), MINIMAL, trials)


def test_the_minimal_candidate_comes_first() -> None:
    """Nothing is tuned before the minimal candidate has been tried."""
    proposal = propose(Place(ENGINE, MACHINE, Forms((MODEL,)), CROWD, 0), MINIMAL, [])
    assert proposal is not None
    assert proposal.candidate == MINIMAL


def test_nothing_is_built_on_a_minimal_candidate_that_failed() -> None:
    """When the minimal candidate gave no token the ladder ends."""
    assert next_of([trial(MINIMAL, None, Outcome.EXITED)]) is None


def test_what_cannot_fit_is_refused_with_the_reason() -> None:
    """A candidate whose expected bytes exceed what is available is not tried, and says why."""
    machine = dataclasses.replace(MACHINE, memory_available_bytes=600 << 20)
    proposal = propose(Place(ENGINE, machine, Forms((MODEL,)), CROWD, 512 << 20), MINIMAL, [])
    assert proposal is not None
    assert proposal.refusal is not None
    assert proposal.refusal.cause == "memory.host.insufficient"
    assert "GiB" in proposal.refusal.reason


@given(st.lists(st.floats(0.5, 2.0), min_size=40, max_size=40))
def test_the_ladder_ends_and_never_repeats(rates: list[float]) -> None:
    """Whatever the trials measure, no candidate is proposed twice and the ladder ends."""
    trials: list[Trial] = []
    for rate in rates:
        proposal = propose(Place(ENGINE, MACHINE, Forms((MODEL,)), CROWD, 0), MINIMAL, trials)
        if proposal is None:
            break
        assert proposal.candidate.id not in {t.candidate.id for t in trials}
        trials.append(trial(proposal.candidate, 100 * rate))
    else:
        raise AssertionError("the ladder did not end within 40 trials")
    assert len(trials) > 2


def test_the_fastest_wins_and_every_loser_says_why() -> None:
    """The winner is first; each loser has how far behind it was, or its diagnosis."""
    fast, slow, broken = (MINIMAL.with_settings(slots=n) for n in (16, 8, 4))
    ranked = choose(
        [
            trial(MINIMAL, 50),
            trial(slow, 100),
            trial(fast, 200),
            trial(broken, None, Outcome.EXITED, "out of memory"),
        ],
        MINIMAL,
    )
    assert [r.trial.candidate for r in ranked] == [fast, slow, MINIMAL, broken]
    assert [r.reason for r in ranked] == [
        "chosen: 4.00× the minimal candidate",
        "50% slower than the chosen one",
        "75% slower than the chosen one",
        "failed: out of memory",
    ]


def test_a_tie_goes_to_the_fewest_changes() -> None:
    """Within noise the candidate nearer the minimal one is chosen, and the reason says so."""
    changed = MINIMAL.with_settings(slots=16)
    ranked = choose([trial(MINIMAL, 99), trial(changed, 100)], MINIMAL)
    assert ranked[0].trial.candidate == MINIMAL
    assert "tie" in ranked[0].reason
    assert "tie" in ranked[1].reason


def test_a_candidate_that_failed_once_is_not_chosen() -> None:
    """A fast candidate that also crashed does not win."""
    flaky = MINIMAL.with_settings(slots=16)
    ranked = choose(
        [trial(MINIMAL, 50), trial(flaky, 200), trial(flaky, None, Outcome.EXITED)], MINIMAL
    )
    assert ranked[0].trial.candidate == MINIMAL


def test_repeated_measurements_count_by_their_median() -> None:
    """One lucky trial does not decide: the median over a candidate's trials does."""
    lucky = MINIMAL.with_settings(slots=16)
    trials = [trial(MINIMAL, 100)] * 3 + [trial(lucky, 300), trial(lucky, 80), trial(lucky, 80)]
    assert choose(trials, MINIMAL)[0].trial.candidate == MINIMAL
    assert finalists(trials, MINIMAL, 2, {}) == ()
