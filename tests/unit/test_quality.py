"""The laws of the quality gate's arithmetic."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.quality import (
    UNTOLD_GAP,
    Answer,
    DraftCheck,
    Position,
    Quality,
    QualityLimits,
    QualityTrace,
    bootstrap_interval,
    check_draft,
    compare,
    divergence,
    doubles_tail,
    gap_of,
    is_unfaithful,
    longest_loop,
    repeated_share,
    single_tail,
    wilson_interval,
    word_ends,
)

LIMITS = QualityLimits(kl=0.2, top1=0.75, repeated=0.35)


def position(**shares: float) -> Position:
    """A position from probabilities by token."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return Position(tuple((token, math.log(share)) for token, share in ordered))


def test_divergence_is_what_a_hand_computes() -> None:
    """Two tokens and the rest: Σ p ln(p / q), in nat."""
    ours, theirs = position(a=0.5, b=0.3), position(a=0.4, b=0.2)
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.4)
    assert divergence(ours, theirs) == pytest.approx(expected)


def test_an_untold_token_is_held_to_be_as_likely_as_it_may_be() -> None:
    """What the other did not tell is at most as likely as its least likely told token."""
    ours, theirs = position(a=0.6, b=0.4), position(a=0.9, c=0.05)
    expected = 0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.05)
    assert divergence(ours, theirs) == pytest.approx(expected)


def test_a_candidate_that_tells_of_nothing_in_common_is_far_off() -> None:
    """Disjoint tops do not look like agreement."""
    ours = position(a=0.9, b=0.05)
    theirs = position(c=0.9, d=0.001)
    assert divergence(ours, theirs) > 5


@st.composite
def distributions(draw: st.DrawFn, size: int = 8) -> list[float]:
    """Draw probabilities of a small vocabulary, none of them zero."""
    weights = draw(st.lists(st.floats(0.001, 1), min_size=size, max_size=size))
    return [weight / sum(weights) for weight in weights]


def told(shares: list[float], count: int) -> Position:
    """What an API that tells the `count` most likely tokens says."""
    pairs = sorted(((str(n), math.log(p)) for n, p in enumerate(shares)), key=lambda x: -x[1])
    return Position(tuple(pairs[:count]))


@given(distributions(), distributions(), st.integers(1, 8))
def test_the_told_divergence_is_a_lower_bound(p: list[float], q: list[float], count: int) -> None:
    """It is never negative, and never above the divergence over the whole vocabulary."""
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = divergence(told(p, count), told(q, count))
    assert 0 <= found <= whole + 1e-6


@given(distributions(), st.integers(1, 8))
def test_a_distribution_does_not_differ_from_itself(p: list[float], count: int) -> None:
    """The divergence of equals is 0."""
    assert divergence(told(p, count), told(p, count)) == pytest.approx(0, abs=1e-9)


@given(distributions(), distributions())
def test_told_whole_it_is_the_divergence(p: list[float], q: list[float]) -> None:
    """With the whole vocabulary told, nothing is lost."""
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(told(p, 8), told(q, 8)) == pytest.approx(whole, abs=1e-6)


def test_intervals_hold_what_they_should() -> None:
    """Wilson's interval of 8 in 10, and a resampled mean around its mean."""
    low, high = wilson_interval(8, 10)
    assert [low, high] == pytest.approx([0.4902, 0.9433], abs=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    values = [float(n % 10) for n in range(200)]
    low, high = bootstrap_interval(values)
    assert 4.0 < low < 4.5 < high < 5.0
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([]) == (0.0, 0.0)


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=40), st.integers(2, 20))
def test_a_tail_that_is_counted_twice_is_told_and_mended(weights: list[float], told: int) -> None:
    """What an engine tells with a doubled tail becomes what it would have told, to the digit."""
    whole = sum(weights)
    likely = sorted((weight / whole for weight in weights), reverse=True)

    def says(count: int, is_doubled: bool) -> Position:
        head = likely[:count]
        total = 2 - sum(head) if is_doubled else 1.0
        return Position(tuple((str(n), math.log(p / total)) for n, p in enumerate(head)))

    assert not doubles_tail(says(told, False), says(1, False))
    if math.log((2 - likely[0]) / (2 - sum(likely[:told]))) > 0.11:
        assert doubles_tail(says(told, True), says(1, True))
    for (_, mended), (_, honest) in zip(
        single_tail(says(told, True)).tokens, says(told, False).tokens, strict=True
    ):
        assert mended == pytest.approx(honest)


def test_what_shows_no_tail_says_nothing_of_it() -> None:
    """A sure token, no token, or another first one."""
    sure = Position((("a", -1e-9),))
    assert doubles_tail(sure, sure) is None
    assert doubles_tail(Position(()), sure) is None
    assert doubles_tail(Position((("b", -0.7), ("c", -1.2))), Position((("a", -0.9),))) is None


@pytest.mark.parametrize(
    ("text", "loop"),
    [("", 0), ("one two three", 0), ("a b a b", 4), ("so it goes on on on", 3),
     ("x a b c a b c a", 7), ("!" * 20, 20)],
)  # fmt: skip
def test_a_loop_is_found_at_the_end(text: str, loop: int) -> None:
    """Its length is in words, and it has gone round at least twice."""
    assert longest_loop(text) == loop


