"""The ASGI app: what the dialects declare, and `/health`, `/metrics`, `/`."""

from __future__ import annotations

import json
import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from enginehouse.core.dialect import Dialect, Rendered, Route, RouteKind
from enginehouse.core.errors import ErrorReport
from enginehouse.core.lifecycle import State
from enginehouse.dialects import load_dialects
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.proxy import Proxy, unknown_model
from enginehouse.gateway.supervisor import Supervisor


def build_app(supervisor: Supervisor, proxy: Proxy, metrics: Metrics) -> Starlette:
    """Return the app of one server."""
    created = int(time.time())
    dialects = load_dialects()
    routes = [
        HttpRoute(
            route.path,
            _endpoint(dialect, route, supervisor, proxy, created),
            methods=[route.method],
        )
        for dialect in dialects
        for route in dialect.routes
    ]

    async def health(request: Request) -> Response:
        return _health(supervisor)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def root(request: Request) -> Response:
        name = supervisor.plan.model_name
        return Response(f"Enginehouse serves {name}. See /health, /metrics and /v1/models.\n")

    async def refuse(request: Request, problem: Exception) -> Response:
        status = problem.status_code if isinstance(problem, HTTPException) else 500
        report = ErrorReport(
            "request.no_route" if status == 404 else "request.method",
            f"{request.method} {request.url.path} is not served here",
        )
        return _response(dialects[0].render_error(report, status))

    routes += [
        HttpRoute("/health", health, methods=["GET"]),
        HttpRoute("/metrics", show_metrics, methods=["GET"]),
        HttpRoute("/", root, methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={404: refuse, 405: refuse})


def _endpoint(
    dialect: Dialect, route: Route, supervisor: Supervisor, proxy: Proxy, created: int
) -> ASGIApp:
    name = supervisor.plan.model_name
    if route.kind is RouteKind.FORWARD:
        return _Forward(dialect, route, proxy)

    async def models(request: Request) -> Response:
        return _response(dialect.render_models((name,), created))

    async def model(request: Request) -> Response:
        wanted = request.path_params["model"]
        if not proxy.serves(wanted):
            return _response(dialect.render_error(unknown_model(wanted, name), 404))
        return _response(dialect.render_model(name, created))

    return models if route.kind is RouteKind.MODELS else model  # type: ignore[return-value]


class _Forward:
    """A forwarding route as an ASGI app of its own: nothing between the socket and the proxy."""

    def __init__(self, dialect: Dialect, route: Route, proxy: Proxy) -> None:
        self._dialect = dialect
        self._route = route
        self._proxy = proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._proxy.serve(self._dialect, self._route, scope, receive, send)


def _health(supervisor: Supervisor) -> Response:
    """Answer 200 only while real tokens come out of the engine."""
    ready = supervisor.state is State.READY
    body: dict[str, str | int | float] = {
        "status": "ok" if ready else supervisor.state.value,
        "model": supervisor.plan.model_name,
        "reason": supervisor.reason,
        "restarts": supervisor.restarts,
        "in_flight": supervisor.in_flight,
    }
    if ready:
        body["seconds_since_proof"] = round(time.monotonic() - supervisor.last_token_at, 1)
    headers = {} if ready else {"Retry-After": "5"}
    return Response(json.dumps(body), 200 if ready else 503, headers, media_type="application/json")


def _response(rendered: Rendered) -> Response:
    return Response(rendered.body, rendered.status, media_type=rendered.content_type)
