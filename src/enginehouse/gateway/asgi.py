"""The ASGI app: what the dialects declare, and `/health`, `/metrics`, `/openapi.json`, `/`."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from enginehouse.core.dialect import Dialect, Rendered, Route
from enginehouse.core.errors import EnginehouseError, ErrorReport
from enginehouse.core.statuses import status_of
from enginehouse.dialects import load_dialects
from enginehouse.gateway.answer import RequestError, request_id_of
from enginehouse.gateway.openapi import describe
from enginehouse.gateway.pages import open_to_pages
from enginehouse.gateway.proxy import FAULT, Proxy

log = logging.getLogger(__name__)
NAME = "Enginehouse"
LIVING = "Ollama is running"
"""What Ollama's clients look for at the root, word for word."""


def build_app(proxy: Proxy) -> ASGIApp:
    """Return the app over one router's models, open to the web pages that may ask."""
    dialects = {dialect.name: dialect for dialect in load_dialects()}
    mounted = {
        (route.method, route.path): _Mounted(dialect, route, proxy, dialects)
        for dialect in dialects.values()
        for route in dialect.routes
    }
    routes = [HttpRoute(path, one, methods=[method]) for (method, path), one in mounted.items()]

    async def health(request: Request) -> Response:
        return _health(proxy)

    async def show_metrics(request: Request) -> Response:
        try:
            proxy.access.check(request.scope, "use")
        except (RequestError, EnginehouseError) as problem:
            report, dialect = problem.report, _dialect_of(request, dialects)
            rendered = dialect.render_error(report, status_of(report))
            return _response(rendered, _marks(request, report, dialect))
        return Response(
            proxy.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def root(request: Request) -> Response:
        return Response(LIVING, headers={"Server": NAME}, media_type="text/plain")

    async def openapi(request: Request) -> Response:
        return Response(json.dumps(describe(tuple(dialects.values()))),
                        media_type="application/json")  # fmt: skip

    async def refuse(request: Request, problem: Exception) -> Response:
        status = problem.status_code if isinstance(problem, HTTPException) else 404
        report = ErrorReport(
            "request.no_route" if status == 404 else "request.method",
            f"{request.method} {request.url.path[:200]} is not served here",
            remedies=("GET /openapi.json lists the routes",),
            turn="user",
        )
        headers = dict(getattr(problem, "headers", None) or {})
        if allowed := headers.get("Allow"):
            report = replace(report, evidence=(f"served there: {allowed}",))
        dialect = _dialect_of(request, dialects)
        headers |= _marks(request, report, dialect)
        return _response(dialect.render_error(report, status), headers)

    async def confess(request: Request, problem: Exception) -> Response:
        log.error("a fault of ours at %s", request.url.path, exc_info=problem)
        dialect = _dialect_of(request, dialects)
        rendered = dialect.render_error(FAULT, status_of(FAULT))
        return _response(rendered, _marks(request, FAULT, dialect))

    routes += [
        HttpRoute("/health", health, methods=["GET"]),
        HttpRoute("/v1/health", health, methods=["GET"]),
        HttpRoute("/metrics", show_metrics, methods=["GET"]),
        HttpRoute("/openapi.json", openapi, methods=["GET"]),
        HttpRoute("/", root, methods=["GET"]),
    ]
    others = Starlette(
        routes=routes, exception_handlers={404: refuse, 405: refuse, Exception: confess}
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Go to a dialect's route at once; each layer between costs at every piece sent."""
        one = mounted.get((scope.get("method", ""), scope.get("path", "")), others)
        await one(scope, receive, send)

    return open_to_pages(app, proxy.access.origins)


class _Mounted:
    """A dialect's route as an ASGI app of its own: nothing between the socket and the proxy."""

    def __init__(
        self, dialect: Dialect, route: Route, proxy: Proxy, dialects: dict[str, Dialect]
    ) -> None:
        self._dialect = dialect
        self._route = route
        self._proxy = proxy
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        spoken = self._dialect
        if self._route.is_shared:
            spoken = _dialect_of(Request(scope), self._dialects)
        await self._proxy.serve(self._dialect, self._route, scope, receive, send, spoken)


def _marks(request: Request, report: ErrorReport, dialect: Dialect) -> dict[str, str]:
    """Return the headers of an error outside the APIs' routes, as on them."""
    id = request_id_of(request.scope)
    return {"x-request-id": id, dialect.id_header: id, "x-enginehouse-error": report.id}


def _dialect_of(request: Request, dialects: dict[str, Dialect]) -> Dialect:
    """Return the dialect that a request speaks whose route is shared, or is none."""
    path = request.url.path
    if path.startswith("/api/"):
        return dialects["ollama"]
    if "anthropic-version" in request.headers or path.startswith("/v1/messages"):
        return dialects["anthropic"]
    return dialects["openai"]


def _health(proxy: Proxy) -> Response:
    """Answer 200 only while real tokens come out of the first model's engine, or could on demand.

    A model that is unloaded for want of requests is `idle`: the next request loads it.
    """
    router = proxy.router
    offer = router.default
    server = router.standing(offer)[1] if offer else None
    models = {
        name: {"status": _status(one.supervisor.state.value), "in_flight": one.in_flight}
        for name, one in router.servers.items()
    }
    body: dict[str, object] = {"model": offer.served.name if offer else None, "models": models}
    if server is None:
        is_good = offer is not None
        body |= {"status": "idle" if is_good else "empty", "in_flight": 0}
    else:
        is_good = server.is_ready
        supervisor = server.supervisor
        body |= {
            "status": _status(supervisor.state.value),
            "reason": supervisor.reason,
            "restarts": supervisor.restarts,
            "in_flight": supervisor.in_flight,
        }
        if is_good:
            body["seconds_since_proof"] = round(time.monotonic() - supervisor.last_token_at, 1)
    headers = {} if is_good else {"Retry-After": "5"}
    return Response(
        json.dumps(body), 200 if is_good else 503, headers, media_type="application/json"
    )


def _status(state: str) -> str:
    return "ok" if state == "ready" else state


def _response(rendered: Rendered, headers: dict[str, str] | None = None) -> Response:
    return Response(rendered.body, rendered.status, headers, media_type=rendered.content_type)
