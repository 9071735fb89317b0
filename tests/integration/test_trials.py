"""Trials against a real child process: every way to fail ends in a record, and in nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginehouse.core.candidate import Candidate
from enginehouse.core.contest import EXAM, EXPLORE, PROOF
from enginehouse.core.engine import Launch
from enginehouse.core.forms import Forms
from enginehouse.core.measurement import Limits
from enginehouse.core.propose import Proposal
from enginehouse.core.trial import Deadlines, Outcome, Stage, Trial
from enginehouse.core.workload import Workload
from enginehouse.edges.guard import Guard
from enginehouse.edges.leases import LeaseBook, find_marked
from enginehouse.edges.records import Records
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.knowledge.loader import load_prompts
from enginehouse.knowledge.patterns import load_book
from enginehouse.trials.bench import Bench, Measuring, TokenRatio
from enginehouse.trials.contracts import SilentWatch
from enginehouse.trials.lab import BenchLab
from enginehouse.trials.run import run_trial
from tests.integration.conftest import FAKE_ENGINE
from tests.unit.values import MACHINE, MODEL, WHEEL

LOAD = Workload("tiny", "a few short requests", 2, 4, 0, 16, 8)
CANDIDATE = Candidate("llama.cpp", WHEEL.digest, (("slots", 2),))
RUNNER = Callable[..., Trial]


@dataclasses.dataclass(frozen=True)
class Scripted(LlamaCpp):
    """The fake engine with a script."""

    script: tuple[str, ...] = ()

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Start the fake engine."""
        return (sys.executable, FAKE_ENGINE, "--host", launch.endpoint.socket_path, *self.script)


def bench_of(records: Records, folder: Path, script: tuple[str, ...], reserve: int = 0) -> Bench:
    passages, questions = load_prompts()
    return Bench(
        run_id="run",
        engines={"llama.cpp": Scripted(script=script)},
        forms=Forms((MODEL,)),
        workload=LOAD,
        records=records,
        leases=LeaseBook(folder / "leases"),
        log_folder=folder / "trials",
        deadlines=Deadlines(10.0, 4.0, 3.0, 10.0, 1.0),
        memory_reserve_bytes=reserve,
        prefix_limit_bytes=1 << 20,
        bandwidth_bytes_per_s=1e10,
        passages=passages,
        questions=questions,
        book=load_book(),
        look=lambda: MACHINE,
    )


async def try_once(records: Records, folder: Path, *script: str, reserve: int = 0) -> Trial:
    """Run one trial and check that it left a record and nothing else."""
    bench = bench_of(records, folder, script, reserve)
    trial = await run_trial(bench, WHEEL, CANDIDATE, TokenRatio())
    assert records.trial(trial.id) == trial
    assert not list((folder / "leases").glob("*.json"))
    socket_path = trial.argv[trial.argv.index("--host") + 1]
    assert not Path(socket_path).exists()
    return trial


async def test_a_good_engine_is_measured(records: Records, tmp_path: Path) -> None:
    """A trial that goes well has figures, all stages, memory, and the machine before and after."""
    trial = await try_once(records, tmp_path)
    assert trial.outcome is Outcome.MEASURED
    assert trial.measurement is not None
    assert (trial.measurement.requests, trial.measurement.output_tokens) == (4, 32)
    assert [event.stage for event in trial.stages] == [s for s in Stage if s is not Stage.EXAM]
    assert trial.peak_memory_bytes > 1 << 20
    assert trial.machine_before == trial.machine_after == MACHINE
    assert trial.signal == "SIGTERM"
    assert trial.diagnosis is None


async def test_a_proof_ends_with_the_first_answer(records: Records, tmp_path: Path) -> None:
    """A build that is only to prove itself is sent no load, and tells how fast it answered."""
    bench = bench_of(records, tmp_path, ("--token-s", "0.01"))
    measuring = Measuring(purpose=PROOF, proves=True, is_hinting=True)
    trial = await run_trial(bench, WHEEL, CANDIDATE, TokenRatio(), None, measuring)
    assert trial.outcome is Outcome.PROVEN
    assert trial.gave_a_token
    assert not trial.has_measurement
    assert 20 < trial.first_tok_per_s <= 101
    assert Stage.MEASURE not in {event.stage for event in trial.stages}
    assert records.trial(trial.id) == trial


async def test_exploring_sends_shorter_requests_of_as_many_streams(
    records: Records, tmp_path: Path
) -> None:
    """Answers are cut to 32 tokens; two of one slot end the load, though 8 streams wait."""
    load = Workload("tiny", "long answers", 8, 16, 0, 64, 96, forced_lengths=True)
    bench = dataclasses.replace(bench_of(records, tmp_path, ()), workload=load)
    one_slot = CANDIDATE.with_settings(slots=1)
    measuring = Measuring(0.0, purpose=EXPLORE, is_short=True)
    short = await run_trial(bench, WHEEL, one_slot, TokenRatio(), None, measuring)
    whole = await run_trial(bench, WHEEL, one_slot, TokenRatio(), None, Measuring(0.0))
    assert short.measurement is not None
    assert whole.measurement is not None
    assert short.measurement.requests >= 2
    assert short.measurement.is_short
    assert not whole.measurement.is_short
    assert short.measurement.output_tokens <= 16 * 32
    assert whole.measurement.requests >= 8
    assert whole.measurement.output_tokens >= 8 * 96


