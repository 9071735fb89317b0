"""Hold a request until a server is there for it: loaded, with a place free, alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import aiohttp

from enginehouse.core.catalog import no_embeddings
from enginehouse.core.dialect import Route
from enginehouse.core.errors import MachineError, UserError
from enginehouse.core.lifecycle import State
from enginehouse.gateway.answer import Answer
from enginehouse.gateway.gate import RejectedError
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.router import Offer, Router
from enginehouse.gateway.server import Server
from enginehouse.gateway.upstream import broke_off

DEAD_CONNECTION = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)
"""What a kept-alive connection raises that the engine had closed before any byte of an answer."""
NOTICE_S = 2.0
"""How long an engine's end may take to be noticed by its owner."""
KEEP_ALIVE_S = 5.0
"""A client that waits for a model to load hears of it this often."""
T = TypeVar("T")


class Holding:
    """Finds the servers of a router and waits before them."""

    def __init__(self, router: Router) -> None:
        self.router = router

    async def with_server(
        self, model: str, context: int | None, route: Route | None,
        attempt: Callable[[Offer, Server], Awaitable[None]], answer: Answer, journey: Journey,
        patience: Callable[[], Awaitable[None]] | None = None,
    ) -> str:  # fmt: skip
        """Find a server, hold a place before it, and do the attempt; say whether it was held.

        An engine that died before any byte of an answer, perhaps before its owner saw it, costs
        nothing: the request goes back to the queue once, and is served when the engine is back, or
        by the next step of the model's fallback chain.
        """
        journey.asked = model
        first = True
        while True:
            offer, server = await self._find_server(model, context, journey, patience)
            if route is not None:
                _check_route(route, offer, server)
            try:
                await self._enter(server, journey, patience)
            except RejectedError:
                if not await self._next_step(offer, server, answer):
                    raise
                journey.has_fallen_back = True
                continue
            try:
                await attempt(offer, server)
                return journey.outcome or ("held-then-served" if journey.is_held else "served")
            except (aiohttp.ClientError, OSError) as problem:
                is_dead = isinstance(problem, DEAD_CONNECTION)
                if not first or journey.chunks or answer.has_started or not is_dead:
                    raise broke_off(problem, server.supervisor.reason) from problem
            finally:
                server.leave(journey.caller)
            first = False
            await server.supervisor.wait_noticed(NOTICE_S)

    async def _enter(
        self, server: Server, journey: Journey, patience: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Pass the server's gate; while its engine starts, for a bounded time and patiently."""
        began = time.perf_counter()
        if server.is_ready:
            journey.is_held |= await server.enter(journey.caller)
            journey.queue_s += time.perf_counter() - began
            return
        journey.is_held |= await self._patiently(
            server.enter(journey.caller), patience, server.plan.model_name
        )
        journey.load_s += time.perf_counter() - began

    async def _patiently(
        self, work: Coroutine[Any, Any, T], patience: Callable[[], Awaitable[None]] | None,
        model: str,
    ) -> T:  # fmt: skip
        """Await something that takes long; the client hears of it now and then.

        Raises:
            MachineError: `model.load_timeout`.
        """
        limit_s = self.router.limits.load_wait_s
        task = asyncio.ensure_future(work)
        ends = time.monotonic() + limit_s
        try:
            while not task.done():
                if time.monotonic() > ends:
                    raise MachineError(
                        "model.load_timeout",
                        f"{model} was not loaded in time",
                        evidence=(f"serve.load_wait is {limit_s:g} s",),
                        remedies=("ask again later", "raise serve.load_wait"),
                    )
                await asyncio.wait({task}, timeout=min(KEEP_ALIVE_S, limit_s))
                if not task.done() and patience is not None:
                    await patience()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _next_step(self, offer: Offer, server: Server, answer: Answer) -> bool:
        if server.supervisor.state is not State.FAILED or answer.has_started:
            return False
        return await self.router.fall_back(offer, server)

    async def _find_server(
        self, model: str, context: int | None, journey: Journey,
        patience: Callable[[], Awaitable[None]] | None,
    ) -> tuple[Offer, Server]:  # fmt: skip
        """Return the model's server, which may have to be started; the client is kept patient."""
        offer = self.router.require(model)
        loaded = self.router.loaded(offer, context)
        if loaded is not None:
            journey.model, journey.engine = offer.served.name, loaded.plan.engine
            return offer, loaded
        began = time.perf_counter()
        served, server = await self._patiently(
            self.router.find(model, context), patience, offer.served.name
        )
        journey.has_fallen_back |= served is not offer
        journey.is_held = True
        journey.load_s += time.perf_counter() - began
        journey.model, journey.engine = served.served.name, server.plan.engine
        return served, server


def _check_route(route: Route, offer: Offer, server: Server) -> None:
    """Refuse what the model or its engine cannot do.

    Raises:
        UserError: `request.embeddings.unsupported`, `request.no_route`.
    """
    if route.engines and server.plan.engine not in route.engines:
        raise not_there(route, server.plan.engine)
    if route.operation == "embeddings" and not server.plan.can_embed:
        raise no_embeddings(offer.served.name)


def not_there(route: Route, engine: str) -> UserError:
    """Return the error of a route that the engine here does not have."""
    return UserError(
        "request.no_route",
        f"{route.path} is a route of {', '.join(route.engines)}",
        evidence=(f"the engine here is {engine}",),
        remedies=("GET /openapi.json lists the routes",),
    )
