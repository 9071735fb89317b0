"""Carry one request to an engine and its answer back: untouched, or read and rendered."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import aiohttp
import msgspec
from starlette.types import Receive, Scope, Send

from enginehouse.core.body import missing, read_object
from enginehouse.core.catalog import no_embeddings, plain_name
from enginehouse.core.dialect import Dialect, Intent, Received, Route, RouteKind
from enginehouse.core.errors import EnginehouseError, ErrorReport, MachineError, UserError
from enginehouse.core.keep_alive import read_keep_alive
from enginehouse.core.lifecycle import State
from enginehouse.core.statuses import RETRY_AFTER_S, outcome_of, status_of
from enginehouse.core.tools import narrow_choice
from enginehouse.edges.engine_stream import EngineStream, open_stream
from enginehouse.gateway.answer import (
    Answer,
    RequestError,
    answer_id_of,
    header_of,
    line_of,
    read_body,
    request_id_of,
)
from enginehouse.gateway.asking import keep_loaded
from enginehouse.gateway.choices import answer_several
from enginehouse.gateway.contracts import Access, Library, NoLibrary, Open, Rules
from enginehouse.gateway.gate import RejectedError
from enginehouse.gateway.intents import INTENTS
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.kept import KeptAnswers
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.peek import Peek, peek_at
from enginehouse.gateway.pipe import Pipe
from enginehouse.gateway.router import Offer, Router
from enginehouse.gateway.server import Server
from enginehouse.gateway.tokens import shorten
from enginehouse.gateway.upstream import (
    Upstream,
    UpstreamError,
    broke_off,
    error_of_body,
    name_error,
    refusal,
    status_to_client,
    usage_of,
    usage_of_events,
    with_role,
    with_warning,
)

log = logging.getLogger(__name__)
FAULT = ErrorReport("internal.fault", "a fault of Enginehouse itself; please report it")
DEAD_CONNECTION = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)
"""What a kept-alive connection raises that the engine had closed before any byte of an answer."""
NOTICE_S = 2.0
"""How long an engine's end may take to be noticed by its owner."""
KEEP_ALIVE_S = 5.0
"""A client that waits for a model to load hears of it this often."""
JSON_HEADERS = {"Content-Type": "application/json"}
EVENT_STREAM = b"text/event-stream"
TAIL_BYTES = 4096
SHOWS_MEMORY = frozenset({"ps", "tags", "models", "model", "show"})
CHAT = "/v1/chat/completions"
ENDS_WITH_DONE = frozenset({CHAT, "/v1/completions"})
T = TypeVar("T")


