"""What one look at a machine found: its facts, the machine they make, its problems."""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.core.doctor import Problem
from enginehouse.core.facts import Fact, Facts
from enginehouse.core.machine import Machine


@dataclass(frozen=True)
class Examination:
    """One look at a machine. `kind` is `live`, `captured` or `reconstructed`.

    `taken_at` is Unix time; `sources` say what a reconstruction was made from.
    """

    name: str
    kind: str
    taken_at: float
    facts: Facts
    machine: Machine
    problems: tuple[Problem, ...]
    sources: tuple[str, ...] = ()
    note: str = ""

    def age_s(self, fact: Fact) -> float:
        """Return how old a fact was when the look was taken."""
        return max(0.0, round(self.taken_at - fact.read_at, 1))
