"""Two hundred trials of engines that serve, fail, hang, fork and refuse to end leave nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import threading
import uuid
from pathlib import Path

import psutil
import pytest

from enginehouse.core.trial import Deadlines, Outcome
from enginehouse.edges.cgroups import ROOT
from enginehouse.edges.records import Records
from enginehouse.trials.bench import Measuring, TokenRatio
from enginehouse.trials.run import run_trial
from tests.integration.test_trials import CANDIDATE, bench_of
from tests.unit.values import WHEEL

AT_ONCE = 8
SCRIPTS: tuple[tuple[str, ...], ...] = (
    ("--token-s", "0.0005"),
    ("--token-s", "0.0005", "--grandchild"),
    ("--token-s", "0.0005", "--ignore-sigterm"),
    ("--never-ready",),
    ("--garbage",),
    ("--die-after-tokens", "6"),
    ("--no-token",),
    ("--fail", "boom"),
)


TRACE = "ENGINEHOUSE_TEST_TRACE"
"""Set for this test's own children alone, so that other runs beside it are not taken for them."""


def traces(mark: str, folder: Path) -> dict[str, object]:
    """Return what a trial could leave behind, as far as this machine shows it."""
    marked = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TRACE) == mark and process.pid != os.getpid():
                marked.append(process.pid)
        except (psutil.Error, OSError):
            continue
    me = psutil.Process()
    return {
        "marked processes": sorted(marked),
        "children": sorted(child.pid for child in me.children(recursive=True)),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "groups": sorted(str(p) for p in ROOT.glob(f"*/**/enginehouse-{os.getpid()}-*")),
        "ports": sorted(c.laddr.port for c in me.net_connections("tcp")),
        "files": sorted(str(path) for path in folder.iterdir()),
        "threads": sorted(t.name for t in threading.enumerate() if t.name == "guard"),
    }  # fmt: skip


@pytest.mark.timeout(240)
@pytest.mark.parametrize("trials", [40, pytest.param(200, marks=pytest.mark.long)])
async def test_trials_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    """No process, mount, cgroup, port, file, thread, lease or descriptor is left of them."""
    records = Records(tmp_path / "records.sqlite")
    records.open()
    runtime, mark = tmp_path / "run", uuid.uuid4().hex
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv(TRACE, mark)
    before, descriptors = traces(mark, runtime), len(os.listdir("/proc/self/fd"))
    gate = asyncio.Semaphore(AT_ONCE)
    outcomes: dict[Outcome, int] = {}

    async def one(number: int) -> None:
        script = SCRIPTS[number % len(SCRIPTS)]
        bench = bench_of(records, tmp_path, script)
        bench = dataclasses.replace(bench, deadlines=Deadlines(20.0, 3.0, 1.5, 3.0, 0.2))
        async with gate:
            trial = await run_trial(bench, WHEEL, CANDIDATE, TokenRatio(), None, Measuring(0.3))
        outcomes[trial.outcome] = outcomes.get(trial.outcome, 0) + 1

    await asyncio.gather(*(one(number) for number in range(trials)))
    gc.collect()
    after = traces(mark, runtime)
    records.close()
    assert sum(outcomes.values()) == trials
    assert outcomes[Outcome.MEASURED] >= trials // 4, outcomes
    assert len(outcomes) >= 3, outcomes
    for what, was in before.items():
        assert after[what] == was, f"{what}: {was} before, {after[what]} after"
    assert not list((tmp_path / "leases").glob("*"))
    assert len(os.listdir("/proc/self/fd")) <= descriptors
