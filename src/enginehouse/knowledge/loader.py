"""Load the prompts that a workload is made of."""

from __future__ import annotations

from enginehouse.knowledge.toml import ROOT


def load_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the passages and the questions that prompts are made of."""
    passages = (ROOT / "prompts" / "passages.txt").read_text(encoding="utf-8").split("\n\n")
    questions = (ROOT / "prompts" / "questions.txt").read_text(encoding="utf-8").splitlines()
    return (
        tuple(" ".join(passage.split()) for passage in passages if passage.strip()),
        tuple(question for question in questions if question.strip()),
    )
