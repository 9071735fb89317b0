"""The finals: who is in them, when they are decided, and what each setting brought."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.candidate import Candidate
from enginehouse.core.choose import choose
from enginehouse.core.conditions_of_trial import Conditions
from enginehouse.core.contest import FINAL, Table, ablations, contributions, finalists
from enginehouse.core.interval import interval_of, ratio_interval
from enginehouse.core.trial import Outcome, Trial
from tests.unit.values import WHEEL, trial

BASE = Candidate("llama.cpp", WHEEL.digest, (("context", 1024), ("slots", 1)))
FAST = BASE.with_settings(slots=8)
FASTER = BASE.with_settings(slots=16, flash_attention="off")


def final(candidate: Candidate, rate: float) -> Trial:
    return dataclasses.replace(trial(candidate, rate), purpose=FINAL)


def rounds(noise: float, count: int, *pairs: tuple[Candidate, float]) -> list[Trial]:
    """Finals of candidates with true rates, each round with a drift of its own, and noise."""
    rng = random.Random(7)
    trials = []
    for _ in range(count):
        drift = rng.uniform(0.7, 1.3)
        for candidate, rate in pairs:
            trials.append(final(candidate, rate * drift * rng.gauss(1.0, noise)))
    return trials


def test_a_drift_that_hits_a_whole_round_hides_nothing() -> None:
    """Rounds that differ by 30 % leave the ratio of two finalists exact when all move together."""
    table = Table.of(rounds(0.0, 3, (FAST, 110.0), (BASE, 100.0)), [FAST, BASE])
    versus = table.ratio(FAST.id, BASE.id)
    assert versus is not None
    assert abs(versus.middle - 1.1) < 1e-9
    assert versus.high - versus.low < 1e-6
    assert table.is_decided()


def test_noise_widens_the_interval_until_nothing_is_decided() -> None:
    """A difference of 5 % under 10 % noise is not decided in three rounds."""
    trials = rounds(0.1, 3, (FAST, 105.0), (FASTER, 100.0), (BASE, 98.0))
    table = Table.of(trials, [FAST, FASTER, BASE])
    versus = table.ratio(FAST.id, BASE.id)
    assert versus is not None
    assert versus.holds_one
    assert not table.is_decided()


def test_what_was_disturbed_counts_only_where_too_little_else_is_there() -> None:
    """A round that another process spoiled hides nothing once two others are there."""
    busy = Conditions(seconds=5.0, load_average=3.0, other_cores=0.6)
    spoiled = dataclasses.replace(final(FAST, 30.0), conditions=busy)
    trials = [final(BASE, 100.0), spoiled, final(FAST, 120.0), final(BASE, 101.0)]
    assert Table.of(trials, [FAST, BASE]).rates[FAST.id] == (30.0, 120.0)
    trials.append(final(FAST, 121.0))
    assert Table.of(trials, [FAST, BASE]).rates[FAST.id] == (120.0, 121.0)


@given(st.integers(0, 10_000))
def test_the_interval_covers_the_truth_mostly(seed: int) -> None:
    """It is a statement about a real ratio: low < middle < high, and the samples are counted."""
    rng = random.Random(seed)
    ours = [100 * rng.gauss(1, 0.05) for _ in range(4)]
    theirs = [80 * rng.gauss(1, 0.05) for _ in range(4)]
    found = ratio_interval(ours, theirs)
    assert found is not None
    assert found.low <= found.middle <= found.high
    assert found.samples == 4


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of 2,000 tables with noise, 95 % of the intervals hold the true ratio (93 to 97 here)."""
    rng = random.Random(3)
    covered = 0
    for _ in range(2000):
        trials = [
            final(candidate, rate * rng.gauss(1, 0.05))
            for _ in range(3)
            for candidate, rate in ((FAST, 120.0), (FASTER, 110.0), (BASE, 100.0))
        ]
        versus = Table.of(trials, [FAST, FASTER, BASE]).ratio(FAST.id, BASE.id)
        assert versus is not None
        covered += versus.low <= 1.2 <= versus.high
    assert 0.93 <= covered / 2000 <= 0.97


def test_one_value_has_no_interval() -> None:
    """Nothing is said of noise that was not seen."""
    assert interval_of([3.0]) is None


def test_only_what_is_near_the_best_is_measured_again() -> None:
    """A candidate at half the best's rate is no finalist; the base is, so that gains are known."""
    trials = [trial(BASE, 100), trial(FAST, 200), trial(FASTER, 80)]
    assert finalists(trials, BASE, 2, {}) == (FAST, BASE)
    assert finalists(trials, BASE, 2, {FAST.id: "its answers break"}) == ()


def test_a_tie_in_the_finals_goes_to_the_fewer_changes() -> None:
    """When noise hides who is best, the one with fewer changes wins, and both say so."""
    trials = rounds(0.08, 3, (FASTER, 102.0), (FAST, 100.0), (BASE, 50.0))
    ranked = choose(trials, BASE)
    assert ranked[0].trial.candidate == FAST
    assert ranked[1].reason.startswith("a tie")
    assert ranked[2].reason.endswith(")")


def test_a_refused_candidate_is_shown_and_does_not_win() -> None:
    """However fast, a candidate whose answers broke stands below, with the reason."""
    ranked = choose([trial(BASE, 100), trial(FAST, 300)], BASE, {FAST.id: "KL 2.1 over 0.1"})
    assert [r.trial.candidate for r in ranked] == [BASE, FAST]
    assert ranked[1].reason == "refused: KL 2.1 over 0.1"


def test_a_load_that_was_given_up_is_ranked_below_what_was_measured() -> None:
    """Half a measurement does not win, whatever it shows."""
    given_up = dataclasses.replace(trial(FAST, 300, Outcome.PRUNED), detail="40% of the best")
    ranked = choose([trial(BASE, 100), given_up], BASE)
    assert ranked[0].trial.candidate == BASE
    assert ranked[1].reason == "given up: 40% of the best"


def test_what_each_setting_brought_comes_from_trials_with_and_without_it() -> None:
    """The winner is compared with itself without one change at a time."""
    without_slots = FASTER.with_settings(slots=1)
    without_flash = FASTER.with_settings(flash_attention=None)
    assert {c.id for _, c in ablations(FASTER, BASE)} == {without_slots.id, without_flash.id}
    trials = [trial(FASTER, 120), trial(without_slots, 60), trial(without_flash, 100)]
    brought = {c.settings: c.ratio for c in contributions(trials, FASTER, BASE)}
    assert brought == {(("slots", 16),): 2.0, (("flash_attention", "off"),): 1.2}
