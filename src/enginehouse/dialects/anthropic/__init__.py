"""Anthropic's API: messages with stream events and tools, and the count of a prompt's tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from enginehouse.core.body import bool_of, missing, read_object, text_of
from enginehouse.core.catalog import Served
from enginehouse.core.dialect import (
    Ask,
    Count,
    Intent,
    Received,
    Rendered,
    Route,
    RouteKind,
)
from enginehouse.core.errors import ErrorReport, error_text
from enginehouse.dialects.anthropic.request import read_request
from enginehouse.dialects.anthropic.voice import MessageVoice, event

CHAT = "/v1/chat/completions"
ROUTES = (
    Route("POST", "/v1/messages", RouteKind.READ, "", "messages", "answer a conversation"),
    Route(
        "POST", "/v1/messages/count_tokens", RouteKind.READ, "", "count_tokens",
        "count the tokens of a conversation's prompt",
    ),
)  # fmt: skip
TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


@dataclass(frozen=True)
class Anthropic:
    """The dialect; its errors are `{"type": "error", "error": {"type", "message"}}`."""

    name: str = "anthropic"
    routes: tuple[Route, ...] = ROUTES

    def read(self, route: Route, received: Received, catalog: tuple[Served, ...]) -> Intent:
        """Read a request."""
        fields = read_object(received.body)
        model = text_of(fields, "model")
        if not model:
            raise missing("model", "the name of a model that is served")
        if route.operation == "count_tokens":
            body, _ = read_request(fields)
            return Count(model, body, _render_count)
        if fields.get("max_tokens") is None:
            raise missing("max_tokens", "how many tokens the answer may have")
        body, notes = read_request(fields)
        voice = MessageVoice(model, f"msg_{received.request_id}")
        is_stream = bool_of(fields, "stream", False)
        return Ask(
            model, CHAT, body, voice, is_stream, tuple(notes), wants_stop_text="stop" in body
        )

    def render_error(self, report: ErrorReport, status: int) -> Rendered:
        """Render an error before the first byte of an answer."""
        return Rendered(status, json.dumps(_error(report, status), ensure_ascii=False).encode())

    def render_stream_error(self, report: ErrorReport, status: int) -> bytes:
        """Render an error within a stream: an event of the kind `error`."""
        fields = _error(report, status)
        return event("error", {"error": fields["error"]})

    def keep_alive(self) -> bytes:
        """Nothing here is forwarded."""
        return b""


def _render_count(tokens: int) -> Rendered:
    return Rendered(200, json.dumps({"input_tokens": tokens}).encode())


def _error(report: ErrorReport, status: int) -> dict[str, Any]:
    error: dict[str, Any] = {
        "type": TYPES.get(status, "api_error"), "message": error_text(report), "code": report.id,
        "from": report.turn,
    }  # fmt: skip
    if report.remedies:
        error["remedies"] = report.remedies
    return {"type": "error", "error": error}


DIALECT = Anthropic()
