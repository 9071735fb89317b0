"""The machine as a search sees it: candidates are tried in earnest, on the real clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from enginehouse.core.candidate import Build, Candidate, Settings, answer_key
from enginehouse.core.contest import EXAM, EXPLORE, MINIMAL, PROOF, WHOLE
from enginehouse.core.propose import Place, Proposal
from enginehouse.core.quality import QualityTrace, compare
from enginehouse.core.trial import Outcome, Trial
from enginehouse.trials.bench import Bench, Measuring, TokenRatio
from enginehouse.trials.contracts import Watch
from enginehouse.trials.run import run_trial

LOOK_EVERY_S = 0.05
IDLE_S = 2.0
"""A machine counts as idle when no request was in flight for so long."""


@dataclass(frozen=True)
class Learnt:
    """What is known of candidates' answers, under whatever workload it was learnt."""

    traces: dict[str, QualityTrace] = field(default_factory=dict)
    verdicts: dict[Settings, str] = field(default_factory=dict)
    exams: dict[str, Trial] = field(default_factory=dict)
    builds: dict[str, Build] = field(default_factory=dict)


@dataclass
class BenchLab:
    """Tries candidates on a bench (see `trials/search.py` for what each method is for)."""

    bench: Bench
    watch: Watch
    ratio: TokenRatio = field(default_factory=TokenRatio)
    against: Candidate | None = None
    verdicts: dict[Settings, str] = field(default_factory=dict)
    exams: dict[str, Trial] = field(default_factory=dict)
    builds: dict[str, Build] = field(default_factory=dict)

    @staticmethod
    def of(bench: Bench, watch: Watch, learnt: Learnt) -> BenchLab:
        """Return a lab that shares what is known of answers with others."""
        ratio = TokenRatio(traces=learnt.traces)
        return BenchLab(
            bench, watch, ratio, None, learnt.verdicts, learnt.exams, learnt.builds
        )  # fmt: skip

    def now(self) -> float:
        return time.monotonic()

    def place(self, build: Build) -> Place:
        return self.bench.place(build)

    def minimal(self, build: Build) -> Candidate:
        return self.bench.minimal(build)

    def pace_of(self, candidate: Candidate | None) -> None:
        self.against = candidate

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        self.builds[build.digest] = build
        if proposal.remedy is not None and proposal.remedy.action == "drop-page-cache":
            self.watch.on_step(self.bench.drop_page_cache())
        pace = self.ratio.paces.get(self.against.id) if self.against is not None else None
        # Limits are on whole requests: shorter ones would keep them too easily, and a low rate
        # does not mean that few of them are kept.
        is_limited = self.bench.limits is not None
        measuring = Measuring(
            window_s, None if is_limited else pace, purpose, proves=purpose == PROOF,
            is_short=purpose not in WHOLE and not is_limited,
            is_hinting=purpose in (MINIMAL, PROOF),
            cool_down=await self.bench.cooler.wait(self.watch.on_step),
            examines_slow=purpose == EXPLORE and self._exam_of(proposal.candidate) is None,
        )  # fmt: skip
        trial = await run_trial(
            self.bench, build, proposal.candidate, self.ratio, proposal.remedy, measuring
        )
        if proposal.candidate.id in self.ratio.traces:
            self.exams.setdefault(proposal.candidate.id, trial)
        return trial

    def is_judged(self, candidate: Candidate, base: Candidate) -> bool:
        key = answer_key(candidate)
        return key == answer_key(base) or key in self.verdicts

    async def judge(self, candidate: Candidate, base: Candidate) -> str:
        """Hold its answers against the base's, which is examined once.

        Candidates with the same settings that change answers are judged once.
        """
        key = answer_key(candidate)
        if key == answer_key(base):
            return ""
        if key not in self.verdicts:
            self.verdicts[key] = await self._verdict(candidate, base)
        return self.verdicts[key]

    async def _verdict(self, candidate: Candidate, base: Candidate) -> str:
        for one in (base, candidate):
            if self._exam_of(one) is None:
                what = one.describe_difference(base) or one.engine
                what = "the base, the best precision at hand" if one == base else what
                self.watch.on_step(f"examining the answers of {what}")
                examined = await self._examine(one)
                if examined.outcome is not Outcome.EXAMINED:
                    title = examined.diagnosis.title if examined.diagnosis else ""
                    return f"its answers could not be examined: {examined.detail or title}"
        reference, exam = self._exam_of(base), self._exam_of(candidate)
        assert reference is not None
        assert exam is not None
        traces = self.ratio.traces
        quality = compare(
            traces[reference.candidate.id], traces[exam.candidate.id], self.bench.quality
        )
        judged = replace(exam, quality=quality)
        self.bench.records.update_trial(judged)
        self.exams[exam.candidate.id] = judged
        return "" if quality.passes else quality.why

    def _exam_of(self, candidate: Candidate) -> Trial | None:
        """Return the trial in which a candidate that answers like this one was examined."""
        key, traces = answer_key(candidate), self.ratio.traces
        exams = self.exams.values()
        return next(
            (t for t in exams if answer_key(t.candidate) == key and t.candidate.id in traces), None
        )

    async def _examine(self, candidate: Candidate) -> Trial:
        cooled = await self.bench.cooler.wait(self.watch.on_step)
        measuring = Measuring(purpose=EXAM, examines=True, cool_down=cooled)
        build = self.builds[candidate.build_digest]
        trial = await run_trial(self.bench, build, candidate, self.ratio, None, measuring)
        self.exams[candidate.id] = trial
        return trial


@dataclass
class IdleLab(BenchLab):
    """A lab on a machine that serves: a trial runs while no request is in flight, else it ends.

    Its clock stands still while it waits, so the budget is time for trials.
    """

    is_idle: Callable[[], bool] = lambda: True
    waited_s: float = 0.0

    def now(self) -> float:
        return time.monotonic() - self.waited_s

    async def run(self, proposal: Proposal, build: Build, window_s: float, purpose: str) -> Trial:
        while True:
            await self._wait_idle()
            trial = asyncio.ensure_future(super().run(proposal, build, window_s, purpose))
            try:
                while not trial.done() and self.is_idle():
                    await asyncio.wait({trial}, timeout=LOOK_EVERY_S)
                if trial.done():
                    return trial.result()
            finally:
                trial.cancel()
                await asyncio.gather(trial, return_exceptions=True)
            self.watch.on_step("a request came: the trial is ended and will be tried again")

    async def _wait_idle(self) -> None:
        """Wait until no request has been in flight for a while."""
        began = quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < IDLE_S:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self.is_idle():
                quiet_since = time.monotonic()
        self.waited_s += time.monotonic() - began
