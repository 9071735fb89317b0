"""One isolated trial: start, load, first token, measure, stop; always ending in a record."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from enginehouse.core.candidate import Build, Candidate, Settings
from enginehouse.core.conditions_of_trial import Conditions
from enginehouse.core.correction import Observation
from enginehouse.core.diagnose import diagnose
from enginehouse.core.diagnose_scan import Book
from enginehouse.core.engine import Call, Endpoint, Engine
from enginehouse.core.errors import EnginehouseError
from enginehouse.core.forms import Forms
from enginehouse.core.guard import show
from enginehouse.core.machine import Machine
from enginehouse.core.measurement import Limits, RequestSample, measure, steady_rate
from enginehouse.core.model import Model
from enginehouse.core.pace import Pace
from enginehouse.core.propose import Place
from enginehouse.core.quality import QualityLimits, QualityTrace
from enginehouse.core.throttling import CoolDown
from enginehouse.core.trial import (
    AppliedRemedy,
    Deadlines,
    MemorySample,
    Outcome,
    Stage,
    StageEvent,
    Trial,
)
from enginehouse.core.workload import WORKLOADS, Prompt, Workload, build_prompts
from enginehouse.edges.cgroups import NO_FENCE, Fence, raise_fence
from enginehouse.edges.conditions import ConditionsWatch
from enginehouse.edges.guard import Guard
from enginehouse.edges.http import make_call, open_session
from enginehouse.edges.launches import KIND, prepare
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.oom_kills import OomKills
from enginehouse.edges.page_cache import drop_page_cache
from enginehouse.edges.probes import read_available_bytes
from enginehouse.edges.processes import Ended, EngineProcess
from enginehouse.edges.records import Records
from enginehouse.edges.slots import SlotKeeper
from enginehouse.edges.throttling import Cooler
from enginehouse.trials.load import LoadShape, TooSlowError, Window, ask, run_load, words_per_token
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
LOG_LIMIT_BYTES = 4 << 20
LEAST_ROOM_BYTES = 64 << 20
"""With less room no cgroup is made: its limit would end the engine before the guard could say why.
"""
GOOD = (Outcome.MEASURED, Outcome.PRUNED, Outcome.EXAMINED, Outcome.PROVEN)
PROOF_TOKENS = 32
"""How long the first answer is where it tells how two builds compare; else a few tokens do."""


class StageError(Exception):
    """A stage ended the trial; says how."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


@dataclass(frozen=True)
class Bench:
    """What all trials of one search share."""

    run_id: str
    engines: Mapping[str, Engine]
    forms: Forms
    workload: Workload
    records: Records
    leases: LeaseBook
    log_folder: Path
    deadlines: Deadlines
    memory_reserve_bytes: int
    prefix_limit_bytes: int
    bandwidth_bytes_per_s: float | None
    passages: tuple[str, ...]
    questions: tuple[str, ...]
    book: Book
    look: Callable[[], Machine]
    asked: Settings = ()
    may_drop_page_cache: bool = False
    may_use_cgroups: bool = True
    limits: Limits | None = None
    quality: QualityLimits = field(default_factory=QualityLimits)
    cooler: Cooler = field(default_factory=Cooler)

    @property
    def model(self) -> Model:
        """The model that was asked for."""
        return self.forms.model

    def engine_of(self, build: Build) -> Engine:
        """Return the descriptor of a build's engine."""
        return self.engines[build.engine]

    def minimal(self, build: Build) -> Candidate:
        """Return the build's minimal candidate, with the settings that the user asked for.

        What the engine has no such setting for is left out.
        """
        engine = self.engine_of(build)
        minimal = engine.minimal(build, self.forms.of(engine), self.workload)
        known = {tunable.name for tunable in engine.tunables}
        return minimal.with_settings(**{n: v for n, v in self.asked if n in known})

    def place(self, build: Build) -> Place:
        """Return what proposals for a build rest on, with the machine as it is now."""
        return Place(
            self.engine_of(build), self.look(), self.forms, self.workload,
            self.memory_reserve_bytes, self.may_drop_page_cache,
        )  # fmt: skip

    def room_bytes(self) -> int:
        """Return how much one trial's engine may take: all that is available but the reserve.

        0 when nothing may bound it but the watcher.
        """
        room = read_available_bytes() - self.memory_reserve_bytes
        return room if self.may_use_cgroups and room >= LEAST_ROOM_BYTES else 0

    def fence(self, room_bytes: int, build: Build) -> Fence:
        """Bound the memory of one trial: by the container's own limit, else by a memory cgroup."""
        if not room_bytes:
            return NO_FENCE
        return Fence(KIND, (), room_bytes) if build.kind == KIND else raise_fence(room_bytes)

    def drop_page_cache(self) -> str:
        """Empty the page cache, and say what came of it."""
        return drop_page_cache()


