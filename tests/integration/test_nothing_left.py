"""Two hundred trials of engines that serve, fail, hang, fork and refuse to end leave nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from enginehouse.core.trial import Deadlines, Outcome
from enginehouse.edges.cgroups import ROOT
from enginehouse.edges.leases import MARKER
from enginehouse.edges.records import Records
from enginehouse.trials.run import Measuring, TokenRatio, run_trial
from tests.integration.test_trials import CANDIDATE, bench_of
from tests.unit.values import WHEEL

TRIALS = 200
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


def traces() -> dict[str, object]:
    """Return what a trial could leave behind, as far as this machine shows it."""
    marked = []
    for process in psutil.process_iter():
        try:
            if MARKER in process.environ():
                marked.append(process.pid)
        except (psutil.Error, OSError):
            continue
    folders = [Path(tempfile.gettempdir()), Path("/dev/shm")]
    me = psutil.Process()
    return {
        "marked processes": sorted(marked),
        "children": sorted(child.pid for child in me.children(recursive=True)),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "groups": sorted(str(p) for p in ROOT.glob(f"*/**/enginehouse-{os.getpid()}-*")),
        "ports": sorted(c.laddr.port for c in me.net_connections("tcp")),
        "files": sorted(
            str(p) for folder in folders if folder.is_dir() for p in folder.glob("enginehouse-*")
            if not p.name.startswith("enginehouse-test")
        ),
        "threads": sorted(t.name for t in threading.enumerate() if t.name == "guard"),
    }  # fmt: skip


@pytest.mark.timeout(240)
async def test_two_hundred_trials_leave_nothing_behind(tmp_path: Path) -> None:
    """No process, mount, cgroup, port, file, thread, lease or descriptor is left of them."""
    records = Records(tmp_path / "records.sqlite")
    records.open()
    before, descriptors = traces(), len(os.listdir("/proc/self/fd"))
    gate = asyncio.Semaphore(AT_ONCE)
    outcomes: dict[Outcome, int] = {}

    async def one(number: int) -> None:
        script = SCRIPTS[number % len(SCRIPTS)]
        bench = bench_of(records, tmp_path, script)
        bench = dataclasses.replace(bench, deadlines=Deadlines(20.0, 3.0, 1.5, 3.0, 0.2))
        async with gate:
            trial = await run_trial(bench, WHEEL, CANDIDATE, TokenRatio(), None, Measuring(0.3))
        outcomes[trial.outcome] = outcomes.get(trial.outcome, 0) + 1

    await asyncio.gather(*(one(number) for number in range(TRIALS)))
    gc.collect()
    after = traces()
    records.close()
    assert sum(outcomes.values()) == TRIALS
    assert outcomes[Outcome.MEASURED] >= TRIALS // 4, outcomes
    assert len(outcomes) >= 3, outcomes
    for what, was in before.items():
        assert after[what] == was, f"{what}: {was} before, {after[what]} after"
    assert not list((tmp_path / "leases").glob("*"))
    assert len(os.listdir("/proc/self/fd")) <= descriptors
