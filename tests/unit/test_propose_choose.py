"""Proposing and choosing: minimal first, the best wins, every loser has a reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.candidate import Candidate
from enginehouse.core.choose import choose
from enginehouse.core.contest import finalists
from enginehouse.core.forms import Forms
from enginehouse.core.propose import Place, propose
from enginehouse.core.trial import Outcome, Trial
from enginehouse.core.workload import WORKLOADS, Workload
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
        "chosen: 4.00× the minimal candidate; explored only, without finals",
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


def climb(workload: Workload, rate: Callable[[Candidate], float], refused: str = "") -> list[str]:
    """Climb with quantizations of a Q4_1 model; return what was tried, as differences."""
    source = dataclasses.replace(MODEL, quantization="Q4_1")
    variants = {n: dataclasses.replace(MODEL, quantization=n) for n in ("Q4_K_M", "Q4_0")}
    place = Place(ENGINE, MACHINE, Forms((source,), variants), workload, 0)
    minimal = ENGINE.minimal(WHEEL, MODEL, workload)
    trials: list[Trial] = []
    while (proposal := propose(place, minimal, trials)) is not None:
        candidate = proposal.candidate
        is_bad = bool(refused) and candidate.get("quantization") == refused
        trials.append(
            trial(candidate, None, Outcome.PRUNED) if is_bad else trial(candidate, rate(candidate))
        )
    return [t.candidate.describe_difference(minimal) for t in trials]


def test_each_workload_climbs_what_was_measured_to_bring_most_first() -> None:
    """Slots before weights for a crowd, sharing with slots for an assistant, weights for chat."""
    gains = {"slots": 2.0, "quantization": 1.3, "flash_attention": 1.1, "speculation": 1.1}

    def rate(candidate: Candidate) -> float:
        held = {name for name, value in candidate.settings if (name, value) != ("slots", 1)}
        return 50.0 * math.prod(gain for name, gain in gains.items() if name in held)

    assert climb(WORKLOADS["crowd"], rate)[1:3] == ["slots 16", "quantization Q4_0, slots 16"]
    assert climb(WORKLOADS["assistant"], rate)[1:3] == [
        "flash_attention off, prefix_sharing on, slots 8",
        "flash_attention off, prefix_sharing on, quantization Q4_0, slots 8",
    ]
    assert climb(WORKLOADS["chat"], rate)[1:4] == [
        "quantization Q4_0",
        "quantization Q4_0, speculation ngram-mod",
        "flash_attention off, quantization Q4_0, speculation ngram-mod",
    ]


def test_a_spare_value_is_tried_only_when_nothing_before_it_gained() -> None:
    """The second quantization follows the first one's refusal, and is left out after its gain."""

    def rate(candidate: Candidate) -> float:
        return 80.0 if candidate.get("quantization") else 50.0

    assert "quantization Q4_K_M" not in climb(WORKLOADS["chat"], rate)
    assert climb(WORKLOADS["chat"], rate, "Q4_0")[1:3] == [
        "quantization Q4_0",
        "quantization Q4_K_M",
    ]