@dataclass(frozen=True)
class Measuring:
    """How one trial measures: for how long at least, and against whose pace it may be given up.

    With `examines` the quality gate's exam is put instead of the load, with `proves` nothing beyond
    the first token. `is_short` explores with shorter requests (`Workload.shortened`); `is_hinting`
    has a longer first answer, which tells how builds compare. `cool_down` was waited before it.
    With `examines_slow` the exam follows the load where another start would take longer than it.
    """

    window_s: float = math.inf
    pace: Pace | None = None
    purpose: str = ""
    examines: bool = False
    proves: bool = False
    is_short: bool = False
    is_hinting: bool = False
    cool_down: CoolDown | None = None
    examines_slow: bool = False

    def workload(self, whole: Workload) -> Workload:
        """Return what of a workload the trial sends."""
        return whole.shortened() if self.is_short else whole

    def window(self, workload: Workload, candidate: Candidate) -> Window:
        """Return the window of the trial's load."""
        answers = workload.least_answers
        if self.is_short:
            answers = workload.answers_to_explore(int(candidate.get("slots") or 0))
        if self.pace is None:
            return Window(self.window_s, answers=answers)
        pace, window_s = self.pace, self.window_s
        return Window(
            window_s, lambda at_s, made: pace.too_slow(at_s, made, window_s, answers), answers
        )


WHOLE_LOAD = Measuring()


@dataclass
class TokenRatio:
    """What the trials of one search learn for the next ones.

    Words per token of the model are asked once, so that every candidate gets the same prompts; the
    pace of each candidate's last load is what later ones are held against. Traces are what each
    candidate said in the exam.
    """

    words_per_token: float = 0.0
    paces: dict[str, Pace] = field(default_factory=dict)
    traces: dict[str, QualityTrace] = field(default_factory=dict)


