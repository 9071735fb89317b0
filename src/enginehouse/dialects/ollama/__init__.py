"""Ollama's API, natively: every route of its server that a client depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse.core.body import (
    bool_of,
    invalid,
    list_of,
    missing,
    number_of,
    read_object,
    text_of,
)
from enginehouse.core.catalog import Served, find_served, no_model
from enginehouse.core.dialect import (
    Ask,
    Copy,
    Delete,
    Intent,
    Load,
    Pull,
    Received,
    Rendered,
    Route,
    RouteKind,
    Show,
)
from enginehouse.core.errors import ErrorReport, UserError
from enginehouse.core.keep_alive import read_keep_alive
from enginehouse.dialects.ollama.catalog import show_model, show_running, show_tags
from enginehouse.dialects.ollama.request import (
    CHAT_FIELDS,
    GENERATE_FIELDS,
    content_with_images,
    read_messages,
    read_options,
    read_shape,
    unknown_fields,
)
from enginehouse.dialects.ollama.template import render_template
from enginehouse.dialects.ollama.voice import ChatVoice, EmbedVoice, PullLines, error_fields

VERSION = "0.30.0"
"""The version of Ollama's API that is spoken here; clients compare its numbers."""
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def _read(method: str, path: str, operation: str, summary: str, scope: str = "use") -> Route:
    return Route(method, path, RouteKind.READ, "", operation, summary, scope=scope)


ROUTES = (
    _read("GET", "/api/version", "version", "the version of Ollama's API spoken here"),
    _read("GET", "/api/tags", "tags", "the models that can be asked"),
    _read("GET", "/api/ps", "ps", "the models that are loaded"),
    _read("POST", "/api/show", "show", "one model's facts"),
    _read("POST", "/api/chat", "chat", "answer a conversation"),
    _read("POST", "/api/generate", "generate", "answer a prompt"),
    _read("POST", "/api/embed", "embed", "vectors of texts"),
    _read("POST", "/api/embeddings", "embeddings", "the vector of one text (legacy)"),
    _read("POST", "/api/pull", "pull", "fetch a model; a known name succeeds at once", "admin"),
    _read("POST", "/api/copy", "copy", "give a model another name besides", "admin"),
    _read("DELETE", "/api/delete", "delete", "take a name away; the file stays", "admin"),
    _read("POST", "/api/create", "create", "not supported", "admin"),
    _read("POST", "/api/push", "push", "not supported", "admin"),
    _read("POST", "/api/blobs/{digest}", "blobs", "not supported", "admin"),
    _read("HEAD", "/api/blobs/{digest}", "blobs", "not supported", "admin"),
)


@dataclass(frozen=True)
class Ollama:
    """The dialect; its errors are `{"error": "text"}`, with a code and whose turn it is besides."""

    name: str = "ollama"
    id_header: str = "x-request-id"
    routes: tuple[Route, ...] = ROUTES

    def read(self, route: Route, received: Received, catalog: tuple[Served, ...]) -> Intent:
        """Read a request of any route."""
        if route.operation == "version":
            return _show({"version": VERSION})
        if route.operation == "tags":
            return _show(show_tags(catalog))
        if route.operation == "ps":
            return _show(show_running(catalog, received.at))
        if route.operation in ("create", "push", "blobs"):
            raise UserError(
                "request.not_supported",
                f"{route.path} is not supported by Enginehouse",
                evidence=("models are not made, sent away or uploaded here",),
                remedies=("make models with their own tools; add files: enginehouse models add",),
            )
        return _read_model_route(route.operation, read_object(received.body), catalog)

    def render_error(self, report: ErrorReport, status: int) -> Rendered:
        """Render an error before the first byte of an answer."""
        return Rendered(status, json.dumps(error_fields(report), ensure_ascii=False).encode())

    def render_stream_error(self, report: ErrorReport, status: int) -> bytes:
        """Render an error within a stream: one line with `error`."""
        return json.dumps(error_fields(report), ensure_ascii=False).encode() + b"\n"

    def keep_alive(self) -> bytes:
        """Nothing here is forwarded."""
        return b""


