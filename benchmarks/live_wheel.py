"""The wheel's server over one file, for as long as a test needs it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from enginehouse.core.engine import Endpoint
from enginehouse.edges.http import open_session
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.scratch import new_endpoint

LOAD_LIMIT_S = 60.0


@asynccontextmanager
async def serve_wheel(path: str, folder: Path, *flags: str) -> AsyncIterator[Endpoint]:
    """Serve a file with the wheel's server and more of its flags."""
    endpoint = new_endpoint()
    process = EngineProcess(
        (
            sys.executable, "-m", "enginehouse.edges.wheel_server", "--model", path, "--host",
            endpoint.socket_path, "--parallel", "1", "--ctx-size", "2048", "--fit", "off",
            "--no-webui", *flags,
        ),
        env={},
        log_path=folder / "engine.log",
        leases=LeaseBook(folder / "leases"),
        files=(Path(endpoint.socket_path),),
    )  # fmt: skip
    await process.start()
    try:
        await asyncio.wait_for(_ready(endpoint, process), LOAD_LIMIT_S)
        yield endpoint
    finally:
        await process.stop(5.0)


async def _ready(endpoint: Endpoint, process: EngineProcess) -> None:
    async with open_session(endpoint, keep_alive=False) as session:
        while True:
            assert process.is_running, "the engine ended"
            with suppress(aiohttp.ClientError, OSError):
                async with session.get("/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)


async def ask_text(endpoint: Endpoint, prompt: str, tokens: int = 12) -> str:
    """Return what the model makes of a text, greedily."""
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0}
    async with (
        open_session(endpoint, keep_alive=False) as session,
        session.post("/completion", json=body) as answer,
    ):
        return str((await answer.json())["content"])