@pytest.mark.parametrize(
    ("script", "outcome", "stage", "says"),
    [
        (("--fail", "something odd"), Outcome.EXITED, Stage.LOAD, "exit code 3"),
        (
            ("--fail", "E gguf_init_from_reader: invalid magic characters: 'xxxx'"),
            Outcome.EXITED,
            Stage.LOAD,
            "the model's file is not a GGUF file",
        ),
        (("--never-ready",), Outcome.TIMED_OUT, Stage.LOAD, "not done within 4 s"),
        (("--garbage",), Outcome.TIMED_OUT, Stage.LOAD, "not done within 4 s"),
        (("--no-token",), Outcome.BAD_ANSWER, Stage.FIRST_TOKEN, "no token today"),
        (("--die-after-tokens", "6"), Outcome.EXITED, Stage.MEASURE, "exit code 9"),
        (("--token-s", "1.5"), Outcome.TIMED_OUT, Stage.FIRST_TOKEN, "not done within"),
        (
            ("--never-ready", "--ignore-sigterm", "--grandchild"),
            Outcome.TIMED_OUT,
            Stage.LOAD,
            "not done within",
        ),
    ],
)
async def test_every_failure_is_a_record_with_its_cause(
    records: Records,
    tmp_path: Path,
    script: tuple[str, ...],
    outcome: Outcome,
    stage: Stage,
    says: str,
) -> None:
    """Whatever the engine does, the trial ends in time, with how, where and why."""
    trial = await try_once(records, tmp_path, *script)
    assert (trial.outcome, trial.last_stage) == (outcome, stage)
    assert trial.measurement is None
    assert trial.diagnosis is not None
    assert says in trial.diagnosis.title


async def test_the_guard_ends_a_trial_before_memory_is_gone(
    records: Records, tmp_path: Path
) -> None:
    """When available memory is under the reserve the engine is ended and the record says so."""
    trial = await try_once(records, tmp_path, "--load-s", "60", reserve=1 << 60)
    assert trial.outcome is Outcome.GUARDED
    assert trial.diagnosis is not None
    assert trial.diagnosis.cause == "memory.host.insufficient"
    assert trial.duration_s < 5.0


async def test_an_interrupted_trial_is_kept_as_such(records: Records, tmp_path: Path) -> None:
    """Cancelling ends the engine, keeps the record, and stays a cancellation."""
    bench = bench_of(records, tmp_path, ("--load-s", "60"))
    task = asyncio.ensure_future(run_trial(bench, WHEEL, CANDIDATE, TokenRatio()))
    while not list((tmp_path / "leases").glob("*.json")):  # noqa: ASYNC110 - a file
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [trial.outcome for trial in records.trials()] == [Outcome.INTERRUPTED]
    assert not list((tmp_path / "leases").glob("*.json"))


async def test_a_trial_that_is_interrupted_as_it_ends_stays_so(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that comes while the engine is being ended is not lost with the watchers."""

    def stop(guard: Guard) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    monkeypatch.setattr(Guard, "stop", stop)
    monkeypatch.setattr(Guard, "start", lambda guard: None)
    with pytest.raises(asyncio.CancelledError):
        await run_trial(bench_of(records, tmp_path, ()), WHEEL, CANDIDATE, TokenRatio())
    assert [trial.outcome for trial in records.trials()] == [Outcome.INTERRUPTED]


@pytest.mark.parametrize("turns", range(6))
async def test_an_exam_whose_engine_is_killed_with_us_stays_interrupted(
    records: Records, tmp_path: Path, turns: int
) -> None:
    """A signal to all at once ends the trial as interrupted, never as a verdict on the engine."""
    bench = bench_of(records, tmp_path, ("--token-s", "0.05"))
    measuring = Measuring(purpose=EXAM, examines=True)
    work = run_trial(bench, WHEEL, CANDIDATE, TokenRatio(), None, measuring)
    task = asyncio.ensure_future(work)
    while not list((tmp_path / "leases").glob("*.json")):  # noqa: ASYNC110 - a file
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)  # the exam's answers take much longer
    [lease] = (tmp_path / "leases").glob("*.json")
    for pid in find_marked((lease.stem,)):
        os.kill(pid, signal.SIGKILL)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [trial.outcome for trial in records.trials()] == [Outcome.INTERRUPTED]
    assert not list((tmp_path / "leases").glob("*.json"))


async def test_with_limits_on_times_nothing_is_shortened(records: Records, tmp_path: Path) -> None:
    """Shorter requests would keep a limit too easily, so exploring then sends whole ones."""
    load = Workload("tiny", "long answers", 4, 8, 0, 64, 48, forced_lengths=True)
    bench = dataclasses.replace(bench_of(records, tmp_path, ()), workload=load)
    for limits, is_short in ((Limits(ttft_s=5.0), False), (None, True)):
        lab = BenchLab(dataclasses.replace(bench, limits=limits), SilentWatch())
        trial = await lab.run(Proposal(CANDIDATE, "a lever"), WHEEL, 0.0, EXPLORE)
        assert trial.measurement is not None
        assert trial.measurement.is_short is is_short
