"""One engine's way through the stages of a trial, watched, guarded, and ended."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from enginehouse.core.candidate import Candidate
from enginehouse.core.conditions_of_trial import Conditions
from enginehouse.core.engine import Call, Endpoint, Engine
from enginehouse.core.errors import EnginehouseError
from enginehouse.core.guard import show
from enginehouse.core.measurement import RequestSample, measure, steady_rate
from enginehouse.core.pace import Pace
from enginehouse.core.trial import MemorySample, Outcome, Stage, StageEvent, Trial
from enginehouse.core.workload import WORKLOADS, Prompt, build_prompts
from enginehouse.edges.cgroups import NO_FENCE, Fence
from enginehouse.edges.conditions import ConditionsWatch
from enginehouse.edges.guard import Guard
from enginehouse.edges.http import make_call, open_session
from enginehouse.edges.launches import KIND
from enginehouse.edges.oom_kills import OomKills
from enginehouse.edges.probes import AvailableMemory
from enginehouse.edges.processes import Ended, EngineProcess
from enginehouse.edges.slots import SlotKeeper
from enginehouse.trials.bench import Bench, Measuring, TokenRatio
from enginehouse.trials.load import LoadShape, TooSlowError, ask, run_load, words_per_token
from enginehouse.trials.quality import Examined, QualityError, measure_quality

T = TypeVar("T")

SAMPLE_EVERY_S = 0.25
SLOW_START_S = 15.0
"""An engine that took longer to give a token is not started again for its exam."""
YOUNG_S, YOUNG_LOOKS = 1.0, 12
"""A young engine is looked at more often: some enter their cgroup and are killed at once."""
READY_POLL_S = 0.05
ENDING_S, CONTAINER_ENDING_S = 0.5, 3.0
"""How long an engine whose answers broke off may take to end and so be the cause."""
GOOD = (Outcome.MEASURED, Outcome.PRUNED, Outcome.EXAMINED, Outcome.PROVEN)
PROOF_TOKENS = 32
"""How long the first answer is where it tells how two builds compare; else a few tokens do."""


class StageError(Exception):
    """A stage ended the trial; says how."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


