"""The OpenAPI description of what the gateway serves, made of what the dialects declare."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from enginehouse.core.dialect import Dialect, Route
from enginehouse.core.statuses import STATUS

BODIES: dict[str, dict[str, Any]] = {
    "chat": {"model": "string", "messages": "array", "stream": "boolean"},
    "completions": {"model": "string", "prompt": "", "stream": "boolean"},
    "embeddings": {"model": "string", "input": "", "prompt": ""},
    "embed": {"model": "string", "input": ""},
    "rerank": {"model": "string", "query": "string", "documents": "array"},
    "responses": {"model": "string", "input": "", "stream": "boolean"},
    "messages": {"model": "string", "messages": "array", "max_tokens": "integer"},
    "count_tokens": {"model": "string", "messages": "array"},
    "generate": {"model": "string", "prompt": "string", "stream": "boolean"},
    "show": {"model": "string"},
    "pull": {"model": "string", "stream": "boolean"},
    "copy": {"source": "string", "destination": "string"},
    "delete": {"model": "string"},
    "tokenize": {"content": "string"},
    "detokenize": {"tokens": "array"},
}
"""The main fields of each operation's body; engines take many more, which are passed on."""
KINDS = {"application/json": {"schema": {"type": "object"}},
         "text/event-stream": {"schema": {"type": "string"}},
         "application/x-ndjson": {"schema": {"type": "string"}}}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "/health": {"summary": "whether tokens come out of the engine", "also": ("503",)},
    "/v1/health": {"summary": "the same", "also": ("503",)},
    "/metrics": {"summary": "Prometheus metrics", "also": ("401", "403", "429")},
    "/openapi.json": {"summary": "this description", "also": ()},
    "/": {"summary": "that something is running", "also": ()},
}


def describe(dialects: tuple[Dialect, ...]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for route in dialect.routes:
            path = route.path.replace(":path}", "}")
            paths.setdefault(path, {})[route.method.lower()] = _operation(dialect, route)
    for path, own in OWN.items():
        responses = {"200": {"description": "as it says", "content": {"*/*": {}}}}
        responses |= {status: {"description": "not now or not you"} for status in own["also"]}
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
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def _operation(dialect: Dialect, route: Route) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "summary": route.summary or route.operation,
        "tags": [dialect.name],
        "responses": {
            "200": {"description": "the answer", "content": KINDS},
            **{
                str(status): {"description": _ids(status), "content": KINDS}
                for status in sorted(set(STATUS.values()) - {500})
            },
            "default": {"description": "the engine's own error, passed on", "content": KINDS},
        },
    }
    names = re.findall(r"{(\w+)", route.path)
    if names:
        shown["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route.method in ("POST", "DELETE"):
        fields = BODIES.get(route.operation, {})
        properties = {n: {"type": kind} if kind else {} for n, kind in fields.items()}
        schema = {"type": "object", "properties": properties}
        content = {"application/json": {"schema": schema}}
        shown["requestBody"] = {"required": True, "content": content}
    return shown


def _ids(status: int) -> str:
    return ", ".join(id for id, value in STATUS.items() if value == status)
