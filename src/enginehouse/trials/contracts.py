"""Who is told how a search goes, and what it is driven against."""

from __future__ import annotations

from typing import Protocol

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.propose import Place, Proposal
from enginehouse.core.trial import Trial


class Watch(Protocol):
    """Who is told how a search goes."""

    def on_step(self, text: str) -> None:
        """Take one sentence on what happens next or was refused."""

    def on_trial_start(self, label: str, number: int) -> None:
        """Take the start of a trial."""

    def on_trial_end(self, trial: Trial, label: str) -> None:
        """Take a trial's record."""

    def on_progress(self, left_s: float, best: str, tok_per_s: float) -> None:
        """Take how much time is left before a trial, and the best so far ("" for none yet)."""


class SilentWatch:
    """Says nothing; a base for who says only some of it."""

    def on_step(self, text: str) -> None:
        """Say nothing."""

    def on_trial_start(self, label: str, number: int) -> None:
        """Say nothing."""

    def on_trial_end(self, trial: Trial, label: str) -> None:
        """Say nothing."""

    def on_progress(self, left_s: float, best: str, tok_per_s: float) -> None:
        """Say nothing."""


class Lab(Protocol):
    """Where candidates are tried, with a clock in seconds."""

    def now(self) -> float:
        """Return the time."""

    def place(self, build: Build) -> Place:
        """Return what proposals for a build rest on."""

    def minimal(self, build: Build) -> Candidate:
        """Return a build's minimal candidate."""

    def pace_of(self, candidate: Candidate | None) -> None:
        """Hold the next loads against this candidate's pace, against none's for None."""

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        """Try a candidate and return its record."""

    def is_judged(self, candidate: Candidate, base: Candidate) -> bool:
        """Whether a verdict on a candidate is known without an exam."""

    async def judge(self, candidate: Candidate, base: Candidate) -> str:
        """Judge a candidate's answers by the base's; say why it is refused, empty when good."""
