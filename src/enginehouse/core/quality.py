"""Whether a candidate's answers are as good as the best precision at hand, as pure arithmetic.

A reference and a candidate see the same text; at the same places each says how likely the next
token is. What an API tells are the `k` most likely tokens only, so the Kullback-Leibler divergence
is taken over a coarser partition, which can only make it smaller: every figure here is a lower
bound of the divergence over the whole vocabulary (data processing inequality). Generated texts are
looked at besides: speculation and a broken kernel show there and not in single tokens.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TOP_TOKENS = 20
"""Most likely tokens that are asked for; vLLM gives no more by default."""
RESAMPLES = 500
CONFIDENCE = 0.95
LEAST_PROBABILITY = 1e-9
ROUNDING = 1e-12
MOST_WHOLE_KL = 0.1
"""A text that is read at once and word by word says the same next, but for rounding: what is sound
was seen to differ by less than 0.01 nat, a broken kernel by several (docs/lab-log.md)."""
TAIL_SHOWS = 0.1
"""A tail that is counted twice is told from one that is not where it makes so many nat."""
NGRAM = 3
_WORD = re.compile(r"\w{1,12}|[^\w\s]")
"""A word or a sign; long words are cut, so that a text of one letter is seen to loop."""


@dataclass(frozen=True)
class Position:
    """What is said to be likely at one place: token texts with their log-probabilities (nat).

    The most likely token comes first.
    """

    tokens: tuple[tuple[str, float], ...]

    @property
    def best(self) -> str:
        """The most likely token."""
        return self.tokens[0][0] if self.tokens else ""


def doubles_tail(many: Position, one: Position) -> bool | None:
    """Tell whether an engine counts what it does not tell twice, None where these cannot show it.

    Both are of the same place, `many` of several tokens and `one` of the first alone. ik_llama.cpp
    adds the tokens below the told ones to its sum a second time, so that the fewer are asked for
    the less likely each seems: every logarithm lacks log(2 - the told tokens' share).
    """
    if not many.tokens or not one.tokens or many.best != one.best:
        return None
    likely = math.exp(single_tail(many).tokens[0][1])
    lacking = -math.log(2 - likely) - (many.tokens[0][1] - math.log(likely))
    seen = one.tokens[0][1] - many.tokens[0][1]
    if lacking > -TAIL_SHOWS:
        return None
    return abs(seen - lacking) < abs(seen)


def single_tail(position: Position) -> Position:
    """Return what an engine would tell that counts its tail once, of one that counts it twice."""
    told = sum(math.exp(logprob) for _, logprob in position.tokens)
    lacking = math.log(2 / (1 + told))
    return Position(tuple((token, logprob + lacking) for token, logprob in position.tokens))


@dataclass(frozen=True)
class Answer:
    """One greedy answer: its text, and whether it ended by itself within the limit."""

    text: str
    has_stopped: bool


@dataclass(frozen=True)
class DraftCheck:
    """A greedy text against what the same endpoint says one token at a time.

    Speculation promises the same text. `worst_gap` is how much less likely than the best token a
    written one was (nat, 20 where it was not among those told); `off` counts those further than
    `DRAFT_GAP`: nearer ones are ties that another batch size decides otherwise.
    """

    positions: int
    off: int
    worst_gap: float


DRAFT_GAP = 0.5
UNTOLD_GAP = 20.0


@dataclass(frozen=True)
class QualityTrace:
    """What one endpoint said under the exam: places by name, answers in order.

    `whole_kl` is the mean divergence between each text's last place as it is told after the whole
    text came at once and as it is told at the end of the walk, None where no text was read so.
    `problem` is why there are no positions: an engine that tells no log-probabilities, or, with
    `is_broken`, a model whose logits are not numbers.
    """

    edition: int
    positions: tuple[tuple[str, Position], ...]
    answers: tuple[Answer, ...]
    draft: DraftCheck | None = None
    whole_kl: float | None = None
    seconds: float = 0.0
    problem: str = ""
    is_broken: bool = False


@dataclass(frozen=True)
class QualityLimits:
    """What a candidate may lose: mean divergence in nat, share of equal best tokens, repetition.

    `repeated` is how much more of the text than the reference's may repeat itself, as a share.
    """

    kl: float = 0.20
    top1: float = 0.65
    repeated: float = 0.35


@dataclass(frozen=True)
class Quality:
    """A candidate's answers against the reference's; divergences in nat, shares 0 to 1.

    `low` and `high` are the ends of 95 % intervals. `longest_loop` is in words. `why` says in one
    sentence what the verdict rests on.
    """

    kl_mean: float
    kl_low: float
    kl_high: float
    kl_p99: float
    top1_agreement: float
    top1_low: float
    top1_high: float
    positions: int
    repeated_share: float
    reference_repeated_share: float
    longest_loop: int
    passes: bool
    why: str


def compare(reference: QualityTrace, trace: QualityTrace, limits: QualityLimits) -> Quality:
    """Judge a candidate's trace by the reference's under the limits."""
    pairs = _pair_positions(reference, trace)
    divergences = [divergence(ours, theirs) for ours, theirs in pairs]
    agreed = sum(ours.best == theirs.best for ours, theirs in pairs)
    kl_low, kl_high = bootstrap_interval(divergences)
    top1_low, top1_high = wilson_interval(agreed, len(pairs))
    repeated = repeated_share([answer.text for answer in trace.answers])
    expected = repeated_share([answer.text for answer in reference.answers])
    kl_mean = math.fsum(divergences) / len(divergences) if divergences else 0.0
    top1 = agreed / len(pairs) if pairs else 0.0
    faults = _faults_of_text(reference, trace, repeated - expected, limits)
    if trace.whole_kl is not None and trace.whole_kl > MOST_WHOLE_KL:
        faults.append(
            f"a prompt that is read at once is not understood as word by word: they differ by "
            f"{trace.whole_kl:.2f} nat"
        )
    if trace.is_broken:
        faults.insert(0, trace.problem)
    if pairs and kl_mean > limits.kl:
        faults.insert(0, f"mean KL divergence {kl_mean:.3f} is above {limits.kl:g}")
    if pairs and top1 < limits.top1:
        faults.insert(0, f"top-1 agreement {top1:.0%} is under {limits.top1:.0%}")
    return Quality(
        kl_mean=kl_mean,
        kl_low=kl_low,
        kl_high=kl_high,
        kl_p99=_quantile(sorted(divergences), 0.99),
        top1_agreement=top1,
        top1_low=top1_low,
        top1_high=top1_high,
        positions=len(pairs),
        repeated_share=repeated,
        reference_repeated_share=expected,
        longest_loop=max((longest_loop(answer.text) for answer in trace.answers), default=0),
        passes=not faults,
        why="; ".join(faults) or _praise(pairs, kl_mean, top1, trace),
    )


def _pair_positions(
    reference: QualityTrace, trace: QualityTrace
) -> list[tuple[Position, Position]]:
    """Return the places that both told, none when they saw different texts."""
    if reference.edition != trace.edition:
        return []
    theirs = dict(trace.positions)
    return [
        (position, theirs[place])
        for place, position in reference.positions
        if place in theirs and position.tokens and theirs[place].tokens
    ]


def _praise(pairs: Sequence[object], kl_mean: float, top1: float, trace: QualityTrace) -> str:
    if pairs:
        return f"KL divergence {kl_mean:.3f}, top-1 agreement {top1:.0%} at {len(pairs)} places"
    reason = trace.problem or "the reference told none"
    return f"only the answers were looked at: no log-probabilities ({reason})"


def _faults_of_text(
    reference: QualityTrace, trace: QualityTrace, more_repeated: float, limits: QualityLimits
) -> list[str]:
    """Say what is wrong with the answers that is not wrong with the reference's."""
    faults = []
    pairs = list(zip(reference.answers, trace.answers, strict=False))
    empty = sum(bool(a.text.strip()) and not b.text.strip() for a, b in pairs)
    endless = sum(a.has_stopped and not b.has_stopped for a, b in pairs)
    if empty:
        faults.append(f"{empty} of {len(pairs)} answers are empty")
    if more_repeated > limits.repeated:
        faults.append(f"{more_repeated:.0%} more of the answers repeats itself")
    elif endless > max(1, len(pairs) // 2) and more_repeated > limits.repeated / 2:
        faults.append(f"{endless} of {len(pairs)} answers repeat themselves and do not end")
    if trace.draft and is_unfaithful(trace.draft):
        faults.append(
            f"drafting changed the text: {trace.draft.off} of {trace.draft.positions} words are "
            f"not what the model itself says, by up to {trace.draft.worst_gap:.1f} nat"
        )
    return faults


def is_unfaithful(check: DraftCheck) -> bool:
    """Tell whether a drafted text is another than the model's own, beyond ties and accidents.

    One word in 20 may be off: a word's text may be other tokens when it is read again.
    """
    return check.off > max(1, check.positions // 20)


def divergence(reference: Position, other: Position) -> float:
    """Return the least KL divergence, in nat, of two distributions of which the tops are told.

    The partition: each token that both told; the reference's tokens that the other did not tell,
    together; all the rest. An untold token is no likelier than the least likely one told, which
    bounds the second part; its share is chosen within that bound so that the divergence is least.
    """
    ours, theirs = _probabilities(reference), _probabilities(other)
    common = ours.keys() & theirs.keys()
    told = sum(ours[token] * math.log(ours[token] / theirs[token]) for token in common)
    missing = sum(p for token, p in ours.items() if token not in theirs)
    count = sum(token not in theirs for token in ours)
    rest = max(0.0, 1 - sum(ours.values()))
    left = max(0.0, 1 - sum(theirs[token] for token in common))
    bound = min(left, count * min(theirs.values(), default=1.0))
    wanted = left * missing / (missing + rest) if missing + rest > 0 else 0.0
    taken = min(bound, wanted)
    total = told + _term(missing, taken) + _term(rest, left - taken)
    return total if total > ROUNDING else 0.0


def _term(p: float, q: float) -> float:
    return p * math.log(p / max(q, LEAST_PROBABILITY)) if p > 0 else 0.0


def _probabilities(position: Position) -> Mapping[str, float]:
    """Return the told probabilities by text; tokens of one text (broken bytes) are added up."""
    total: dict[str, float] = {}
    for token, logprob in position.tokens:
        total[token] = total.get(token, 0.0) + max(math.exp(min(0.0, logprob)), LEAST_PROBABILITY)
    whole = sum(total.values())
    return total if whole <= 1 else {token: p / whole for token, p in total.items()}


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by resampling, with a fixed seed; (0, 0) of nothing."""
    if not values:
        return 0.0, 0.0
    rng = random.Random(20261125)
    count = len(values)
    means = sorted(sum(rng.choices(values, k=count)) / count for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return _quantile(means, tail), _quantile(means, 1 - tail)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share; (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    z, share = 1.959964, successes / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _quantile(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def repeated_share(texts: Sequence[str], n: int = NGRAM) -> float:
    """Return the share of n-word n-grams that repeat an earlier one of the same text."""
    repeated = total = 0
    for text in texts:
        words = _WORD.findall(text)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0


def longest_loop(text: str) -> int:
    """Return how many words at a text's end go round in a loop of at least two rounds."""
    words = _WORD.findall(text)
    best = 0
    for period in range(1, len(words) // 2 + 1):
        length = period
        while length < len(words) and words[-length - 1] == words[-length - 1 + period]:
            length += 1
        if length >= 2 * period:
            best = max(best, length)
    return best


def word_ends(text: str, count: int, least: int = 8) -> tuple[int, ...]:
    """Return up to `count` offsets behind words, evenly over a text and behind `least` words.

    What comes next at such a place starts a new token in every tokenizer of the usual kind, so the
    text before it reads as the same tokens whether more follows or not.
    """
    ends = [
        index
        for index in range(1, len(text))
        if text[index].isspace() and not text[index - 1].isspace()
    ][least - 1 :]
    if len(ends) <= count:
        return tuple(ends)
    return tuple(ends[index * len(ends) // count] for index in range(count))


def check_draft(text: str, ends: Sequence[int], tell: Callable[[int], Position]) -> DraftCheck:
    """Check a greedy text's words against what is told at their places (`tell` by offset)."""
    gaps = [gap_of(text[end:], tell(end)) for end in ends]
    return DraftCheck(len(gaps), sum(gap > DRAFT_GAP for gap in gaps), max(gaps, default=0.0))


def gap_of(written: str, position: Position) -> float:
    """Return how much less likely than the best the written continuation's first token is."""
    if not position.tokens:
        return 0.0
    likely = [lp for token, lp in position.tokens if token and written.startswith(token)]
    return position.tokens[0][1] - max(likely) if likely else UNTOLD_GAP
