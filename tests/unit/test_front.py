"""The Pareto front over several workloads: who is on it, who is not and why, and what is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from enginehouse.core.candidate import Candidate
from enginehouse.core.choose import choose
from enginehouse.core.contest import EXPLORE, FINAL
from enginehouse.core.front import Front, FrontRow, Searched, entrants, settled, stand
from enginehouse.core.trial import Outcome
from enginehouse.core.workload import WORKLOADS, together
from tests.unit.values import WHEEL, trial

BASE = Candidate("llama.cpp", WHEEL.digest, (("context", 1024), ("slots", 1)))
FOUR, SIXTEEN = BASE.with_settings(slots=4), BASE.with_settings(slots=16)
DRAFTING = BASE.with_settings(speculation="ngram-mod")
Rates = Mapping[Candidate, Sequence[float]]


def searched(
    workload: str, rates: Rates, purpose: str = FINAL, refused: Mapping[str, str] | None = None
) -> Searched:
    """A search that measured each candidate once a round."""
    trials = [
        dataclasses.replace(trial(candidate, rate), workload=workload, purpose=purpose)
        for candidate, own in rates.items()
        for rate in own
    ]
    numbered = tuple(dataclasses.replace(t, id=n) for n, t in enumerate(trials, start=1))
    return Searched(workload, numbered, BASE, refused or {})


def row_of(front: Front, candidate: Candidate) -> FrontRow:
    return next(row for row in front.rows if row.candidate == candidate)


def test_who_is_best_at_something_or_beaten_by_nobody_is_on_the_front() -> None:
    """Each workload's best and the one between them stay; who is beaten is told by whom."""
    front = stand(
        (
            searched("chat", {BASE: (40, 40.2), FOUR: (45, 45.3), SIXTEEN: (30, 30.1)}),
            searched("crowd", {BASE: (50, 50.2), FOUR: (80, 80.4), SIXTEEN: (120, 121)}),
        )
    )
    assert [row.candidate for row in front.members] == [FOUR, SIXTEEN]
    assert front.choice("chat") == row_of(front, FOUR)
    assert front.choice("crowd") == row_of(front, SIXTEEN)
    assert row_of(front, FOUR).reason == "chosen for chat; 33% slower than the best under crowd"
    beaten = row_of(front, BASE)
    assert not beaten.is_on_front
    assert beaten.reason == "slots 4 is 13% faster under chat, 60% faster under crowd"
    best, mark = row_of(front, SIXTEEN).marks[1], row_of(front, FOUR).marks[1]
    assert (best.share, best.interval) == (1.0, None)
    assert mark.interval is not None
    assert mark.interval.low < mark.share < mark.interval.high < 0.7


def test_a_lead_within_noise_is_no_reason_to_be_on_the_front() -> None:
    """2 % under one workload do not outweigh a clear loss under the other, whatever the order."""
    front = stand(
        (
            searched("chat", {BASE: (41, 39, 40.9), FOUR: (40, 40, 39)}),
            searched("crowd", {BASE: (50, 50.2, 50.1), FOUR: (80, 80.4, 80.1)}),
        )
    )
    assert [row.candidate for row in front.members] == [FOUR]
    assert row_of(front, FOUR).choice_for == ("chat", "crowd")
    assert row_of(front, BASE).reason == "slots 4 is 60% faster under crowd, not slower under chat"


def test_a_tie_that_another_workload_decides_moves_the_choice() -> None:
    """Alone, the tie would go to the minimal candidate; the ranking says who decided it."""
    chat = searched("chat", {BASE: (40, 40.1), FOUR: (40.3, 40.2)})
    crowd = searched("crowd", {BASE: (50, 50.2), FOUR: (80, 80.4)})
    front = stand((chat, crowd))
    ranked = choose(chat.trials, BASE, {})
    assert ranked[0].trial.candidate == BASE
    first, second = settled(ranked, front, "chat")
    assert first.trial.candidate == FOUR
    assert first.reason == "chosen: a tie with the fastest here, and better under crowd"
    assert second.reason == "a tie with the chosen one here, which is better under crowd"
    assert settled(ranked, stand((chat,)), "chat") == ranked


def test_who_ties_everywhere_is_named_once() -> None:
    """Of two that cannot be told apart under any workload the one nearer to the minimal stays."""
    same = {BASE: (40, 40.1), DRAFTING: (40.2, 40.0)}
    front = stand((searched("chat", same), searched("crowd", same)))
    assert [row.candidate for row in front.members] == [BASE]
    assert row_of(front, DRAFTING).reason == (
        "a tie with the minimal candidate under every workload"
    )


