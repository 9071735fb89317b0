"""Forward a request in the engine's own dialect: nothing is read but what has to be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
from starlette.types import Scope

from enginehouse.core.body import missing, read_object
from enginehouse.core.catalog import plain_name
from enginehouse.core.dialect import Dialect, Route
from enginehouse.core.keep_alive import read_keep_alive
from enginehouse.core.statuses import outcome_of
from enginehouse.core.tools import narrow_choice
from enginehouse.edges.engine_stream import EngineStream
from enginehouse.gateway.answer import Answer
from enginehouse.gateway.asking import keep_loaded
from enginehouse.gateway.choices import answer_several
from enginehouse.gateway.holding import not_there
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.peek import Peek, peek_at
from enginehouse.gateway.pipe import Pipe
from enginehouse.gateway.router import Offer
from enginehouse.gateway.server import Server
from enginehouse.gateway.upstream import (
    Upstream,
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

if TYPE_CHECKING:
    from enginehouse.gateway.proxy import Proxy

EVENT_STREAM = b"text/event-stream"
TAIL_BYTES = 4096
CHAT = "/v1/chat/completions"
ENDS_WITH_DONE = frozenset({CHAT, "/v1/completions"})


class Forwarding:
    """Carries requests to engines as they are, for a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def forward(
        self, dialect: Dialect, route: Route, scope: Scope, body: bytes, answer: Answer,
        journey: Journey,
    ) -> str:  # fmt: skip
        """Forward one request and its answer, and say how it ended.

        Raises:
            EnginehouseError: what the router, the engine or the request itself says.
            RejectedError: there is no place before the engine.
        """
        if route.method == "GET":
            return await self._fetch(route, answer, journey)
        peek = peek_at(body)
        if route.operation == "chat" and peek.has_no_messages:
            raise missing("messages", "at least one message")
        if route.operation == "chat" and self._must_be_read(peek, body):
            return await self._proxy.read(dialect, route, scope, body, answer, journey)
        if route.operation == "embeddings":
            self._proxy.check_embeds(peek.model or "")
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
                await answer_several(
                    self._proxy, server, path, fields, peek.n or 1, answer, journey
                )
                return
            await self._attempt(dialect, offer, server, path, sent, is_stream, answer, journey)

        outcome = await self._proxy.holding.with_server(
            peek.model or "", peek.num_ctx, route, attempt, answer, journey,
            patience if is_stream else None,
        )  # fmt: skip
        if keep_alive_s is not None and not journey.error_id:
            keep_loaded(self._proxy, peek.model or "", keep_alive_s)
        return outcome

    def _must_be_read(self, peek: Peek, body: bytes) -> bool:
        """Whether the engine would not do with a chat request what it asks for.

        Tools that its model or engine does not know, and a limit that it does not say was met; not
        where logprobs or several choices are asked for, which only the engine's own answer holds.
        """
        asked = self._proxy.router.offer(peek.model or "")
        if asked is None:
            return False
        if len(peek.tools) > 4 and not asked.has_own_tools:
            return True
        if asked.tells_length or (peek.n or 1) != 1:
            return False
        return b'"max_' in body and b'"logprobs"' not in body

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
        offer, server = await self._proxy.router.find("")
        journey.model, journey.engine = offer.served.name, server.plan.engine
        if route.engines and server.plan.engine not in route.engines:
            raise not_there(route, server.plan.engine)
        status, kind, body = await server.get(route.upstream_path)
        if status >= 400:
            raise refusal(body, status)
        if b'"model_path"' in body:
            fields = msgspec.json.decode(body)
            fields["model_path"] = offer.served.name
            body = msgspec.json.encode(fields)
        await answer.whole(status, body, kind.encode())
        return "served"

    async def _attempt(
        self, dialect: Dialect, offer: Offer, server: Server, path: str, body: bytes,
        is_stream: bool, answer: Answer, journey: Journey,
    ) -> None:  # fmt: skip
        async with self._proxy.seat(server, path, body) as seated:
            upstream = await self._proxy.post(server, path, seated, is_stream)
            if upstream.status == 400 and self._proxy.rules.truncation != "error":
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
        shorter = await self._proxy.shorter(offer, server, fields)
        if shorter is None:
            return upstream
        self._proxy.note_shorter(shorter[1], answer, journey)
        upstream.release()
        sent = json.dumps(shorter[0], ensure_ascii=False).encode()
        return await self._proxy.post(server, path, sent, is_stream)

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


def _own_error(
    dialect: Dialect, status: int, whole: bytes, answer: Answer, journey: Journey
) -> bytes:
    """Note an engine's own error as how the request ended, and return it with our code added."""
    report = error_of_body(whole, status)
    journey.error_id, journey.outcome = report.id, outcome_of(report)
    answer.note(b"x-enginehouse-error", (report.id,))
    return name_error(dialect.render_error(report, status), whole)
