"""Prompts are made of natural text: enough of it, none of it twice, the same every time."""

from __future__ import annotations

from collections import Counter

import pytest

from enginehouse.core.measurement import repeated_ngram_share
from enginehouse.core.workload import WORKLOADS, Workload, build_prompts
from enginehouse.knowledge.loader import load_prompts

PASSAGES, QUESTIONS = load_prompts()
WORDS_PER_TOKEN = 0.75


def test_there_are_enough_passages_of_a_paragraphs_length() -> None:
    """A passage is a paragraph: long enough to be about something, short enough to be shuffled."""
    assert len(PASSAGES) >= 60
    assert all(70 <= len(passage.split()) <= 130 for passage in PASSAGES)


def test_questions_are_one_short_request_each() -> None:
    """A question makes sense after any passage: 5 to 20 words, a whole sentence."""
    assert len(QUESTIONS) >= 40
    assert all(5 <= len(question.split()) <= 20 for question in QUESTIONS)
    assert all(question[-1] in ".?" for question in QUESTIONS)


def test_nothing_is_there_twice() -> None:
    """No passage, question or opening of a passage is repeated."""
    assert len(set(PASSAGES)) == len(PASSAGES)
    assert len(set(QUESTIONS)) == len(QUESTIONS)
    openings = Counter(" ".join(passage.split()[:4]) for passage in PASSAGES)
    assert max(openings.values()) == 1


def test_the_text_does_not_loop() -> None:
    """Fewer than 2 % of the 4-word n-grams repeat, so no prompt flatters speculation."""
    assert repeated_ngram_share([" ".join(PASSAGES)]) < 0.02


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=lambda w: w.name)
def test_prompts_are_reproducible_and_mostly_cold(workload: Workload) -> None:
    """The same workload makes the same prompts, all different; few begin like another one."""
    prompts = build_prompts(workload, PASSAGES, QUESTIONS, WORDS_PER_TOKEN, workload.requests)
    again = build_prompts(workload, PASSAGES, QUESTIONS, WORDS_PER_TOKEN, workload.requests)
    assert prompts == again
    assert len({prompt.user for prompt in prompts}) == workload.requests
    assert len({prompt.user[:60] for prompt in prompts}) >= 0.8 * workload.requests
    assert len({prompt.system for prompt in prompts}) == 1


def test_a_long_document_holds_no_passage_twice() -> None:
    """The passages suffice for a prompt of the rag workload without repeating one."""
    rag = WORKLOADS["rag"]
    words = sum(len(passage.split()) for passage in PASSAGES)
    assert words > rag.prompt_tokens * WORDS_PER_TOKEN * 1.5