def _read_model_route(
    operation: str, fields: Mapping[str, Any], catalog: tuple[Served, ...]
) -> Intent:
    model = text_of(fields, "model") or text_of(fields, "name")
    if operation == "copy":
        return Copy(_required(fields, "source"), _required(fields, "destination"))
    if not model:
        raise missing("model", "the name of a model that is served")
    if operation == "pull":
        return Pull(model, bool_of(fields, "stream", True), PullLines())
    if operation == "delete":
        return Delete(model)
    if operation == "show":
        served = _require(catalog, model)
        return _show(show_model(served, bool_of(fields, "verbose", False)))
    if operation == "chat":
        return _read_chat(fields, model, catalog)
    if operation == "generate":
        return _read_generate(fields, model, catalog)
    return _read_embed(fields, model, operation == "embeddings")


def _read_chat(fields: Mapping[str, Any], model: str, catalog: tuple[Served, ...]) -> Intent:
    voice = ChatVoice(model, is_thinking_shown=fields.get("think") is not False)
    keep_alive_s = read_keep_alive(fields)
    is_stream = bool_of(fields, "stream", True)
    messages = read_messages(fields)
    if not messages:
        return Load(model, keep_alive_s, voice)
    _check_thinking(fields, model, catalog)
    options, notes, context = read_options(fields)
    body = {**options, **read_shape(fields), "messages": messages}
    if tools := list_of(fields, "tools"):
        body["tools"] = tools
    notes += unknown_fields(fields, CHAT_FIELDS)
    return Ask(model, CHAT, body, voice, is_stream, tuple(notes), keep_alive_s, context)


def _read_generate(fields: Mapping[str, Any], model: str, catalog: tuple[Served, ...]) -> Intent:
    voice = ChatVoice(model, False, fields.get("think") is not False)
    keep_alive_s = read_keep_alive(fields)
    is_stream = bool_of(fields, "stream", True)
    prompt, system = text_of(fields, "prompt"), text_of(fields, "system")
    images = list_of(fields, "images")
    if not prompt and not images:
        return Load(model, keep_alive_s, voice)
    if text_of(fields, "suffix"):
        raise UserError(
            "request.insert", f"{model} does not support insert",
            evidence=("suffix is given",), remedies=("leave suffix out",),
        )  # fmt: skip
    _check_thinking(fields, model, catalog)
    options, notes, context = read_options(fields)
    body = {**options, **read_shape(fields)}
    path = CHAT
    template = text_of(fields, "template")
    if bool_of(fields, "raw", False) or template:
        path = COMPLETIONS
        values = {"Prompt": prompt, "System": system}
        body["prompt"] = render_template(template, values) if template else prompt
        body.pop("chat_template_kwargs", None)
        if body.pop("logprobs", False):
            body["logprobs"] = body.pop("top_logprobs", 0)
    else:
        content: object = content_with_images(prompt, images) if images else prompt
        body["messages"] = [{"role": "system", "content": system}] if system else []
        body["messages"].append({"role": "user", "content": content})
    if fields.get("context"):
        notes.append("context is not supported: send the conversation to /api/chat")
    notes += unknown_fields(fields, GENERATE_FIELDS | {"context", "name"})
    return Ask(model, path, body, voice, is_stream, tuple(notes), keep_alive_s, context)


def _read_embed(fields: Mapping[str, Any], model: str, is_legacy: bool) -> Intent:
    name = "prompt" if is_legacy else "input"
    given = fields.get(name)
    if not isinstance(given, str | list):
        raise invalid(name, "a string" if is_legacy else "a string or an array of them", given)
    dimensions = int(number_of(fields, "dimensions") or 0)
    _, notes, context = read_options(fields)
    texts = [given] if isinstance(given, str) else given
    return Ask(
        model, EMBEDDINGS, {"input": texts}, EmbedVoice(model, is_legacy, dimensions), False,
        tuple(notes), read_keep_alive(fields), context,
    )  # fmt: skip


def _check_thinking(fields: Mapping[str, Any], model: str, catalog: tuple[Served, ...]) -> None:
    """Refuse `think` for a model that cannot, as Ollama does; clients show this text."""
    served = find_served(catalog, model)
    if fields.get("think") and served and "thinking" not in served.capabilities:
        raise UserError(
            "request.think", f'"{model}" does not support thinking',
            evidence=("its chat template has no place for thoughts",),
            remedies=("leave think out",),
        )  # fmt: skip


def _require(catalog: tuple[Served, ...], model: str) -> Served:
    served = find_served(catalog, model)
    if served is None:
        raise no_model(model)
    return served


def _required(fields: Mapping[str, Any], name: str) -> str:
    value = text_of(fields, name)
    if not value:
        raise missing(name, "a name")
    return value


def _show(value: object) -> Show:
    return Show(Rendered(200, json.dumps(value, ensure_ascii=False).encode()))


DIALECT = Ollama()
