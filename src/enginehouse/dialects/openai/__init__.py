"""OpenAI's API, with what llama-server and vLLM add to it on the same paths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from enginehouse.core.body import (
    bool_of,
    missing,
    number_of,
    object_of,
    objects_of,
    read_object,
    text_of,
)
from enginehouse.core.catalog import Served, find_served, no_model
from enginehouse.core.dialect import (
    Ask,
    Count,
    Intent,
    Received,
    Rendered,
    Route,
    RouteKind,
    Show,
    Tokenize,
)
from enginehouse.core.errors import ErrorReport, error_text
from enginehouse.core.keep_alive import read_keep_alive
from enginehouse.dialects.openai.chat_voice import CompletionVoice
from enginehouse.dialects.openai.responses import read_request
from enginehouse.dialects.openai.responses_kept import keep_response, read_kept, whole_request
from enginehouse.dialects.openai.responses_voice import ResponseVoice

CHAT = "/v1/chat/completions"
OF_KEPT = ("response", "forget_response", "input_items")
PARAMS = {"previous_response_not_found": "previous_response_id", "item_not_found": "input"}
"""The field that an error is about, where OpenAI's clients look for it."""
LLAMA = ("llama.cpp",)
"""llama-server's own routes, there where it is the engine."""


def _forward(
    path: str, operation: str, summary: str, upstream: str = "", engines: tuple[str, ...] = (),
    method: str = "POST",
) -> Route:  # fmt: skip
    kind = RouteKind.FORWARD
    return Route(method, path, kind, upstream or path, operation, summary, engines)


def _read(
    method: str, path: str, operation: str, summary: str, is_shared: bool = False
) -> Route:  # fmt: skip
    return Route(method, path, RouteKind.READ, "", operation, summary, is_shared=is_shared)


ROUTES = (
    _forward(CHAT, "chat", "answer a conversation"),
    _forward("/v1/completions", "completions", "continue a prompt"),
    _forward("/v1/embeddings", "embeddings", "vectors of texts"),
    _forward("/v1/rerank", "rerank", "order documents by how well they answer a query"),
    _forward("/rerank", "rerank", "the same", "/v1/rerank"),
    _forward("/v1/reranking", "rerank", "the same", "/v1/rerank"),
    _forward("/reranking", "rerank", "the same", "/v1/rerank"),
    _forward("/chat/completions", "chat", "answer a conversation", CHAT),
    _forward("/completion", "completion", "llama-server's own completion", engines=LLAMA),
    _forward("/completions", "completion", "the same", "/completion", LLAMA),
    _forward("/embedding", "embeddings", "llama-server's own embedding", engines=LLAMA),
    _forward("/embeddings", "embeddings", "llama-server's own embedding", engines=LLAMA),
    _forward("/infill", "infill", "fill in code between two parts", engines=LLAMA),
    _forward("/apply-template", "apply_template", "the prompt of a conversation", engines=LLAMA),
    _forward("/props", "props", "llama-server's properties", engines=LLAMA, method="GET"),
    _forward("/slots", "slots", "llama-server's slots", engines=LLAMA, method="GET"),
    _forward("/lora-adapters", "lora", "loaded adapters", engines=LLAMA, method="GET"),
    _read("POST", "/v1/responses", "responses", "answer, as output items"),
    _read("POST", "/responses", "responses", "the same"),
    _read("GET", "/v1/responses/{id}", "response", "a response that is kept"),
    _read("GET", "/responses/{id}", "response", "the same"),
    _read("DELETE", "/v1/responses/{id}", "forget_response", "let a response go"),
    _read("DELETE", "/responses/{id}", "forget_response", "the same"),
    _read("GET", "/v1/responses/{id}/input_items", "input_items", "what came before a response"),
    _read("GET", "/responses/{id}/input_items", "input_items", "the same"),
    _read("POST", "/v1/responses/input_tokens", "count", "count the tokens of a prompt"),
    _read("POST", "/responses/input_tokens", "count", "the same"),
    _read("POST", "/v1/chat/completions/input_tokens", "count", "count the tokens of a prompt"),
    _read("POST", "/chat/completions/input_tokens", "count", "the same"),
    _read("POST", "/tokenize", "tokenize", "the tokens of a text or a conversation"),
    _read("POST", "/detokenize", "detokenize", "the text of tokens"),
    _read("GET", "/v1/models", "models", "the models that can be asked", True),
    _read("GET", "/models", "models", "the same"),
    _read("GET", "/v1/models/{model:path}", "model", "one model", True),
)