@dataclass
class Attempt:
    """The mutable part of one trial: its process, its clock and its memory timeline."""

    bench: Bench
    engine: Engine
    process: EngineProcess
    endpoint: Endpoint
    ratio: TokenRatio
    measuring: Measuring
    keeper: SlotKeeper | None = None
    calls: tuple[Call, ...] = ()
    fence: Fence = NO_FENCE
    began: float = field(default_factory=time.perf_counter)
    stages: list[StageEvent] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)
    guarded: asyncio.Event = field(default_factory=asyncio.Event)
    danger: str = ""
    conditions: Conditions | None = None
    oom_kills: OomKills = field(default_factory=OomKills)
    available: AvailableMemory = field(default_factory=AvailableMemory)
    first_tok_per_s: float = 0.0
    ended_by_killer: str = ""

    async def run(self, trial: Trial) -> Trial:
        """Take the engine through its stages and return the trial with what came of it."""
        deadlines = self.bench.deadlines.times(float(trial.candidate.get("patience") or 1))
        outcome, detail = Outcome.MEASURED, ""
        samples: tuple[RequestSample, ...] = ()
        watcher = asyncio.ensure_future(self._watch())
        guard = Guard(self.bench.memory_reserve_bytes, self._on_danger(asyncio.get_running_loop()))
        guard.start()
        try:
            await self._stage(Stage.START, self.process.start(), deadlines.start_s)
            await self._stage(Stage.LOAD, self._wait_ready(), deadlines.load_s)
            await self._stage(Stage.FIRST_TOKEN, self._first_token(), deadlines.first_token_s)
            if self.measuring.proves:
                outcome = Outcome.PROVEN
            elif self.measuring.examines:
                outcome = Outcome.EXAMINED
                await self._stage(Stage.EXAM, self._examine(trial.candidate), deadlines.measure_s)
            else:
                samples = await self._stage(
                    Stage.MEASURE, self._measure(trial.candidate), deadlines.measure_s
                )
                if self.measuring.examines_slow and self._start_s() > SLOW_START_S:
                    await self._examine_too(trial.candidate, deadlines.measure_s)
        except TooSlowError as given_up:
            outcome, detail, samples = Outcome.PRUNED, str(given_up), given_up.samples
        except StageError as failure:
            outcome, detail = await self._name_cause(failure)
        except EnginehouseError as problem:
            outcome, detail = Outcome.EXITED, problem.report.what
        finally:
            guard.stop()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            if not self.memory:
                self._sample()  # a short trial may end between two looks
            crashed = not self.process.is_running
            if self._was_started():
                self._enter(Stage.STOP)
                ended = await self.process.stop(self.bench.deadlines.stop_s)
                self.ended_by_killer = ended.oom_says
        if outcome not in GOOD:
            self.stages = [s for s in self.stages if s.stage is not Stage.STOP]
        trial = dataclasses.replace(
            trial,
            outcome=outcome,
            detail=detail,
            stages=tuple(self.stages),
            duration_s=time.perf_counter() - self.began,
            memory=tuple(self.memory),
            conditions=self.conditions,
            first_tok_per_s=self.first_tok_per_s,
        )
        if self._was_started() and (crashed or samples):
            trial = dataclasses.replace(trial, exit_code=ended.exit_code, signal=ended.signal)
        if samples:
            trial = dataclasses.replace(trial, measurement=self._figures(trial, samples))
            if self.measuring.is_short or self.bench.workload.streams == 1:
                pace = Pace.of(samples, self.bench.workload.streams)
                self.ratio.paces[trial.candidate.id] = pace
        return trial

    def _start_s(self) -> float:
        return next(event.at_s for event in self.stages if event.stage is Stage.FIRST_TOKEN)

    async def _examine_too(self, candidate: Candidate, limit_s: float) -> None:
        """Put the exam after a load, which counts also when the exam cannot be held."""
        try:
            await self._stage(Stage.EXAM, self._examine(candidate), limit_s)
        except StageError as failure:
            if failure.outcome is not Outcome.BAD_ANSWER:
                raise

    async def _name_cause(self, failure: StageError) -> tuple[Outcome, str]:
        """Requests that fail because the engine is ending are its end, not a bad answer.

        An engine that met the limit of its cgroup was ended by us, by the kernel's hand.
        """
        if self.fence.has_struck() or await self._met_containers_limit(failure.outcome):
            allowed = show(self.fence.limit_bytes)
            return Outcome.GUARDED, f"it wanted more than the {allowed} that its cgroup allows"
        if failure.outcome is Outcome.BAD_ANSWER:
            ended = await self._end_soon(ENDING_S)
            if ended is not None:
                stage = self.stages[-1].stage.value
                return Outcome.EXITED, f"the engine ended during {stage} with {ended.describe()}"
        return failure.outcome, failure.detail

    async def _met_containers_limit(self, outcome: Outcome) -> bool:
        if self.fence.way != KIND or outcome not in (Outcome.EXITED, Outcome.BAD_ANSWER):
            return False
        ended = await self._end_soon(CONTAINER_ENDING_S)
        return ended is not None and ended.contained is not None and ended.contained.is_at_limit

    async def _end_soon(self, limit_s: float) -> Ended | None:
        """Return how the engine ended, None when it does not within a moment."""
        # Not wait_for: with its work done, it would swallow a cancellation at that moment.
        ending = asyncio.ensure_future(self.process.wait())
        try:
            await asyncio.wait({ending}, timeout=limit_s)
            return ending.result() if ending.done() else None
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    def _was_started(self) -> bool:
        return self.process.has_started

    def _enter(self, stage: Stage) -> None:
        self.stages.append(StageEvent(stage, time.perf_counter() - self.began))

    async def _stage(self, stage: Stage, work: Coroutine[Any, Any, T], limit_s: float) -> T:
        """Run a stage's work until it is done, its deadline, the engine's end, or the guard."""
        self._enter(stage)
        task = asyncio.ensure_future(work)
        others: list[asyncio.Future[Any]] = [asyncio.ensure_future(self.guarded.wait())]
        if stage is not Stage.START:
            others.append(asyncio.ensure_future(self.process.wait()))
        try:
            done, _ = await asyncio.wait(
                {task, *others}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            if self.guarded.is_set():
                raise StageError(Outcome.GUARDED, self.danger)
            if task in done:
                return task.result()
            if len(others) > 1 and others[1] in done:
                ended = await self.process.wait()
                raise StageError(
                    Outcome.EXITED,
                    f"the engine ended during {stage.value} with {ended.describe()}",
                )
            raise StageError(Outcome.TIMED_OUT, f"{stage.value} was not done within {limit_s:g} s")
        finally:
            for future in (task, *others):
                future.cancel()
            await asyncio.gather(task, *others, return_exceptions=True)

    async def _wait_ready(self) -> None:
        async with open_session(self.endpoint, keep_alive=False) as session:
            while True:
                with suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError):
                    async with session.get(
                        self.engine.ready_path, timeout=aiohttp.ClientTimeout(total=5)
                    ) as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(READY_POLL_S)
            for call in self.calls:
                problem = await make_call(session, call)
                if problem:
                    raise StageError(Outcome.BAD_ANSWER, problem)

    async def _first_token(self) -> None:
        tokens = PROOF_TOKENS if self.measuring.is_hinting else 4
        shape = LoadShape(self.bench.model.name, output_tokens=tokens)
        async with open_session(self.endpoint, keep_alive=False) as session:
            sample = await ask(session, shape, Prompt("", "Say hello."))
        if sample.error:
            raise StageError(Outcome.BAD_ANSWER, f"no first token: {sample.error}")
        self.first_tok_per_s = steady_rate(sample)
        if not self.ratio.words_per_token:
            self.ratio.words_per_token = await self._words_per_token()

    async def _words_per_token(self) -> float:
        """Ask the engine's tokenizer; an engine that dies meanwhile is a result like any other."""
        try:
            text = "\n\n".join(self.bench.passages)
            return await words_per_token(self.endpoint, self.bench.model.name, text)
        except (aiohttp.ClientError, OSError, KeyError, ValueError) as problem:
            said = f"the tokenizer gave no answer: {type(problem).__name__}: {problem}"
            raise StageError(Outcome.BAD_ANSWER, said) from problem

    async def _measure(self, candidate: Candidate) -> tuple[RequestSample, ...]:
        """Warm up with other prompts than the measured ones, then send the workload."""
        workload, bench = self.measuring.workload(self.bench.workload), self.bench
        warm_up = build_prompts(
            WORKLOADS["chat"], bench.passages, bench.questions, self.ratio.words_per_token,
            min(workload.streams, 4), salt="warm-up",
        )  # fmt: skip
        shape = LoadShape(bench.model.name, output_tokens=16)
        await run_load(self.endpoint, shape, warm_up, len(warm_up), self.keeper)
        prompts = build_prompts(
            workload, bench.passages, bench.questions, self.ratio.words_per_token, workload.requests
        )
        shape = LoadShape(bench.model.name, workload.output_tokens, workload.forced_lengths)
        watch = ConditionsWatch(self.process.family())
        try:
            samples = await run_load(
                self.endpoint,
                shape,
                prompts,
                workload.streams,
                self.keeper,
                self.measuring.window(workload, candidate),
            )
        finally:  # who is given up for being slow may have been disturbed
            self.conditions = watch.read()
        failed = [sample for sample in samples if sample.error]
        if failed:
            raise StageError(
                Outcome.BAD_ANSWER,
                f"{len(failed)} of {len(samples)} requests failed: {failed[0].error}",
            )
        return samples

    async def _examine(self, candidate: Candidate) -> None:
        """Put the exam and keep what the endpoint said, for a comparison with the reference."""
        slots = int(candidate.get("slots") or candidate.get("max_num_seqs") or 1)
        drafts = candidate.get("speculation") not in (None, "none")
        examined = Examined(
            self.endpoint, self.bench.model.name, min(slots, 4), drafts,
            self.engine.quirks.exam_fields,
        )  # fmt: skip
        try:
            self.ratio.traces[candidate.id] = await measure_quality(examined)
        except QualityError as problem:
            raise StageError(Outcome.BAD_ANSWER, f"the exam failed: {problem}") from problem

    def _on_danger(self, loop: asyncio.AbstractEventLoop) -> Callable[[str], None]:
        """Return what the guard calls in its thread: the engine is killed at once."""

        def end(reason: str) -> None:
            self.danger = reason
            if self.process.has_started:
                self.process.kill()
            loop.call_soon_threadsafe(self.guarded.set)

        return end

    def _figures(self, trial: Trial, samples: Sequence[RequestSample]) -> Any:
        return measure(
            self.bench.workload.name,
            samples,
            streams=self.bench.workload.streams,
            bytes_per_token=self.bench.forms.of(self.engine, trial.candidate).bytes_per_token,
            memory_bandwidth_bytes_per_s=self.bench.bandwidth_bytes_per_s,
            peak_memory_bytes=trial.peak_memory_bytes,
            limits=self.bench.limits,
            is_short=self.measuring.workload(self.bench.workload) != self.bench.workload,
        )

    def _sample(self) -> float:
        """Keep what memory is held now, where an engine holds any; return when that was."""
        available = self.available.read()
        rss, pss = self.process.memory() if self.process.is_running else (0, None)
        at_s = time.perf_counter() - self.began
        if rss:
            self.memory.append(MemorySample(at_s, rss, pss, available))
        return at_s

    async def _watch(self) -> None:
        """Sample the engine's memory and the machine's; the guard does not wait for this."""
        while True:
            at_s = self._sample()
            looks = YOUNG_LOOKS if at_s < YOUNG_S else 1
            for _ in range(looks):
                pid = self.process.engine_pid if self.process.is_running else None
                if pid is not None:
                    self.oom_kills.look(pid)
                await asyncio.sleep(SAMPLE_EVERY_S / looks)
