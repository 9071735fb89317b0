"""One engine process: where it runs, and what it sees of our environment."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.processes import EngineProcess


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
