"""Load the fixed text and the requests of the quality gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from enginehouse.knowledge.toml import ROOT, parse_toml

PLACES = 24
"""Places in each text: 8 texts make 192, about five seconds on two cores for a small model."""


@dataclass(frozen=True)
class ExamText:
    """One fixed text and what kind of text it is."""

    domain: str
    text: str


@dataclass(frozen=True)
class Exam:
    """What every candidate is asked; figures of different editions are not comparable."""

    edition: int
    texts: tuple[ExamText, ...]
    questions: tuple[str, ...]
    drafted: str
    places: int = PLACES


@lru_cache(maxsize=1)
def load_exam() -> Exam:
    """Return the exam."""
    table = parse_toml((ROOT / "prompts" / "quality.toml").read_text(encoding="utf-8"))
    return Exam(
        edition=int(table["edition"]),
        texts=tuple(ExamText(one["domain"], one["text"].strip()) for one in table["text"]),
        questions=tuple(table["questions"]),
        drafted=table["drafted"],
    )
