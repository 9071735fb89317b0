"""The machine as a search sees it: candidates are tried in earnest, on the real clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.propose import Place, Proposal
from enginehouse.core.trial import Trial
from enginehouse.trials.run import Bench, Measuring, TokenRatio, run_trial
from enginehouse.trials.search import Watch


@dataclass
class BenchLab:
    """Tries candidates on a bench (see `trials/search.py` for what each method is for)."""

    bench: Bench
    watch: Watch
    ratio: TokenRatio = field(default_factory=TokenRatio)
    against: Candidate | None = None

    def now(self) -> float:
        return time.monotonic()

    def place(self, build: Build) -> Place:
        return self.bench.place(build)

    def minimal(self, build: Build) -> Candidate:
        return self.bench.minimal(build)

    def pace_of(self, candidate: Candidate | None) -> None:
        self.against = candidate

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        if proposal.remedy is not None and proposal.remedy.action == "drop-page-cache":
            self.watch.on_step(self.bench.drop_page_cache())
        pace = self.ratio.paces.get(self.against.id) if self.against is not None else None
        measuring = Measuring(window_s, pace, purpose)
        return await run_trial(
            self.bench, build, proposal.candidate, self.ratio, proposal.remedy, measuring
        )

    async def judge(self, candidate: Candidate, build: Build) -> str:
        return ""