async def run_trial(
    bench: Bench,
    build: Build,
    candidate: Candidate,
    ratio: TokenRatio,
    remedy: AppliedRemedy | None = None,
    measuring: Measuring = WHOLE_LOAD,
) -> Trial:
    """Try one candidate and return its stored record; only our own faults are raised.

    `remedy` is what led to the candidate, for the record.

    A cancelled trial ends its engine, is stored as interrupted, and stays cancelled.
    """
    engine = bench.engine_of(build)
    form = dataclasses.replace(bench.forms.of(engine, candidate), name=bench.model.name)
    room = bench.room_bytes()
    ready = prepare(engine, build, candidate, form, bench.look, room)
    slots, calls = engine.shared_slots(candidate), engine.setup(ready.launch)
    trial = bench.records.start_trial(
        Trial(
            run_id=bench.run_id,
            model_digest=bench.model.digest,
            model_name=bench.model.name,
            workload=bench.workload.name,
            candidate=candidate,
            build=build,
            argv=ready.argv,
            env=ready.env,
            started_at=time.time(),
            machine_before=bench.look(),
            remedy=remedy,
            purpose=measuring.purpose,
            cool_down=measuring.cool_down,
        )
    )
    fence = bench.fence(room, build)
    trial = dataclasses.replace(trial, fence=fence.way)
    log_path = bench.log_folder / f"{trial.id:04d}" / "engine.log"
    trial = dataclasses.replace(trial, log_path=str(log_path))
    bench.records.update_trial(trial)  # so that a killed trial's log is found
    process = EngineProcess(
        trial.argv,
        env=dict(trial.env),
        log_path=log_path,
        leases=bench.leases,
        files=ready.files,
        scratch=ready.scratch,
        stop_signal=engine.stop_signal,
        prefix=fence.prefix,
        container=ready.container,
    )
    endpoint, scratch = ready.endpoint, Path(ready.launch.scratch)
    keeper = SlotKeeper(endpoint, slots, scratch, bench.prefix_limit_bytes) if slots else None
    attempt = _Attempt(bench, engine, process, endpoint, ratio, measuring, keeper, calls, fence)
    try:
        trial = await attempt.run(trial)
    except asyncio.CancelledError:
        trial = dataclasses.replace(trial, outcome=Outcome.INTERRUPTED, detail="interrupted")
        bench.records.update_trial(trial)
        raise
    finally:
        fence.remove()
    if fence.way == KIND and not process.is_limited:
        trial = dataclasses.replace(trial, fence=NO_FENCE.way)
    trial = dataclasses.replace(trial, machine_after=bench.look())
    if trial.outcome not in GOOD:
        trial = dataclasses.replace(
            trial,
            diagnosis=diagnose(
                outcome=trial.outcome,
                exit_code=trial.exit_code,
                signal=trial.signal,
                stage=trial.last_stage,
                log=_read_log(log_path),
                memory=trial.memory,
                machine=trial.machine_before,
                book=bench.book,
                detail=trial.detail,
                kernel_says=attempt.oom_kills.describe() or attempt.ended_by_killer,
            ),
        )
    bench.records.update_trial(trial)
    _keep_prediction(bench, trial)
    return trial


def _keep_prediction(bench: Bench, trial: Trial) -> None:
    """Store predicted against observed memory, which corrects the next prediction."""
    machine = trial.machine_before
    if trial.outcome is not Outcome.MEASURED or machine is None:
        return
    engine = bench.engine_of(trial.build)
    model = bench.forms.of(engine, trial.candidate)
    predicted = engine.estimate_memory(model, trial.candidate, machine)
    bench.records.store_prediction(
        Observation(
            fingerprint=machine.fingerprint(),
            build_digest=trial.build.digest,
            architecture=bench.model.architecture,
            predicted_bytes=predicted.resident.expected,
            observed_bytes=trial.peak_memory_bytes,
            trial_id=trial.id,
        )
    )


@dataclass
class _Attempt:
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
    first_tok_per_s: float = 0.0
    ended_by_killer: str = ""

    async def run(self, trial: Trial) -> Trial:
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
        examined = Examined(self.endpoint, self.bench.model.name, min(slots, 4), drafts)
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

    async def _watch(self) -> None:
        """Sample the engine's memory and the machine's; the guard does not wait for this."""
        while True:
            available = read_available_bytes()
            rss, pss = self.process.memory() if self.process.is_running else (0, None)
            at_s = time.perf_counter() - self.began
            if rss:
                self.memory.append(MemorySample(at_s, rss, pss, available))
            looks = YOUNG_LOOKS if at_s < YOUNG_S else 1
            for _ in range(looks):
                pid = self.process.engine_pid if self.process.is_running else None
                if pid is not None:
                    self.oom_kills.look(pid)
                await asyncio.sleep(SAMPLE_EVERY_S / looks)


def _read_log(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            return tuple(file.read(LOG_LIMIT_BYTES).decode(errors="replace").splitlines())
    except OSError:
        return ()
