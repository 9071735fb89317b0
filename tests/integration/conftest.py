"""Servers over the fake engine, on real sockets, with nothing left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn

from enginehouse.core.catalog import Served as ServedModel
from enginehouse.core.engine import Endpoint
from enginehouse.edges.http import open_session
from enginehouse.edges.http_guard import GuardedProtocol
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.ports import bind_socket
from enginehouse.edges.records import Records
from enginehouse.gateway.asgi import build_app
from enginehouse.gateway.contracts import Access, Rules
from enginehouse.gateway.gate import Gate
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.proxy import Proxy
from enginehouse.gateway.router import Limits, Offer, Router, Step
from enginehouse.gateway.server import Server
from enginehouse.gateway.supervisor import ServerPlan, Supervisor

FAKE_ENGINE = str(Path(__file__).parents[1] / "fake_engine.py")


def fake_plan(folder: Path, *script: str, slots: int = 4, shared_slots: int = 0) -> ServerPlan:
    """A plan that starts the fake engine with this script."""
    path = f"/tmp/enginehouse-test-{uuid.uuid4().hex[:12]}.sock"
    return ServerPlan(
        model_name="fake",
        engine="fake",
        argv=(sys.executable, FAKE_ENGINE, "--host", path, *script),
        env=(),
        endpoint=Endpoint(socket_path=path),
        ready_path="/health",
        log_path=folder / "engine.log",
        slots=slots,
        load_deadline_s=15.0,
        first_token_deadline_s=5.0,
        probe_interval_s=0.3,
        token_interval_s=0.3,
        scratch=folder / "scratch",
        shared_slots=shared_slots,
        probe_deadline_s=2.0,
    )


def _with_context(plan: ServerPlan, context: int | None) -> ServerPlan:
    """Return the plan of a server with another context, on an endpoint of its own."""
    return plan if context is None else dataclasses.replace(plan, context_tokens=context)


@dataclass
class Served:
    """A gateway over a fake engine, its client, and a client to the engine itself."""

    router: Router
    proxy: Proxy
    server: Server
    client: aiohttp.ClientSession
    engine: aiohttp.ClientSession
    leases: LeaseBook

    @property
    def supervisor(self) -> Supervisor:
        return self.server.supervisor

    @property
    def gate(self) -> Gate:
        return self.server.gate

    async def engine_state(self) -> dict[str, Any]:
        async with self.engine.get("/fake/state") as answer:
            state: dict[str, Any] = await answer.json()
            return state


Serving = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Records in a folder of the test's own."""
    book = Records(tmp_path / "records.sqlite")
    book.open()
    yield book
    book.close()


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Return a context that serves the fake engine with a script."""

    @asynccontextmanager
    async def serve(
        *script: str,
        slots: int = 4,
        queue_limit: int = 16,
        settle: bool = True,
        shared_slots: int = 0,
        rules: Rules | None = None,
        more: tuple[Offer, ...] = (),
        facts: ServedModel | None = None,
        room_bytes: int = 1 << 62,
        embeds: bool = False,
        context: int = 0,
        needed_bytes: int = 0,
        pin: bool = False,
        own_tools: bool = True,
        tells_length: bool = True,
        access: Access | None = None,
        limits: Limits | None = None,
        on_end: Callable[[Journey], None] = lambda journey: None,
    ) -> AsyncIterator[Served]:
        plan = fake_plan(tmp_path, *script, slots=slots, shared_slots=shared_slots)
        plan = dataclasses.replace(plan, can_embed=embeds, context_tokens=context)
        leases = LeaseBook(tmp_path / "leases")
        step = Step(
            "as chosen", lambda wanted: _with_context(plan, wanted), needed_bytes, context
        )  # fmt: skip
        ability = "embedding" if embeds else "completion"
        offer = Offer(
            facts or ServedModel("fake", capabilities=(ability,)),
            (step,), tokens_api="llama-server",
            has_own_tools=own_tools, is_pinned=pin, tells_length=tells_length,
        )  # fmt: skip
        limits = limits or Limits(
            queue_limit,
            spare=0,
            free_bytes=lambda: room_bytes - needed_bytes * len(router.servers),
        )
        router = Router((offer, *more), leases, limits)
        rules = rules or Rules(request_limit_bytes=1 << 20)
        proxy = Proxy(router, Metrics(router), rules, access, on_end=on_end)
        _, server_of_fake = await router.find("fake")
        router.start()
        watching = asyncio.ensure_future(proxy.watch())
        bound = bind_socket("127.0.0.1", 0)
        app = build_app(proxy)
        config = uvicorn.Config(
            app, http=GuardedProtocol, lifespan="off", ws="none", log_config=None, access_log=False
        )
        config.timeout_graceful_shutdown = 1
        server = uvicorn.Server(config)
        http = asyncio.ensure_future(server._serve(sockets=[bound]))
        port = bound.getsockname()[1]
        client = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        engine = open_session(plan.endpoint, keep_alive=False)
        try:
            if settle:
                await asyncio.wait_for(server_of_fake.supervisor.wait_settled(), 20)
            yield Served(router, proxy, server_of_fake, client, engine, leases)
        finally:
            await client.close()
            await engine.close()
            server.should_exit = True
            await http
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await router.stop()
            bound.close()
        assert not list((tmp_path / "leases").glob("*.json"))
        assert not os.path.exists(plan.endpoint.socket_path)

    return serve
