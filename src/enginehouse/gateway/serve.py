"""Serve: bind, start the engine, answer until a signal, drain, end the engine."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import uvicorn

from enginehouse.core.errors import EngineError, EnginehouseError
from enginehouse.core.lifecycle import State
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.ports import bind_socket
from enginehouse.gateway.asgi import build_app
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.proxy import Proxy
from enginehouse.gateway.router import Gate
from enginehouse.gateway.supervisor import ServerPlan, Supervisor

SPARE_IN_FLIGHT = 2
"""Requests beyond the slots that may wait at the engine, so that a free slot is never idle."""


@dataclass(frozen=True)
class Listening:
    """Where and how the endpoint listens."""

    host: str
    port: int
    queue_limit: int
    request_limit_bytes: int
    drain_deadline_s: float


async def serve(
    plan: ServerPlan, listening: Listening, leases: LeaseBook, on_ready: Callable[[str], None],
    beside: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]] | None = None,
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM; a second one does not wait for requests to end.

    `beside` runs once the server is ready, and is told whether no request is in flight.

    Raises:
        KeyboardInterrupt: when it was asked to stop before it served.
        MachineError: `port.in_use`, before the engine is started.
        EngineError: `engine.failed`, when the engine cannot be kept running.
    """
    with bind_socket(listening.host, listening.port) as bound:
        supervisor = Supervisor(plan, leases)
        gate = Gate(supervisor, plan.slots + SPARE_IN_FLIGHT, listening.queue_limit)
        metrics = Metrics(supervisor, gate)
        proxy = Proxy(supervisor, gate, metrics, listening.request_limit_bytes)
        owner = asyncio.ensure_future(supervisor.run())
        server = _server(build_app(supervisor, proxy, metrics), listening)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            server.force_exit = stop.is_set()
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        http = asyncio.ensure_future(_answer(server, bound))
        watcher = asyncio.ensure_future(_announce(supervisor, bound, listening.host, on_ready))
        stopping = asyncio.ensure_future(stop.wait())
        besides = asyncio.ensure_future(_run_beside(supervisor, beside)) if beside else None
        try:
            await asyncio.wait({http, watcher, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if watcher.done():
                watcher.result()
        finally:
            server.should_exit = True
            stopping.cancel()
            watcher.cancel()
            if besides is not None:
                besides.cancel()
                await asyncio.gather(besides, return_exceptions=True)
            await asyncio.gather(http, stopping, watcher, return_exceptions=True)
            await supervisor.stop()
            await owner
            await proxy.close()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        if stop.is_set() and not supervisor.last_token_at:
            raise KeyboardInterrupt


async def _run_beside(
    supervisor: Supervisor, beside: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]
) -> None:
    """Run what goes on beside serving; its end, good or bad, does not end the server."""
    if await supervisor.wait_settled() is not State.READY:
        return
    try:
        await beside(lambda: supervisor.in_flight == 0)
    except EnginehouseError as problem:
        logging.getLogger(__name__).warning("what ran beside ended: %s", problem.report.what)


async def _announce(
    supervisor: Supervisor, bound: socket.socket, host: str, on_ready: Callable[[str], None]
) -> None:
    """Say when the server is ready; end, with an error, when it has failed for good."""
    if await supervisor.wait_settled() is State.READY:
        shown = f"[{host}]" if ":" in host else host
        on_ready(f"http://{shown}:{bound.getsockname()[1]}")
    while supervisor.state is not State.FAILED:
        await supervisor.wait_change()
    raise EngineError(
        "engine.failed",
        f"the engine cannot be kept running: {supervisor.reason}",
        evidence=(*supervisor.evidence, f"log {supervisor.plan.log_path}"),
        remedies=("enginehouse up --again", "enginehouse doctor"),
    )


def _server(app: object, listening: Listening) -> uvicorn.Server:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="httptools",
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, int(listening.drain_deadline_s)),
    )
    return uvicorn.Server(config)


async def _answer(server: uvicorn.Server, bound: socket.socket) -> None:
    """Run uvicorn without its own signal handlers: `serve` has them."""
    await server._serve(sockets=[bound])
