"""Serve: bind, start the engine, answer until a signal, drain, end the engine."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvicorn

from enginehouse.core.errors import EngineError, EnginehouseError
from enginehouse.core.lifecycle import State
from enginehouse.edges.http_guard import GuardedProtocol, SeldomInvalid
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.ports import bind_socket
from enginehouse.edges.request_log import RequestLog
from enginehouse.gateway.asgi import build_app
from enginehouse.gateway.drain import drain
from enginehouse.gateway.journey import Journey, finished_of, row_of
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.proxy import Proxy
from enginehouse.gateway.router import Limits, Offer, Router
from enginehouse.gateway.serving import Serving

if TYPE_CHECKING:
    from enginehouse.edges.telemetry_sdk import Telemetry

log = logging.getLogger(__name__)
UVICORN_LATER_S = 6
"""After our own end of what is left: uvicorn would cancel requests with a traceback for each."""
UVICORN_LOG = logging.getLogger("uvicorn.error")
"""Where uvicorn says what was wrong with a request."""


async def serve(
    offers: tuple[Offer, ...], serving: Serving, leases: LeaseBook,
    on_ready: Callable[[str], None],
    beside: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]] | None = None,
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM; a second one does not wait for requests to end.

    The first offer is loaded at once, pinned ones after it, the others when they are asked for.
    `beside` runs once these are loaded, and is told whether no request is in flight.

    Raises:
        KeyboardInterrupt: when it was asked to stop before it served.
        MachineError: `port.in_use`, before the engine is started.
        UserError: `telemetry.unusable`, likewise.
        EngineError: `engine.failed`, when the first model cannot be kept running.
    """
    with bind_socket(serving.host, serving.port) as bound:
        if serving.telemetry is not None:
            serving.telemetry.start()
        router = Router(
            offers, leases,
            Limits(serving.queue_limit, serving.load_wait_s, free_bytes=serving.free_bytes),
        )  # fmt: skip
        metrics = Metrics(router)
        proxy = Proxy(
            router, metrics, serving.rules, serving.access, serving.library,
            _logger(serving.log, serving.telemetry),
        )  # fmt: skip
        router.aliases.update(serving.library.aliases())
        first = _First(router, offers[0])
        router.start()
        if serving.log is not None:
            serving.log.start()
        calm_collector()
        watching = asyncio.ensure_future(proxy.watch())
        server = _server(build_app(proxy), serving)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            server.force_exit = stop.is_set()
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        seldom = SeldomInvalid()
        UVICORN_LOG.addFilter(seldom)
        http = asyncio.ensure_future(_answer(server, bound))
        watcher = asyncio.ensure_future(first.hold(bound, serving, on_ready))
        stopping = asyncio.ensure_future(stop.wait())
        after = asyncio.ensure_future(_go_on(first, router, offers[1:], beside))
        try:
            await asyncio.wait({http, watcher, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if watcher.done():
                watcher.result()
        finally:
            await drain(server, proxy.journeys, http, serving.drain_deadline_s)
            for task in (stopping, watcher, watching, after):
                task.cancel()
            await asyncio.gather(after, return_exceptions=True)
            await asyncio.gather(http, stopping, watcher, watching, return_exceptions=True)
            await router.stop()
            if serving.log is not None:
                serving.log.stop()
            if serving.telemetry is not None:
                await asyncio.to_thread(serving.telemetry.stop)
            UVICORN_LOG.removeFilter(seldom)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        if stop.is_set() and not first.was_ready:
            raise KeyboardInterrupt


def calm_collector() -> None:
    """Keep the collector from going through all that was imported, which takes 5 to 15 ms a time.

    What is there at the start stays; requests make few cycles, so they are looked for less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _logger(
    log: RequestLog | None, telemetry: Telemetry | None = None
) -> Callable[[Journey], None]:
    """Return what notes the end of a request."""

    def note(journey: Journey) -> None:
        if log is None and telemetry is None:
            return
        row = row_of(journey, time.time())
        if log is not None:
            log.note(row)
        if telemetry is not None:
            telemetry.note(finished_of(journey, row))

    return note


class _First:
    """The model that is served from the start, and whose end for good ends the server."""

    def __init__(self, router: Router, offer: Offer) -> None:
        self._router = router
        self._offer = offer
        self.was_ready = False
        self.ready = asyncio.Event()

    async def hold(
        self, bound: socket.socket, serving: Serving, on_ready: Callable[[str], None]
    ) -> None:
        """Start it, say when it is ready, and return, with an error, when it has failed for good.

        Where its chain ends at another model, that one is held in its place.

        Raises:
            EngineError: `engine.failed`.
        """
        name = self._offer.served.name
        await self._router.find(name)
        while True:
            answering, server = self._router.standing(self._offer)
            if server is None:  # unloaded by a client, or on its way to the next step
                await asyncio.sleep(0.2)
                continue
            state = await server.supervisor.wait_settled()
            if state is State.READY:
                if not self.was_ready:
                    self.was_ready = True
                    self.ready.set()
                    on_ready(_url(bound, serving))
                while server.supervisor.state not in (State.FAILED, State.STOPPED):
                    await server.supervisor.wait_change()
                continue
            if await self._router.fall_back(answering, server):
                await self._router.find(name)
                continue
            supervisor = server.supervisor
            raise EngineError(
                "engine.failed",
                f"the engine cannot be kept running: {supervisor.reason}",
                evidence=(*supervisor.evidence, f"log {server.plan.log_path}"),
                remedies=("enginehouse up --again", "enginehouse doctor"),
            )


def _url(bound: socket.socket, serving: Serving) -> str:
    shown = f"[{serving.host}]" if ":" in serving.host else serving.host
    scheme = "https" if serving.tls is not None else "http"
    return f"{scheme}://{shown}:{bound.getsockname()[1]}"


async def _go_on(
    first: _First, router: Router, others: tuple[Offer, ...],
    beside: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]] | None,
) -> None:  # fmt: skip
    """Once the first model is ready, load the pinned ones, and run what goes on beside serving.

    Its end, good or bad, does not end the server.
    """
    await first.ready.wait()
    for offer in others:
        if offer.is_pinned:
            await _load_pinned(router, offer)
    if beside is None:
        return
    try:
        await beside(lambda: not any(one.in_flight for one in router.servers.values()))
    except EnginehouseError as problem:
        log.warning("what ran beside ended: %s", problem.report.what)


async def _load_pinned(router: Router, offer: Offer) -> None:
    """Load a pinned model, or say why it is not; a request for it tries again."""
    name = offer.served.name
    try:
        problem = await router.preload(offer)
    except EnginehouseError as refusal:
        problem = "; ".join((refusal.report.what, *refusal.report.evidence))
    if problem:
        log.warning("%s is pinned (serve.pin) and could not be loaded: %s", name, problem)
    else:
        log.info("%s is loaded, since it is pinned", name)


def _server(app: object, serving: Serving) -> uvicorn.Server:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=GuardedProtocol,
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        date_header=False,
        timeout_graceful_shutdown=int(serving.drain_deadline_s + UVICORN_LATER_S),
    )
    if serving.tls is not None:
        config.load()
        config.ssl = serving.tls
    return uvicorn.Server(config)


async def _answer(server: uvicorn.Server, bound: socket.socket) -> None:
    """Run uvicorn without its own signal handlers: `serve` has them."""
    await server._serve(sockets=[bound])
