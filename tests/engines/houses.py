"""One model behind the gateway, by the engine that is asked for, as a child process.

    python -m tests.engines.houses ENGINE MODEL PORT [VLLM-PYTHON]

It serves until SIGINT, with minimal settings and a context of 1024, under the name `NAME`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from enginehouse.app_serve import OfferMaker
from enginehouse.core.settings import Settings
from enginehouse.core.trial import Deadlines
from enginehouse.core.workload import WORKLOADS
from enginehouse.edges.builds import find_builds
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.model_sources import resolve_model
from enginehouse.edges.paths import cache_dir, state_dir
from enginehouse.edges.probes import look_at_machine
from enginehouse.edges.progress import SilentProgress
from enginehouse.edges.records import Records
from enginehouse.edges.settings_file import load_settings
from enginehouse.gateway.serve import serve
from enginehouse.gateway.serving import Serving
from tests.real.test_story import free_port, wait_ready

NAME = "demo"
CHECKPOINT = Path(os.environ.get("TEST_CHECKPOINT") or cache_dir() / "test-checkpoint")
ROOT = Path(__file__).parents[2]


def vllm_python() -> str:
    """Return the Python of a vLLM that is here, empty where there is none."""
    named = os.environ.get("TEST_VLLM_PYTHON", "")
    kept = sorted(cache_dir().glob("tools/vllm-*/bin/python"))
    own = [build.path for build in find_builds() if build.engine == "vllm"]
    return named or (str(kept[-1]) if kept else (own[0] if own else ""))


def serve_model(engine: str, path: str, port: int, python: str) -> None:
    """Serve until a signal."""
    settings: Settings = load_settings(None, {})
    with Records(state_dir() / "records.sqlite").opened() as records:
        model = resolve_model(path, records, cache_dir(), SilentProgress())
    model = dataclasses.replace(model, name=NAME)
    builds = [build for build in find_builds(vllm_python=python) if build.engine == engine]
    workload = dataclasses.replace(WORKLOADS["chat"], prompt_tokens=800, streams=4)
    maker = OfferMaker(
        settings, state_dir(), workload, Deadlines(), look_at_machine, lambda: builds[:1]
    )
    offer = maker.of_model(model)
    assert offer is not None, builds
    leases = LeaseBook(state_dir() / "leases")
    asyncio.run(serve((offer,), Serving("127.0.0.1", port), leases, print))


@contextmanager
def served(engine: str, path: str, folder: Path) -> Iterator[str]:
    """Serve a model in a child process; give its root URL; leave no process behind."""
    port = free_port()
    log = folder / f"{engine}.log"
    home = {
        "ENGINEHOUSE_STATE_DIR": str(folder / f"state-{engine}"),
        "ENGINEHOUSE_CONFIG_DIR": str(folder / "config"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    argv = [sys.executable, "-m", "tests.engines.houses", engine, path, str(port), vllm_python()]
    with log.open("wb") as out:
        child = subprocess.Popen(
            argv, env={**os.environ, **home}, stdout=out, stderr=out, cwd=ROOT
        )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        wait_ready(child, port, log)
        family = psutil.Process(child.pid).children(recursive=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.send_signal(signal.SIGINT)
        try:
            assert child.wait(60) == 0, log.read_text()
        finally:
            _, left = psutil.wait_procs(family, timeout=10)
            for process in left:
                process.kill()
    assert not left, left
    assert "Traceback" not in log.read_text()


if __name__ == "__main__":
    serve_model(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
