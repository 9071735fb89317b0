"""One isolated trial: start, load, first token, measure, stop; always ending in a record."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.correction import Observation
from enginehouse.core.diagnose import diagnose
from enginehouse.core.trial import AppliedRemedy, Outcome, Trial
from enginehouse.edges.cgroups import NO_FENCE
from enginehouse.edges.launches import KIND, prepare
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.slots import SlotKeeper
from enginehouse.trials.attempt import GOOD, Attempt
from enginehouse.trials.bench import WHOLE_LOAD, Bench, Measuring, TokenRatio

LOG_LIMIT_BYTES = 4 << 20


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
    attempt = Attempt(bench, engine, process, endpoint, ratio, measuring, keeper, calls, fence)
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


def _read_log(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            return tuple(file.read(LOG_LIMIT_BYTES).decode(errors="replace").splitlines())
    except OSError:
        return ()
