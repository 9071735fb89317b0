"""Named workloads: what a served model is measured under, seeded and reproducible."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

SHORT_OUTPUT_TOKENS = 32
"""How long answers of several streams are while a search explores."""
LEAST_PROMPT_TOKENS = 16
TEMPLATE_TOKENS = 30
"""What a chat template adds to a prompt, about (SmolLM2's with its system prompt); it is computed
for short requests as for long ones."""


@dataclass(frozen=True)
class Workload:
    """A load: `streams` concurrent clients that send `requests` requests in all.

    Each stream sends its next request when its last one is answered. The objective is output
    throughput: output tokens per second over all streams.

    Prompt sizes are in tokens of the message text, without the chat template's own tokens;
    `shared_prefix_tokens` is a system prompt that all requests have in common. Answers end where
    the model ends them, at `output_tokens` at most; with `forced_lengths` nowhere else, which makes
    work equal but lets a model run on into loops that flatter speculation. `beside_tokens` is the
    context that another workload needs which the same server shall take.
    """

    name: str
    summary: str
    streams: int
    requests: int
    shared_prefix_tokens: int
    prompt_tokens: int
    output_tokens: int
    forced_lengths: bool = False
    seed: int = 20261123
    beside_tokens: int = 0

    @property
    def context_tokens(self) -> int:
        """Tokens of context that one request needs, with room for a chat template."""
        own = self.shared_prefix_tokens + self.prompt_tokens + self.output_tokens + 128
        return max(own, self.beside_tokens)

    def shortened(self) -> Workload:
        """Return the load that a search explores with: as many streams, shorter requests.

        Prompt and answer shrink alike, so that rates of it rank candidates as the whole load's do;
        a shared prefix stays, since what sharing brings depends on its length. One stream answers
        soon enough, and keeps its requests.
        """
        share = SHORT_OUTPUT_TOKENS / self.output_tokens
        if self.streams == 1 or share >= 1:
            return self
        seen = round(share * (self.prompt_tokens + TEMPLATE_TOKENS))
        prompt_tokens = max(LEAST_PROMPT_TOKENS, seen - TEMPLATE_TOKENS)
        return replace(self, prompt_tokens=prompt_tokens, output_tokens=SHORT_OUTPUT_TOKENS)

    @property
    def least_answers(self) -> int:
        """Whole answers that a load of the finals waits for: one a stream.

        A shared prefix is computed before the first of them, so there it is two: one alone would
        count that three times as much as the whole load does.
        """
        return (2 if self.shared_prefix_tokens and self.streams > 1 else 1) * self.streams

    def answers_to_explore(self, slots: int) -> int:
        """Return how many whole answers an exploring load needs of an engine with some slots.

        Twice as many as it makes at once: then few prompts are computed whose answers are still to
        come. A shared prefix needs one a stream, all of which have it in front of them.
        """
        if self.shared_prefix_tokens or slots < 1:
            return self.streams
        return min(self.streams, 2 * slots)


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("chat", "one person talks to the model", 1, 6, 0, 128, 96),
        Workload("crowd", "16 people at once", 16, 32, 0, 128, 96),
        Workload(
            "assistant",
            "8 clients of one assistant with a long system prompt",
            8,
            24,
            900,
            32,
            32,
        ),
        Workload(
            "rag",
            "one person asks about long documents",
            1,
            3,
            0,
            3000,
            64,
        ),
    )
}


def together(names: Sequence[str]) -> tuple[Workload, ...]:
    """Return workloads that one server shall take: each with context for the longest request."""
    longest = max(WORKLOADS[name].context_tokens for name in names)
    if len(names) == 1:
        return (WORKLOADS[names[0]],)
    return tuple(replace(WORKLOADS[name], beside_tokens=longest) for name in names)


@dataclass(frozen=True)
class Prompt:
    """One request's messages: a system text (empty for none) and a user text."""

    system: str
    user: str


def build_prompts(
    workload: Workload,
    passages: tuple[str, ...],
    questions: tuple[str, ...],
    words_per_token: float,
    count: int,
    salt: str = "",
) -> tuple[Prompt, ...]:
    """Return `count` prompts made of natural passages, the same for the same seed and salt.

    Passages are drawn in a seeded random order, so two prompts share no prefix but the system
    prompt; `words_per_token` is what the model's own tokenizer makes of the passages.
    """
    rng = random.Random(f"{workload.name}/{workload.seed}/{salt}")
    system = ""
    if workload.shared_prefix_tokens:
        fixed = random.Random(f"{workload.name}/{workload.seed}/system")
        system = _take_words(fixed, passages, workload.shared_prefix_tokens * words_per_token)
    prompts = []
    for _ in range(count):
        question = rng.choice(questions)
        room = workload.prompt_tokens * words_per_token - len(question.split())
        text = _take_words(rng, passages, room) if room > 8 else ""
        user = f"{text}\n\n{question}" if text else question
        prompts.append(Prompt(system, user))
    return tuple(prompts)


def _take_words(rng: random.Random, passages: tuple[str, ...], words: float) -> str:
    """Join passages in random order until there are `words` words, the last one cut off."""
    wanted = max(1, round(words))
    taken: list[str] = []
    order = list(passages)
    while len(taken) < wanted:
        rng.shuffle(order)
        for passage in order:
            taken.extend(passage.split())
            if len(taken) >= wanted:
                break
    return " ".join(taken[:wanted])
