"""How requests end: what the client, the metrics and the log are told of it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp

from enginehouse.core.catalog import Served as ServedModel
from enginehouse.edges.leases import LeaseBook
from enginehouse.gateway.router import Offer, Step
from enginehouse.gateway.serve import serve
from enginehouse.gateway.serving import Serving as ServingSettings
from tests.integration.conftest import fake_plan

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, OLLAMA = "/v1/chat/completions", "/api/chat"
BODY: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "max_tokens": 4}


async def test_a_first_model_that_cannot_start_is_ready_by_its_fallback(tmp_path: Path) -> None:
    """Where the first model's chain ends at another model, that one makes the server ready."""
    broken = fake_plan(tmp_path, "--fail", "no memory today")
    works = fake_plan(tmp_path)
    offers = (
        Offer(ServedModel("first"), (
            Step("as chosen", lambda c: broken), Step("the model good", other_model="good")
        )),
        Offer(ServedModel("good"), (Step("as chosen", lambda c: works),)),
    )  # fmt: skip
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = ServingSettings("127.0.0.1", 0, 8, 2.0)
    work = asyncio.ensure_future(
        serve(offers, serving, LeaseBook(tmp_path / "leases"), url.set_result)
    )
    async with aiohttp.ClientSession(await asyncio.wait_for(url, 30)) as client:
        async with client.post(CHAT, json={**BODY, "model": "first"}) as answer:
            assert answer.status == 200
        async with client.get("/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "ok")
    signal.raise_signal(signal.SIGINT)
    await asyncio.wait_for(work, 30)
