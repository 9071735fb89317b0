"""Forward one request to the engine and its answer back, bytes untouched."""

from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import aiohttp
import msgspec
from starlette.types import Message, Receive, Scope, Send

from enginehouse.core.dialect import Dialect, Rendered, Route
from enginehouse.core.errors import EnginehouseError, ErrorReport
from enginehouse.edges.http import open_session
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.router import Gate, RejectedError
from enginehouse.gateway.supervisor import Supervisor

DEAD_CONNECTION = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)
"""What a kept-alive connection raises that the engine had closed before any byte of an answer."""


NOTICE_S = 2.0
"""How long an engine's end may take to be noticed by its owner."""


class _Peek(msgspec.Struct):
    """The two fields that the gateway itself looks at."""

    model: str | None = None
    stream: bool | None = None


_PEEK = msgspec.json.Decoder(_Peek)


@dataclass(frozen=True)
class RequestError(Exception):
    """A request that cannot be served, with the HTTP status to say so."""

    report: ErrorReport
    status: int
    retry_after_s: int = 0


class Proxy:
    """Serves the forwarding routes of all dialects over one server."""

    def __init__(
        self, supervisor: Supervisor, gate: Gate, metrics: Metrics, request_limit_bytes: int
    ) -> None:
        self._supervisor = supervisor
        self._gate = gate
        self._metrics = metrics
        self._request_limit_bytes = request_limit_bytes
        self._kept = open_session(supervisor.plan.endpoint)
        self._fresh = open_session(supervisor.plan.endpoint, keep_alive=False)

    async def close(self) -> None:
        """Close the connections to the engine."""
        await self._kept.close()
        await self._fresh.close()

    async def serve(
        self, dialect: Dialect, route: Route, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one request; it ends as exactly one outcome, which is counted."""
        began = time.perf_counter()
        answer = _Answer(send, request_id_of(scope))
        try:
            outcome = await self._serve(dialect, route, receive, answer, began)
        except RequestError as problem:
            outcome = "rejected"
            rendered = dialect.render_error(problem.report, problem.status)
            await answer.render(rendered, problem.retry_after_s)
        except asyncio.CancelledError:
            self._count(dialect, route, "cancelled", began)
            raise
        except EnginehouseError as problem:
            outcome = "failed"
            if answer.has_started:
                await answer.fail(dialect.render_stream_error(problem.report, 502))
            else:
                await answer.render(dialect.render_error(problem.report, 502), 1)
        self._count(dialect, route, outcome, began)

    def _count(self, dialect: Dialect, route: Route, outcome: str, began: float) -> None:
        self._metrics.ended(dialect.name, route.operation, outcome, time.perf_counter() - began)

    async def _serve(
        self, dialect: Dialect, route: Route, receive: Receive, answer: _Answer, began: float
    ) -> str:
        body = await read_body(receive, self._request_limit_bytes)
        peek = self._check(body, route)
        work = asyncio.ensure_future(self._forward(dialect, route, body, peek, answer, began))
        gone = asyncio.ensure_future(_wait_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else "cancelled"
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    def _check(self, body: bytes, route: Route) -> _Peek:
        try:
            peek = _PEEK.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            report = ErrorReport(
                "request.not_json", "the body is not the JSON it should be", (str(problem),)
            )
            raise RequestError(report, 400) from problem
        if peek.model and not self.serves(peek.model):
            raise RequestError(unknown_model(peek.model, self._supervisor.plan.model_name), 404)
        if route.operation == "embeddings" and not self._supervisor.plan.can_embed:
            report = ErrorReport(
                "request.embeddings.unsupported",
                f"{self._supervisor.plan.model_name} does not declare a pooling type: "
                "it is no embedding model",
            )
            raise RequestError(report, 400)
        return peek

    def serves(self, name: str) -> bool:
        """Whether a request's model name means the served one; `x` and `x:latest` are equal."""
        return name.removesuffix(":latest") == self._supervisor.plan.model_name

    async def _forward(
        self,
        dialect: Dialect,
        route: Route,
        body: bytes,
        peek: _Peek,
        answer: _Answer,
        began: float,
    ) -> str:
        """Send the request to the engine and its answer back; say whether it was held before.

        An engine that died before any byte of an answer, perhaps before its owner saw it, costs
        nothing: the request goes back to the queue once, and is served when the engine is back.
        """
        held = False
        for is_last in (False, True):
            async with self._place() as was_held:
                held |= was_held
                try:
                    await self._attempt(dialect, route, body, peek, answer, began)
                    return "held-then-served" if held else "served"
                except (aiohttp.ClientError, OSError) as problem:
                    is_dead = isinstance(problem, DEAD_CONNECTION)
                    if is_last or answer.has_started or not is_dead:
                        raise self._broke_off(problem) from problem
            await self._supervisor.wait_noticed(NOTICE_S)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(
        self,
        dialect: Dialect,
        route: Route,
        body: bytes,
        peek: _Peek,
        answer: _Answer,
        began: float,
    ) -> None:
        keeper = self._supervisor.keeper
        seat = keeper.seat(route.upstream_path, body) if keeper else nullcontext(body)
        async with seat as seated:
            upstream = await self._post(route.upstream_path, seated)
            await self._relay(upstream, dialect, route, peek, answer, began)
            if upstream.status == 200:
                self._supervisor.note_served(route.upstream_path, body)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[bool]:
        """Hold a place before the engine; yields whether the request had to wait for it."""
        held = await self._enter()
        try:
            yield held
        finally:
            self._gate.leave()

    async def _enter(self) -> bool:
        try:
            held = await self._gate.enter()
        except RejectedError as problem:
            raise RequestError(problem.report, 503, problem.retry_after_s) from problem
        self._supervisor.progress()
        return held

    def _broke_off(self, problem: BaseException) -> EnginehouseError:
        return EnginehouseError(
            "engine.broke_off",
            "the engine broke off while it answered",
            evidence=(f"{type(problem).__name__}: {problem}", self._supervisor.reason),
            remedies=("send the request again",),
        )

    async def _relay(
        self,
        upstream: aiohttp.ClientResponse,
        dialect: Dialect,
        route: Route,
        peek: _Peek,
        answer: _Answer,
        began: float,
    ) -> None:
        """Pass the answer on: a stream as its bytes come, anything else whole."""
        async with upstream:
            if not (peek.stream and upstream.status == 200):
                whole = await upstream.read()
                await answer.start(upstream, len(whole))
                await answer.finish(whole)
                return
            await answer.start(upstream)
            first = True
            async for chunk in upstream.content.iter_any():
                if first:
                    first = False
                    after_s = time.perf_counter() - began
                    self._metrics.first_byte(dialect.name, route.operation, after_s)
                self._supervisor.progress()
                await answer.chunk(chunk)
            await answer.finish()

    async def _post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """Post on a kept connection; again on a fresh one when that was dead, no byte arrived.

        llama-server answers a stream with keep-alive and then closes the connection.
        """
        headers = {"Content-Type": "application/json"}
        try:
            return await self._kept.post(path, data=_payload(body), headers=headers)
        except DEAD_CONNECTION:
            self._metrics.retries.inc()
            return await self._fresh.post(path, data=_payload(body), headers=headers)


def _payload(body: bytes) -> bytes | io.BytesIO:
    """Wrap a large body so that aiohttp sends it in parts and does not block the loop."""
    return body if len(body) <= 1 << 20 else io.BytesIO(body)


class _Answer:
    """The answer to one request, on its way out."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id.encode("latin-1", "replace")
        self.has_started = False

    async def start(self, upstream: aiohttp.ClientResponse, length: int | None = None) -> None:
        kind = upstream.headers.get("Content-Type", "application/json")
        headers = [(b"content-type", kind.encode()), (b"x-request-id", self._request_id)]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        else:
            headers.append((b"cache-control", b"no-cache"))
        await self._begin(upstream.status, headers)

    async def chunk(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def fail(self, event: bytes) -> None:
        await self.finish(b"\n\n" + event)

    async def render(self, rendered: Rendered, retry_after_s: int) -> None:
        headers = [
            (b"content-type", rendered.content_type.encode()),
            (b"content-length", str(len(rendered.body)).encode()),
            (b"x-request-id", self._request_id),
        ]
        if retry_after_s:
            headers.append((b"retry-after", str(retry_after_s).encode()))
        await self._begin(rendered.status, headers)
        await self.finish(rendered.body)

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_started = True
        message: Message = {"type": "http.response.start", "status": status, "headers": headers}
        await self._send(message)


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """Read a request's whole body.

    Raises:
        RequestError: 413 when it is larger than the limit.
    """
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            report = ErrorReport(
                "request.too_large",
                f"the body is larger than {limit_bytes:,} bytes",
                remedies=("raise gateway.request_limit",),
            )
            raise RequestError(report, 413)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def request_id_of(scope: Scope) -> str:
    """Return the client's x-request-id, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and len(value) <= 128:
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex


def unknown_model(name: str, served: str) -> ErrorReport:
    """Report a model that is not served, naming the one that is."""
    return ErrorReport(
        "model_not_found",
        f"the model {name[:100]!r} is not served here",
        (f"served: {served}",),
        (f"ask for {served}", f"enginehouse up {name[:100]}"),
    )
