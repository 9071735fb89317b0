"""One engine process: where it runs, what it sees of our environment, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.scratch import SHARED_MEMORY


def run(folder: Path, script: str) -> Path:
    """Run a shell's script as an engine and return the folder of its log."""

    async def whole() -> None:
        process = EngineProcess(
            ("/bin/sh", "-c", script),
            env={},
            log_path=folder / "0001" / "engine.log",
            leases=LeaseBook(folder / "leases"),
        )
        await process.start()
        await process.wait()

    asyncio.run(whole())
    return folder / "0001"


def test_what_it_leaves_lies_beside_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "users"
    users.mkdir()
    monkeypatch.chdir(users)
    log_folder = run(tmp_path, "echo nan > probabilities.txt; pwd")
    assert list(users.iterdir()) == []
    assert (log_folder / "probabilities.txt").read_text() == "nan\n"
    assert (log_folder / "engine.log").read_text() == f"{log_folder}\n"


def test_relative_search_paths_mean_what_they_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"src{os.pathsep}/elsewhere{os.pathsep}")
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    said = (run(tmp_path, 'echo "$PYTHONPATH $LD_LIBRARY_PATH"') / "engine.log").read_text()
    assert said == f"{tmp_path}/src:/elsewhere:{tmp_path} \n"


SHARING = """
import multiprocessing, os, pathlib, signal, sys, time
from multiprocessing import shared_memory

def work(name):
    signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.SIG_DFL)
    memory = shared_memory.SharedMemory(name)
    pathlib.Path(f"/dev/shm/__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}").touch()
    print("worker", os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    memory = shared_memory.SharedMemory(create=True, size=1 << 20)
    print("memory", memory.name, flush=True)
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    worker = context.Process(target=work, args=(memory.name,))
    worker.start()
    worker.join()
"""
"""As vLLM does: a worker of its own, shared memory between them, and a tracker for what is left."""


@pytest.mark.parametrize("way", ["stopped", "killed", "deaf", "died"])
def test_no_shared_memory_is_left(tmp_path: Path, way: str) -> None:
    """Asked to end, killed, with a worker that hears nothing, or dead of itself: all is removed."""
    script = tmp_path / "engine.py"
    script.write_text(SHARING)
    log = tmp_path / "0001" / "engine.log"

    async def whole() -> None:
        process = EngineProcess(
            (sys.executable, str(script), way),
            env={},
            log_path=log,
            leases=LeaseBook(tmp_path / "leases"),
        )
        await process.start()
        while "worker" not in log.read_text():
            assert process.is_running, log.read_text()
            await asyncio.sleep(0.05)
        assert (SHARED_MEMORY / shared()["memory"]).exists()
        process.memory()
        if way == "killed":
            process.kill()
        elif way == "died":
            os.kill(process.pid, 9)
        await process.stop()

    def shared() -> dict[str, str]:
        return dict(line.split() for line in log.read_text().splitlines()[:2])

    began = time.monotonic()
    asyncio.run(whole())
    found = shared()
    assert not (SHARED_MEMORY / found["memory"]).exists()
    assert not list(SHARED_MEMORY.glob(f"__KMP_REGISTERED_LIB_{found['worker']}_*"))
    with suppress(psutil.NoSuchProcess):  # nobody may have read its exit code yet
        assert psutil.Process(int(found["worker"])).status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - began < 30