@dataclass(frozen=True)
class OpenAI:
    """The dialect; its errors are `{"error": {"message", "type", "param", "code"}}`."""

    name: str = "openai"
    id_header: str = "x-request-id"
    routes: tuple[Route, ...] = ROUTES

    def read(self, route: Route, received: Received, catalog: tuple[Served, ...]) -> Intent:
        """Read a request of a route that is not forwarded."""
        if route.operation == "models":
            return _show(_list(catalog))
        if route.operation == "model":
            wanted = received.path_params["model"]
            served = find_served(catalog, wanted)
            if served is None:
                raise no_model(wanted)
            return _show(_model(served))
        if route.operation in OF_KEPT:
            return read_kept(route.operation, received)
        fields = read_object(received.body)
        model = text_of(fields, "model")
        if route.operation in ("tokenize", "detokenize"):
            return Tokenize(model, fields, route.operation == "detokenize")
        if route.operation == "count":
            is_chat = "messages" in fields
            told = fields if is_chat else whole_request(fields, received.kept).fields
            body = fields if is_chat else read_request(told)[0]
            return Count(model, body, _render_count)
        if route.operation == "chat":
            return _read_chat(fields, model, received)
        return _read_response(fields, model, received)

    def render_error(self, report: ErrorReport, status: int) -> Rendered:
        """Render an error before the first byte of an answer."""
        return Rendered(status, _dump(_error(report, status)))

    def render_stream_error(self, report: ErrorReport, status: int) -> bytes:
        """Render an error within a stream, as the SDK reads it: an event with `error`.

        The empty line ends what an engine left unfinished.
        """
        return b"\n\ndata: " + _dump(_error(report, status)) + b"\n\n"

    def keep_alive(self) -> bytes:
        """A comment, which every reader of events passes over."""
        return b": waiting\n\n"


def _read_chat(fields: dict[str, Any], model: str, received: Received) -> Ask:
    """Read a chat request that cannot be forwarded as it is."""
    kept = ("model", "stream", "stream_options", "n", "num_ctx", "keep_alive")
    body = {name: value for name, value in fields.items() if name not in kept}
    if not objects_of(body, "messages"):
        raise missing("messages", "at least one message")
    options = object_of(fields, "stream_options")
    id = f"chatcmpl-{received.request_id}"
    voice = CompletionVoice(model, id, int(received.at), bool_of(options, "include_usage", False))
    several = number_of(fields, "n") or 1
    notes = ["n is not supported with tools for this model"] if several > 1 else []
    kinds = {text_of(tool, "type", "function") for tool in objects_of(body, "tools")}
    notes += [f"tools of the type {kind} are not offered" for kind in sorted(kinds - {"function"})]
    context = number_of(fields, "num_ctx")
    return Ask(
        model, CHAT, body, voice, bool_of(fields, "stream", False), tuple(notes),
        read_keep_alive(fields), int(context) if context else None,
    )  # fmt: skip


def _read_response(fields: dict[str, Any], model: str, received: Received) -> Ask:
    told = whole_request(fields, received.kept)
    body, notes = read_request(told.fields)
    if fields.get("store") and not told.is_kept:
        notes.append("store is not supported: nothing is kept")
    id = f"resp_{received.answer_id or received.request_id}"
    voice = ResponseVoice(model, id, fields, received.at, told.is_kept)
    context = number_of(fields, "num_ctx")
    return Ask(
        model, CHAT, body, voice, bool_of(fields, "stream", False), tuple(notes),
        read_keep_alive(fields), int(context) if context else None,
        kept=(lambda: keep_response(told, voice.final or {})) if told.is_kept else None,
    )  # fmt: skip


def _list(catalog: tuple[Served, ...]) -> dict[str, object]:
    """Return the list of models, for OpenAI's clients and Anthropic's alike."""
    data = [_model(served) for served in catalog]
    first = data[0]["id"] if data else None
    last = data[-1]["id"] if data else None
    return {
        "object": "list", "data": data, "has_more": False, "first_id": first, "last_id": last
    }  # fmt: skip


def _model(served: Served) -> dict[str, object]:
    """Return one model; `meta` is llama-server's, `max_model_len` vLLM's, the end Anthropic's."""
    made = datetime.fromtimestamp(served.modified_at, timezone.utc)
    return {
        "id": served.name,
        "object": "model",
        "created": int(served.modified_at),
        "owned_by": "enginehouse",
        "aliases": list(served.aliases),
        "max_model_len": served.served_context or served.context_length,
        "meta": {
            "n_ctx_train": served.context_length,
            "n_embd": served.embedding_length,
            "n_params": served.parameters,
            "size": served.bytes,
        },
        "type": "model",
        "display_name": served.name,
        "created_at": made.isoformat(timespec="seconds"),
    }


def _render_count(tokens: int) -> Rendered:
    body = {"object": "response.input_tokens", "input_tokens": tokens, "total_tokens": tokens}
    return Rendered(200, _dump(body))


def _error(report: ErrorReport, status: int) -> dict[str, object]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")
    error: dict[str, Any] = {
        "message": error_text(report), "type": kind, "param": PARAMS.get(report.id),
        "code": report.id, "from": report.turn,
    }  # fmt: skip
    if report.remedies:
        error["remedies"] = report.remedies
    return {"error": error}


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _show(value: object) -> Show:
    return Show(Rendered(200, _dump(value)))


DIALECT = OpenAI()