class Proxy:
    """Serves the routes of all dialects over the router's servers."""

    def __init__(
        self, router: Router, metrics: Metrics, rules: Rules | None = None,
        access: Access | None = None, library: Library | None = None,
        on_end: Callable[[Journey], None] = lambda journey: None,
    ) -> None:  # fmt: skip
        self.router = router
        self.metrics = metrics
        self.rules = rules or Rules()
        self.access = access or Open()
        self.library = library or NoLibrary()
        self.now = time.time
        self._on_end = on_end
        self.journeys: set[Journey] = set()
        self.kept = KeptAnswers(self.rules.kept)

    async def watch(self) -> None:
        """End requests whose client stalls or that take longer than they may; never returns."""
        while True:
            await asyncio.sleep(1.0)
            self.kept.expire()
            now = time.perf_counter()
            for journey in list(self.journeys):
                stalled_s = now - journey.sending_since if journey.sending_since else 0.0
                if self.rules.stall_limit_s and stalled_s > self.rules.stall_limit_s:
                    journey.end_early(
                        ErrorReport(
                            "request.stalled",
                            f"the client read nothing for {self.rules.stall_limit_s:g} s",
                            remedies=("read the stream as it comes", "raise gateway.stall_limit"),
                            turn="user",
                        )
                    )
                elif self.rules.time_limit_s and journey.total_s > self.rules.time_limit_s:
                    journey.end_early(
                        ErrorReport(
                            "request.time_limit",
                            f"the answer took longer than {self.rules.time_limit_s:g} s",
                            remedies=("ask for fewer tokens", "raise gateway.time_limit"),
                            turn="engine",
                        )
                    )

    async def serve(
        self, dialect: Dialect, route: Route, scope: Scope, receive: Receive, send: Send,
        spoken: Dialect,
    ) -> None:  # fmt: skip
        """Serve one request; it ends as exactly one outcome, which is counted.

        `spoken` is the dialect of its errors: the client's, where dialects share a route.
        """
        answer = Answer(send, request_id_of(scope), line_of(scope))
        answer.name_id(spoken.id_header)
        journey = Journey(
            spoken.name, route.operation, answer.request_id, header_of(scope, b"traceparent")
        )
        self.journeys.add(journey)
        try:
            journey.outcome = await self._serve(dialect, route, scope, receive, answer, journey)
        except RequestError as problem:
            await self._refuse(spoken, answer, journey, problem)
        except asyncio.CancelledError:
            journey.outcome = "cancelled"
            raise
        except UpstreamError as problem:
            journey.error_id = problem.report.id
            journey.outcome = outcome_of(problem.report)
            await self._say(spoken, answer, problem.report, problem.status)
        except EnginehouseError as problem:
            journey.error_id = problem.report.id
            journey.outcome = outcome_of(problem.report)
            retry_s = getattr(problem, "retry_after_s", 0)
            if isinstance(problem, RejectedError):
                journey.outcome = "rejected"
            await self._say(spoken, answer, problem.report, 0, retry_s)
        except Exception:
            log.exception("a fault of ours at %s", route.path)
            journey.outcome, journey.error_id = "failed", FAULT.id
            await self._say(spoken, answer, FAULT)
        finally:
            self.journeys.discard(journey)
            journey.status = answer.status
            self.access.note(journey.caller, journey.usage)
            self.metrics.ended(journey)
            self._on_end(journey)

    async def _refuse(
        self, dialect: Dialect, answer: Answer, journey: Journey, problem: RequestError
    ) -> None:
        journey.outcome = outcome_of(problem.report)
        journey.error_id = problem.report.id
        if problem.status == 401:
            answer.extra.append((b"www-authenticate", b"Bearer"))
        await self._say(dialect, answer, problem.report, problem.status, problem.retry_after_s)

    async def _say(
        self, dialect: Dialect, answer: Answer, report: ErrorReport, status: int = 0,
        retry_after_s: int = 0,
    ) -> None:  # fmt: skip
        """Tell the client of an error, in its dialect, before or within the answer."""
        status = status or status_of(report)
        if answer.has_started:
            await answer.finish(dialect.render_stream_error(report, status))
            return
        answer.note(b"x-enginehouse-error", (report.id,))
        await answer.render(
            dialect.render_error(report, status), retry_after_s or RETRY_AFTER_S.get(report.id, 0)
        )

    async def _serve(
        self, dialect: Dialect, route: Route, scope: Scope, receive: Receive, answer: Answer,
        journey: Journey,
    ) -> str:  # fmt: skip
        journey.caller = self.access.check(scope, route.scope)
        journey.task = asyncio.current_task()
        try:
            body = await read_body(
                receive, answer.line, self.rules.request_limit_bytes, self.rules.body_limit_s
            )
        except asyncio.CancelledError:
            if journey.ended_by is not None:
                raise RequestError(journey.ended_by, status_of(journey.ended_by)) from None
            raise
        finally:
            journey.task = None
        if self.rules.is_content_logged:
            journey.prompt = body.decode("utf-8", "replace")
            answer.copy = journey.answer
        if route.kind is RouteKind.FORWARD:
            work = self._forward(dialect, route, scope, body, answer, journey)
        else:
            work = self._read(dialect, route, scope, body, answer, journey)
        return await self._until_gone(work, answer, journey)

    async def _until_gone(
        self, work: Coroutine[Any, Any, str], answer: Answer, journey: Journey
    ) -> str:
        """Do the work until it is done, the client has gone away, or it is ended from outside."""
        if answer.line.cycle.disconnected:  # while its body was read
            work.close()
            return "cancelled"
        journey.task = asyncio.current_task()
        answer.line.on_gone = journey.leave
        try:
            return await work
        except asyncio.CancelledError:
            if journey.is_gone:
                return "cancelled"
            if journey.ended_by is not None:
                raise RequestError(journey.ended_by, status_of(journey.ended_by)) from None
            raise
        finally:
            answer.line.on_gone = None
            journey.task = None

    # read: what the dialect makes of a request

    async def _read(
        self, dialect: Dialect, route: Route, scope: Scope, body: bytes, answer: Answer,
        journey: Journey,
    ) -> str:  # fmt: skip
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        received = Received(
            body, answer.request_id, time.time(), scope.get("path_params", {}), query,
            answer_id_of(scope, answer.request_id), self.kept.shelf(journey.caller.key),
        )  # fmt: skip
        intent: Intent = dialect.read(
            route, received, self.router.catalog(route.operation in SHOWS_MEMORY)
        )
        return await INTENTS[type(intent)](self, intent, dialect, answer, journey)

    # forward: nothing is read but the model's name

    async def _forward(
        self, dialect: Dialect, route: Route, scope: Scope, body: bytes, answer: Answer,
        journey: Journey,
    ) -> str:  # fmt: skip
        if route.method == "GET":
            return await self._fetch(route, answer, journey)
        peek = peek_at(body)
        if route.operation == "chat" and peek.has_no_messages:
            raise missing("messages", "at least one message")
        if len(peek.tools) > 4 and route.operation == "chat":
            asked = self.router.offer(peek.model or "")
            if asked is not None and not asked.has_own_tools:
                return await self._read(dialect, route, scope, body, answer, journey)
        if route.operation == "embeddings":
            self.check_embeds(peek.model or "")
        is_stream = bool(peek.stream)
        keep_alive_s = read_keep_alive({"keep_alive": peek.keep_alive})

        async def patience() -> None:
            if not answer.has_started:
                await answer.begin(200, EVENT_STREAM)
            await answer.chunk(dialect.keep_alive())

        async def attempt(offer: Offer, server: Server) -> None:
            sent = self._named(body, peek, server)
            if bytes(peek.tool_choice).startswith(b"{") and route.operation == "chat":
                fields = narrow_choice(read_object(sent))
                sent = json.dumps(fields, ensure_ascii=False).encode()
            path = route.upstream_path
            if 0 < server.plan.most_choices < (peek.n or 1):
                fields = read_object(sent)
                await answer_several(self, server, path, fields, peek.n or 1, answer, journey)
                return
            await self._attempt(dialect, offer, server, path, sent, is_stream, answer, journey)

        outcome = await self.with_server(
            peek.model or "", peek.num_ctx, route, attempt, answer, journey,
            patience if is_stream else None,
        )  # fmt: skip
        if keep_alive_s is not None and not journey.error_id:
            keep_loaded(self, peek.model or "", keep_alive_s)
        return outcome

    def _named(self, body: bytes, peek: Peek, server: Server) -> bytes:
        """Return the body with the engine's name for the model, without what is meant for us."""
        wanted = server.plan.model_name
        if (peek.model is None or plain_name(peek.model) == wanted == peek.model) and (
            peek.num_ctx is None and peek.keep_alive is None
        ):
            return body
        fields = read_object(body)
        fields.pop("num_ctx", None)
        fields.pop("keep_alive", None)
        if "model" in fields:
            fields["model"] = wanted
        return json.dumps(fields, ensure_ascii=False).encode()

    async def _fetch(self, route: Route, answer: Answer, journey: Journey) -> str:
        """Answer a GET from the first model's engine; where files lie is not told."""
        offer, server = await self.router.find("")
        journey.model, journey.engine = offer.served.name, server.plan.engine
        if route.engines and server.plan.engine not in route.engines:
            raise _not_there(route, server.plan.engine)
        status, kind, body = await server.get(route.upstream_path)
        if status >= 400:
            raise refusal(body, status)
        if b'"model_path"' in body:
            fields = msgspec.json.decode(body)
            fields["model_path"] = offer.served.name
            body = msgspec.json.encode(fields)
        await answer.whole(status, body, kind.encode())
        return "served"

    def check_embeds(self, model: str) -> None:
        """Refuse vectors of a model that gives none, before anything is loaded for it.

        Raises:
            UserError: `request.embeddings.unsupported`, `model_not_found`.
        """
        offer, _ = self.router.standing(self.router.require(model))
        if "embedding" not in offer.served.capabilities:
            raise no_embeddings(offer.served.name)

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

    async def _attempt(
        self, dialect: Dialect, offer: Offer, server: Server, path: str, body: bytes,
        is_stream: bool, answer: Answer, journey: Journey,
    ) -> None:  # fmt: skip
        async with self.seat(server, path, body) as seated:
            upstream = await self.post(server, path, seated, is_stream)
            if upstream.status == 400 and self.rules.truncation != "error":
                upstream = await self._again_shorter(
                    offer, server, path, body, upstream, is_stream, answer, journey
                )
            async with upstream:
                await self._relay(dialect, server, path, upstream, is_stream, answer, journey)
        if upstream.status == 200:
            server.supervisor.note_served(path, body)

    async def _again_shorter(
        self, offer: Offer, server: Server, path: str, body: bytes, upstream: Upstream,
        is_stream: bool, answer: Answer, journey: Journey,
    ) -> Upstream:  # fmt: skip
        """Send a conversation that is too long once more without its oldest turns, and say so."""
        said = await upstream.read()
        report = error_of_body(said, upstream.status)
        fields = json.loads(body)
        if report.id != "context_length_exceeded" or "messages" not in fields:
            return upstream
        shorter = await self.shorter(offer, server, fields)
        if shorter is None:
            return upstream
        self.note_shorter(shorter[1], answer, journey)
        upstream.release()
        sent = json.dumps(shorter[0], ensure_ascii=False).encode()
        return await self.post(server, path, sent, is_stream)

    def note_shorter(self, said: str, answer: Answer, journey: Journey) -> None:
        """Tell that a prompt was shortened: in a header, with `warn` in the answer too."""
        journey.is_truncated = True
        answer.note(b"x-enginehouse-truncated", (said,))
        if self.rules.truncation == "warn":
            journey.warning = said

    async def shorter(
        self, offer: Offer, server: Server, fields: dict[str, object]
    ) -> tuple[dict[str, object], str] | None:
        """Return a conversation without its oldest turns, and what was done; None if in vain."""
        context = server.plan.context_tokens
        most = fields.get("max_tokens") or fields.get("max_completion_tokens") or 0
        answer_room = min(int(most) if isinstance(most, int) else 0, context // 2)
        room = context - max(answer_room, min(256, context // 4))
        return await shorten(server, offer.tokens_api, fields, room) if context else None

    def seat(self, server: Server, path: str, body: bytes) -> AbstractAsyncContextManager[bytes]:
        """Return what holds a slot for a request and yields its body."""
        keeper = server.supervisor.keeper
        return keeper.seat(path, body) if keeper else nullcontext(body)

    async def _relay(
        self, dialect: Dialect, server: Server, path: str, upstream: Upstream,
        is_stream: bool, answer: Answer, journey: Journey,
    ) -> None:  # fmt: skip
        """Pass the answer on: a stream as its bytes come, anything else whole."""
        kind = upstream.headers.get("content-type", "application/json").encode()
        if upstream.status != 200 or not isinstance(upstream, EngineStream):
            whole = await upstream.read()
            if answer.has_started:  # only kept patient so far: the error goes into the stream
                raise refusal(whole, upstream.status)
            status = upstream.status
            if status >= 400:
                status = status_to_client(status, whole)
                whole = _own_error(dialect, status, whole, answer, journey)
                kind = b"application/json"
            elif journey.warning:
                whole = with_warning(whole, journey.warning)
            journey.usage = usage_of(whole)
            journey.first_byte_s = journey.total_s
            await answer.whole(status, whole, kind)
            return
        await upstream.some()
        journey.first_byte_s = journey.total_s
        if not answer.has_started:
            await answer.begin(200, kind)
        pipe = Pipe(upstream, answer, journey)
        progress = server.supervisor.progress
        tail = b""
        is_chat = path == CHAT

        def take(chunk: bytes) -> None:
            nonlocal tail
            if not journey.chunks and is_chat:
                chunk = with_role(chunk)
            journey.chunks += 1
            progress()
            tail = chunk if len(chunk) > 1024 else tail[-TAIL_BYTES:] + chunk
            pipe.push(chunk)

        await pipe.carry(take)
        if path in ENDS_WITH_DONE and b"[DONE]" not in tail[-64:]:
            raise broke_off(EOFError("its stream ended too soon"), server.supervisor.reason)
        journey.usage = usage_of_events(tail)
        await pipe.finish()

    async def post(
        self, server: Server, path: str, body: bytes, is_stream: bool = False
    ) -> Upstream:
        """Post on a kept connection; again on a fresh one when that was dead, no byte arrived.

        A stream has a connection of its own: engines close it at the end anyway.
        """
        if is_stream:
            return await open_stream(server.plan.endpoint, path, body)
        try:
            return await server.kept.post(path, data=_payload(body), headers=JSON_HEADERS)
        except DEAD_CONNECTION:
            self.metrics.retries.inc()
            return await server.fresh.post(path, data=_payload(body), headers=JSON_HEADERS)


def _own_error(
    dialect: Dialect, status: int, whole: bytes, answer: Answer, journey: Journey
) -> bytes:
    """Note an engine's own error as how the request ended, and return it with our code added."""
    report = error_of_body(whole, status)
    journey.error_id, journey.outcome = report.id, outcome_of(report)
    answer.note(b"x-enginehouse-error", (report.id,))
    return name_error(dialect.render_error(report, status), whole)


def _payload(body: bytes) -> bytes | io.BytesIO:
    """Wrap a large body so that aiohttp sends it in parts and does not block the loop."""
    return body if len(body) <= 1 << 20 else io.BytesIO(body)


def _check_route(route: Route, offer: Offer, server: Server) -> None:
    """Refuse what the model or its engine cannot do.

    Raises:
        UserError: `request.embeddings.unsupported`, `request.no_route`.
    """
    if route.engines and server.plan.engine not in route.engines:
        raise _not_there(route, server.plan.engine)
    if route.operation == "embeddings" and not server.plan.can_embed:
        raise no_embeddings(offer.served.name)


def _not_there(route: Route, engine: str) -> UserError:
    return UserError(
        "request.no_route",
        f"{route.path} is a route of {', '.join(route.engines)}",
        evidence=(f"the engine here is {engine}",),
        remedies=("GET /openapi.json lists the routes",),
    )