def test_repetition_is_the_share_of_trigrams_seen_before() -> None:
    """Four words said twice make six trigrams, two of which were there before."""
    assert repeated_share(["a b c d a b c d"]) == pytest.approx(2 / 6)
    assert repeated_share(["a b", ""]) == 0.0


@given(st.text("ab \n", max_size=200), st.integers(1, 20))
def test_places_stand_behind_words(text: str, count: int) -> None:
    """Each place has a word before it and white space after it; they go up."""
    ends = word_ends(text, count)
    assert len(ends) <= count
    assert list(ends) == sorted(set(ends))
    assert all(text[end].isspace() and not text[end - 1].isspace() for end in ends)


def test_a_gap_is_how_much_less_likely_the_written_word_is() -> None:
    """The longest fitting token does not matter, the likeliest does; untold is far."""
    said = position(**{" the": 0.5, " th": 0.1, " a": 0.25})
    assert gap_of(" the cat", said) == 0
    assert gap_of(" a cat", said) == pytest.approx(math.log(2))
    assert gap_of("?", said) == UNTOLD_GAP


def test_a_drafted_text_must_be_the_models_own() -> None:
    """Ties are forgiven, and one word in twenty; more is another text."""
    said = position(**{" b": 0.5, " c": 0.4, " d": 0.05})
    assert check_draft("a b", [1], lambda end: said) == DraftCheck(1, 0, 0.0)
    tie = check_draft("a c", [1], lambda end: said)
    assert tie.off == 0
    assert tie.worst_gap == pytest.approx(math.log(5 / 4))
    assert check_draft("a d", [1], lambda end: said).off == 1
    assert not is_unfaithful(DraftCheck(40, 2, 3.0))
    assert is_unfaithful(DraftCheck(40, 3, 3.0))


def trace(
    best: str = "a", text: str = "one two three four five six", stopped: bool = True,
    draft: DraftCheck | None = None, places: int = 40, off: int = 0, edition: int = 1,
) -> QualityTrace:  # fmt: skip
    """A trace in which `off` places have another best token."""
    usual = position(**{best: 0.6, "z": 0.3})
    other = position(**{"z": 0.6, best: 0.3})
    positions = tuple((f"t/{n}", other if n < off else usual) for n in range(places))
    return QualityTrace(edition, positions, (Answer(text, stopped),) * 3, draft)


def test_the_reference_passes_against_itself() -> None:
    """Nothing is lost, and the reason says so."""
    found = compare(trace(), trace(), LIMITS)
    assert found.passes
    assert (found.kl_mean, found.top1_agreement, found.positions) == (0.0, 1.0, 40)
    assert "top-1 agreement 100% at 40 places" in found.why


LOOP = "and so on " * 12


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (trace(off=20), "top-1 agreement 50% is under 75%"),
        (trace(best="q"), "mean KL divergence"),
        (trace(text=""), "3 of 3 answers are empty"),
        (trace(text=LOOP), "more of the answers repeats itself"),
        (trace(text="6" * 96), "more of the answers repeats itself"),
        (QualityTrace(1, (), trace().answers, problem="no numbers", is_broken=True), "no numbers"),
        (trace(draft=DraftCheck(40, 9, 4.0)), "drafting changed the text: 9 of 40"),
    ],
)
def test_what_is_broken_is_refused_with_its_reason(candidate: QualityTrace, words: str) -> None:
    """Each fault alone is enough."""
    found = compare(trace(), candidate, LIMITS)
    assert not found.passes
    assert words in found.why


def test_a_reference_that_repeats_itself_excuses_a_candidate_that_does() -> None:
    """A small model loops at temperature 0 whatever its precision."""
    assert compare(trace(text=LOOP), trace(text=LOOP, stopped=False), LIMITS).passes


def test_an_engine_without_log_probabilities_is_judged_by_its_answers_alone() -> None:
    """It passes, and the reason says what was not seen."""
    silent = QualityTrace(1, (), trace().answers, problem="HTTP 400")
    found = compare(trace(), silent, LIMITS)
    assert found.passes
    assert found.positions == 0
    assert "only the answers were looked at" in found.why
    assert "HTTP 400" in found.why


def test_traces_of_two_editions_are_not_compared() -> None:
    """Other texts, other places."""
    assert compare(trace(), trace(edition=2), LIMITS).positions == 0


@given(st.integers(0, 40))
def test_figures_are_finite_and_in_order(off: int) -> None:
    """Shares are within 0 to 1, intervals hold their value, and all of it is plain JSON."""
    found = compare(trace(), trace(off=off), LIMITS)
    assert 0 <= found.top1_low <= found.top1_agreement <= found.top1_high <= 1
    assert 0 <= found.kl_low <= found.kl_mean + 1e-12 <= found.kl_high + 2e-12
    assert msgspec.json.decode(msgspec.json.encode(found), type=Quality) == found
    original = trace(off=off)
    assert msgspec.json.decode(msgspec.json.encode(original), type=QualityTrace) == original
