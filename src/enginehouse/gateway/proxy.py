"""Serve one request: read or forwarded, ended as exactly one outcome, its errors told."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from enginehouse.core.catalog import no_embeddings
from enginehouse.core.dialect import Dialect, Intent, Received, Route, RouteKind
from enginehouse.core.errors import EnginehouseError, ErrorReport
from enginehouse.core.statuses import RETRY_AFTER_S, outcome_of, status_of
from enginehouse.edges.engine_stream import open_stream
from enginehouse.gateway.answer import (
    Answer,
    RequestError,
    answer_id_of,
    header_of,
    line_of,
    read_body,
    request_id_of,
)
from enginehouse.gateway.contracts import Access, Library, NoLibrary, Open, Rules
from enginehouse.gateway.forwarding import Forwarding
from enginehouse.gateway.gate import RejectedError
from enginehouse.gateway.holding import DEAD_CONNECTION, Holding
from enginehouse.gateway.intents import INTENTS
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.kept import KeptAnswers
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.router import Offer, Router
from enginehouse.gateway.server import Server
from enginehouse.gateway.tokens import shorten
from enginehouse.gateway.upstream import (
    Upstream,
    UpstreamError,
)

log = logging.getLogger(__name__)
FAULT = ErrorReport("internal.fault", "a fault of Enginehouse itself; please report it")
JSON_HEADERS = {"Content-Type": "application/json"}
SHOWS_MEMORY = frozenset({"ps", "tags", "models", "model", "show"})


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
        self.holding = Holding(router)
        self.forwarding = Forwarding(self)

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
            work = self.forwarding.forward(dialect, route, scope, body, answer, journey)
        else:
            work = self.read(dialect, route, scope, body, answer, journey)
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

    async def read(
        self, dialect: Dialect, route: Route, scope: Scope, body: bytes, answer: Answer,
        journey: Journey,
    ) -> str:  # fmt: skip
        """Do what the dialect makes of a request, and say how it ended."""
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        received = Received(
            body, answer.request_id, time.time(), scope.get("path_params", {}), query,
            answer_id_of(scope, answer.request_id), self.kept.shelf(journey.caller.key),
        )  # fmt: skip
        intent: Intent = dialect.read(
            route, received, self.router.catalog(route.operation in SHOWS_MEMORY)
        )
        return await INTENTS[type(intent)](self, intent, dialect, answer, journey)

    def check_embeds(self, model: str) -> None:
        """Refuse vectors of a model that gives none, before anything is loaded for it.

        Raises:
            UserError: `request.embeddings.unsupported`, `model_not_found`.
        """
        offer, _ = self.router.standing(self.router.require(model))
        if "embedding" not in offer.served.capabilities:
            raise no_embeddings(offer.served.name)

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


def _payload(body: bytes) -> bytes | io.BytesIO:
    """Wrap a large body so that aiohttp sends it in parts and does not block the loop."""
    return body if len(body) <= 1 << 20 else io.BytesIO(body)