def test_without_rounds_a_lead_must_be_as_large_as_noise_may_be() -> None:
    """One round tells no noise: 5 % are a tie there, 8 % are not."""
    crowd = searched("crowd", {BASE: (50,), FOUR: (80,)})
    near = stand((searched("chat", {BASE: (40,), FOUR: (38,)}), crowd))
    assert [row.candidate for row in near.members] == [FOUR]
    far = stand((searched("chat", {BASE: (40,), FOUR: (36.8,)}), crowd))
    assert {row.candidate for row in far.members} == {BASE, FOUR}


def test_what_was_not_measured_under_all_is_not_compared() -> None:
    """A candidate that failed, was refused, or found no time has a row that says so."""
    chat = searched("chat", {BASE: (40, 41), FOUR: (45, 46), DRAFTING: (60, 61), SIXTEEN: (90, 91)},
                    refused={SIXTEEN.id: "KL is high"})  # fmt: skip
    crowd = searched("crowd", {BASE: (50, 51), SIXTEEN: (120, 120)})
    broken = dataclasses.replace(trial(FOUR, None, Outcome.EXITED), purpose=FINAL, id=99)
    front = stand((chat, dataclasses.replace(crowd, trials=(*crowd.trials, broken))))
    assert [row.candidate for row in front.members] == [BASE]
    assert row_of(front, FOUR).reason == "not compared: it failed under crowd"
    assert row_of(front, DRAFTING).reason == (
        "not compared: there was no time to measure it under crowd"
    )
    assert row_of(front, DRAFTING).choice_for == ("chat",)
    assert all(row.candidate != SIXTEEN for row in front.rows)


def test_without_common_finals_what_explored_is_compared_and_said() -> None:
    """Loads of one kind only are compared, and the front says that noise is not known."""
    chat = searched("chat", {BASE: (40,), FOUR: (45,)}, EXPLORE)
    crowd = searched("crowd", {BASE: (50,), FOUR: (80,)}, EXPLORE)
    front = stand((chat, crowd))
    assert front.is_explored_only
    assert [row.candidate for row in front.members] == [FOUR]
    more = searched("crowd", {BASE: (20,), FOUR: (200,)})
    mixed = dataclasses.replace(crowd, trials=(*crowd.trials, *more.trials))
    assert row_of(stand((chat, mixed)), FOUR).marks[1].tok_per_s == 80


def test_finals_are_for_the_best_the_base_and_a_compromise() -> None:
    """The best of each workload come first, then the base, then who is bad at none."""
    chat: dict[Candidate, list[float]] = {DRAFTING: [60], BASE: [50], FOUR: [48], SIXTEEN: [20]}
    crowd: dict[Candidate, list[float]] = {SIXTEEN: [120], FOUR: [100], BASE: [50], DRAFTING: [45]}
    both = (searched("chat", chat, EXPLORE), searched("crowd", crowd, EXPLORE))
    assert entrants(both, 9) == (DRAFTING, SIXTEEN, BASE, FOUR)
    assert entrants(both, 2) == (DRAFTING, SIXTEEN)
    refused = dataclasses.replace(both[0], refused={SIXTEEN.id: "KL is high"})
    assert SIXTEEN not in entrants((refused, both[1]), 9)


RATE = st.integers(10, 100)


@settings(max_examples=40, phases=(Phase.generate,), deadline=None)
@given(st.lists(st.tuples(*[st.tuples(RATE, RATE, RATE)] * 2), min_size=1, max_size=6))
def test_the_front_is_never_empty_and_every_workload_has_a_choice(
    rates: list[tuple[tuple[float, ...], tuple[float, ...]]],
) -> None:
    """Whatever was measured, somebody is on it, and who is not is told a reason."""
    candidates = [BASE.with_settings(slots=number) for number in range(1, len(rates) + 1)]
    front = stand(
        tuple(
            searched(name, {c: own[place] for c, own in zip(candidates, rates, strict=True)})
            for place, name in enumerate(("chat", "crowd"))
        )
    )
    assert front.members
    assert {row.candidate for row in front.rows} == set(candidates)
    assert front.choice("chat")
    assert front.choice("crowd")
    assert all(row.reason for row in front.rows)


def test_every_workload_of_a_common_search_has_room_for_the_longest_request() -> None:
    """A server that is chosen for chat takes what rag sends; alone, a workload stays as it is."""
    chat, rag = together(("chat", "rag"))
    assert chat.context_tokens == rag.context_tokens == WORKLOADS["rag"].context_tokens
    assert (chat.prompt_tokens, chat.streams) == (128, 1)
    assert together(("chat",)) == (WORKLOADS["chat"],)
