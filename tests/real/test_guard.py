"""An engine that takes all memory as fast as it can is ended, and the machine stays responsive."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enginehouse.core.engine import Launch
from enginehouse.core.trial import Deadlines, Outcome, Trial
from enginehouse.edges.cgroups import NO_FENCE, raise_fence
from enginehouse.edges.probes import read_available_bytes
from enginehouse.edges.records import Records
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.trials.bench import TokenRatio
from enginehouse.trials.run import run_trial
from tests.integration.test_trials import CANDIDATE, bench_of
from tests.unit.values import WHEEL

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

GIB = 1 << 30
ROOM_BYTES = 2 * GIB
OVERSHOOT_BYTES = GIB // 2
"""How far below the floor the machine may get before the eater is gone: it takes 1 to 2 GiB a
second here, and is looked at every 50 ms."""
EATER = """
import time
eaten = []
time.sleep(0.3)
while True:
    eaten.append(b"x" * (64 << 20))
"""
CANARY = """
import json, signal, sys, time
late = []
signal.signal(signal.SIGTERM, lambda *_: (print(json.dumps(late), flush=True), sys.exit()))
print("ready", flush=True)
while True:
    began = time.perf_counter()
    time.sleep(0.01)
    bytearray(1 << 20)
    late.append(time.perf_counter() - began - 0.01)
"""
WORST_S, P99_S = 1.5, 0.25
"""What a bystander may feel: the machine has two cores, one of which the eater takes."""


@dataclasses.dataclass(frozen=True)
class Eater(LlamaCpp):
    """An engine that never serves and takes memory without end."""

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Start the eater."""
        return (sys.executable, "-c", EATER)


@contextmanager
def canary() -> Iterator[list[float]]:
    """Run a process that notes how late it wakes up, and return its latenesses at the end."""
    late: list[float] = []
    with subprocess.Popen(
        [sys.executable, "-c", CANARY], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield late
            process.terminate()
            late += json.loads(process.stdout.readline())
        finally:
            process.kill()


def eat(folder: Path, uses_cgroups: bool) -> tuple[Trial, int]:
    """Let the eater loose with two GiB of room; return its trial and the floor, in bytes."""
    records = Records(folder / "records.sqlite")
    records.open()
    reserve = read_available_bytes() - ROOM_BYTES
    if reserve < GIB:
        pytest.skip("less than 3 GiB is available")
    bench = dataclasses.replace(
        bench_of(records, folder, (), reserve),
        engines={"llama.cpp": Eater()},
        may_use_cgroups=uses_cgroups,
        deadlines=Deadlines(20.0, 60.0, 3.0, 10.0, 1.0),
    )
    try:
        return asyncio.run(run_trial(bench, WHEEL, CANDIDATE, TokenRatio())), reserve
    finally:
        records.close()


@pytest.mark.parametrize("uses_cgroups", [True, False])
def test_an_engine_that_takes_all_memory_is_ended(tmp_path: Path, uses_cgroups: bool) -> None:
    """With and without a cgroup it is ended at the floor, said so, and a bystander hardly felt it.

    Without the right to make a cgroup here, both runs show the watcher.
    """
    with canary() as late:
        trial, floor = eat(tmp_path, uses_cgroups)
    assert trial.outcome is Outcome.GUARDED, trial.detail
    assert trial.diagnosis is not None
    assert trial.diagnosis.cause is not None
    assert "memory" in trial.diagnosis.cause
    assert min(sample.available_bytes for sample in trial.memory) > floor - OVERSHOOT_BYTES
    if not uses_cgroups:
        assert trial.fence == "watcher"
    late.sort()
    assert len(late) > 20
    assert late[-1] < WORST_S, f"the bystander once woke {late[-1]:.2f} s late"
    assert late[int(0.99 * len(late))] < P99_S


def test_a_cgroup_is_there_while_it_is_needed_and_gone_afterwards() -> None:
    """Its limit is what was asked for; it is removed; without the right to there is none."""
    fence = raise_fence(256 << 20)
    if fence is NO_FENCE:
        pytest.skip("this user may not make a memory cgroup here")
    if fence.folder is None:
        pytest.skip("systemd holds the group")
    assert fence.folder.is_dir()
    done = subprocess.run(
        [*fence.prefix, sys.executable, "-c", "b'x' * (400 << 20)"], capture_output=True
    )
    assert done.returncode != 0
    assert fence.has_struck()
    fence.remove()
    assert not fence.folder.exists()
