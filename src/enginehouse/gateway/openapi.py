"""The OpenAPI description of what the gateway serves, made of what the dialects declare."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from enginehouse.core.dialect import Dialect, Route, RouteKind
from enginehouse.core.statuses import STATUS
from enginehouse.gateway.openapi_schemas import ANSWERS, BODIES, COMPONENTS, QUERIES, Schema, ref

STREAMS = {"openai": "text/event-stream", "anthropic": "text/event-stream",
           "ollama": "application/x-ndjson"}  # fmt: skip
ERRORS = {"openai": "OpenAIError", "ollama": "OllamaError", "anthropic": "AnthropicError"}
EVERY = (401, 403, 408, 413, 429)
"""Statuses of every route: who asks, and how the request comes in."""
ASKS_ENGINE = (404, 502, 503, 504)
NOT_DONE = ("push", "blobs")
KNOWN_AT_ONCE: dict[str, tuple[int, ...]] = {
    "version": (), "tags": (), "ps": (), "models": (), "model": (404,), "show": (404,),
    "response": (400, 404), "forget_response": (404,), "input_items": (400, 404),
    "copy": (404,), "delete": (404,), "create": (404, 501), "push": (501,), "blobs": (404, 501),
}  # fmt: skip
"""What operations that ask no engine give besides."""
DIGEST = {"type": "string", "pattern": "^sha256[:-][0-9a-f]{64}$"}
PLAIN: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
OWN: dict[str, dict[str, Any]] = {
    "/health": {
        "summary": "whether tokens come out of the engine", "shows": "Health", "also": (503,)
    },
    "/v1/health": {"summary": "the same", "shows": "Health", "also": (503,)},
    "/metrics": {"summary": "Prometheus metrics", "shows": "", "also": (401, 403, 429)},
    "/openapi.json": {"summary": "this description", "shows": "Description", "also": ()},
    "/": {"summary": "that something is running", "shows": "", "also": ()},
}  # fmt: skip


def describe(dialects: tuple[Dialect, ...]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for route in dialect.routes:
            path = route.path.replace(":path}", "}")
            paths.setdefault(path, {})[route.method.lower()] = _operation(dialect, route)
    for path, own in OWN.items():
        content = _json(own["shows"]) if own["shows"] else PLAIN
        responses = {"200": {"description": "as it says", "content": content}}
        for status in own["also"]:
            error = content if status == 503 else _json("OpenAIError")
            responses[str(status)] = {"description": _ids(status), "content": error}
        paths[path] = {"get": {"summary": own["summary"], "responses": responses}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Enginehouse",
            "version": version("enginehouse"),
            "description": "OpenAI's, Ollama's and Anthropic's API over the engine that serves a "
            "model best on this machine. Fields that are not named here are passed on to it.",
        },
        "components": {
            "schemas": COMPONENTS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def statuses(route: Route) -> tuple[int, ...]:
    """Return the statuses of the errors that a route can give, sorted.

    500 is not among them: it would be a fault of ours.
    """
    operation = route.operation
    found = {*EVERY, *((400,) if route.method != "GET" else ())}
    if operation in KNOWN_AT_ONCE:
        return tuple(sorted({*found, *KNOWN_AT_ONCE[operation]}))
    found |= {*ASKS_ENGINE}
    if route.kind is RouteKind.FORWARD:
        found |= {400, 501}
    elif operation in ("count", "count_tokens", "tokenize", "detokenize"):
        found.add(501)
    return tuple(sorted(found))


def _operation(dialect: Dialect, route: Route) -> dict[str, Any]:
    key = (dialect.name, route.operation)
    responses: dict[str, Any] = {}
    if route.operation not in NOT_DONE:
        whole, piece = ANSWERS.get(key, ("", ""))
        responses["200"] = {"description": "the answer", **_content(whole)}
        if piece:
            responses["200"]["content"][STREAMS[dialect.name]] = {"schema": _pieces(dialect, piece)}
    error = {} if route.method == "HEAD" else _content(ERRORS[dialect.name])
    if route.is_shared:
        every = {"anyOf": [ref(name) for name in ERRORS.values()]}
        error = {"content": {"application/json": {"schema": every}}}
    for status in statuses(route):
        responses[str(status)] = {"description": _ids(status), **error}
    shown: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "summary": route.summary or route.operation,
        "tags": [dialect.name],
        "responses": responses,
    }
    parameters = [
        {"name": name, "in": "path", "required": True,
         "schema": DIGEST if name == "digest" else {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)", route.path)
    ]  # fmt: skip
    asked = QUERIES.get(key, {}).items()
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in asked]
    if parameters:
        shown["parameters"] = parameters
    body: Schema | None = BODIES.get(key)
    if body is not None:
        content = {"application/json": {"schema": body}}
        shown["requestBody"] = {"required": True, "content": content}
    return shown


def _pieces(dialect: Dialect, name: str) -> Schema:
    """Return the schema of a stream's events, or of the text of a stream of lines.

    What stands in `data` is of `contentSchema`, but for the last event of completions, `[DONE]`.
    """
    shapes = {"anyOf": [ref(name), ref(ERRORS[dialect.name])]}
    inner = {"contentMediaType": "application/json", "contentSchema": shapes}
    if dialect.name == "ollama":
        return {"type": "string", "description": "one JSON object a line", **inner}
    data: Schema = {"type": "string", **inner}
    if name not in ("ResponseEvent", "AnthropicEvent"):
        data = {"anyOf": [{"type": "string", "const": "[DONE]"}, data]}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}}


def _content(name: str) -> dict[str, Any]:
    return {"content": _json(name)} if name else {}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(name)}}


def _ids(status: int) -> str:
    return ", ".join(id for id, value in STATUS.items() if value == status)
