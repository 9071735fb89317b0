"""Ollama's API, natively: every route of its server that a client depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse.core.body import (
    INVALID,
    NOT_JSON,
    bool_of,
    list_of,
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
    Memory,
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
from enginehouse.dialects.ollama.create import DIGEST, is_name, not_made, read_create
from enginehouse.dialects.ollama.request import (
    CHAT_FIELDS,
    GENERATE_FIELDS,
    content_with_images,
    for_completions,
    read_context,
    read_messages,
    read_options,
    read_shape,
    read_top_logprobs,
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
    _read("POST", "/api/create", "create", "name a model anew, with nothing changed", "admin"),
    _read("POST", "/api/push", "push", "not supported", "admin"),
    _read("POST", "/api/blobs/{digest}", "blobs", "not supported", "admin"),
    _read("HEAD", "/api/blobs/{digest}", "blobs", "no file is kept: 404", "admin"),
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
        if route.operation == "blobs":
            return _read_blob(route, received)
        if not received.body.strip():
            raise UserError(
                NOT_JSON, "missing request body",
                evidence=("it is empty",), remedies=("send one JSON object, in UTF-8",),
            )  # fmt: skip
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
        return Copy(_name(fields, "source"), _name(fields, "destination"))
    if not model:
        raise UserError(
            INVALID, "model is required",
            evidence=("it is absent or empty",), remedies=("send a served model's name",),
        )  # fmt: skip
    if operation == "create":
        return read_create(fields, model)
    if operation == "push":
        raise not_made("/api/push", "models are not sent away from here")
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


def _read_blob(route: Route, received: Received) -> Intent:
    digest = received.path_params.get("digest", "")
    if not DIGEST.fullmatch(digest):
        raise UserError(
            INVALID, "invalid digest format",
            evidence=(digest[:80],), remedies=("send sha256: and 64 hexadecimal digits",),
        )  # fmt: skip
    if route.method == "HEAD":
        return Show(Rendered(404, b""))
    raise not_made("/api/blobs", "files are not uploaded here")


def _read_chat(fields: Mapping[str, Any], model: str, catalog: tuple[Served, ...]) -> Intent:
    shape = read_shape(fields)
    voice = ChatVoice(
        model, is_thinking_shown=fields.get("think") is not False,
        top_logprobs=read_top_logprobs(fields),
    )  # fmt: skip
    keep_alive_s = read_keep_alive(fields)
    is_stream = bool_of(fields, "stream", True)
    messages = read_messages(fields)
    if not messages:
        return Load(model, keep_alive_s, voice)
    _check_thinking(fields, model, catalog)
    options, notes, context = read_options(fields)
    body = {**options, **shape, "messages": messages}
    if tools := list_of(fields, "tools"):
        body["tools"] = tools
    notes += unknown_fields(fields, CHAT_FIELDS)
    return Ask(model, CHAT, body, voice, is_stream, tuple(notes), keep_alive_s, context)


def _read_generate(fields: Mapping[str, Any], model: str, catalog: tuple[Served, ...]) -> Intent:
    shape = read_shape(fields)
    voice = ChatVoice(
        model, False, fields.get("think") is not False, top_logprobs=read_top_logprobs(fields)
    )
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
    body = {**options, **shape}
    path = CHAT
    template, before = text_of(fields, "template"), read_context(fields)
    is_raw = bool_of(fields, "raw", False)
    if is_raw and (template or system or before):
        raise UserError(
            INVALID, "raw mode does not support template, system, or context",
            evidence=("raw is true",), remedies=("leave raw out, or send the finished prompt",),
        )  # fmt: skip
    if is_raw or template:
        path = COMPLETIONS
        values = {"Prompt": prompt, "System": system}
        body["prompt"] = render_template(template, values) if template else prompt
        body = for_completions(body)
    else:
        content: object = content_with_images(prompt, images) if images else prompt
        body["messages"] = [{"role": "system", "content": system}] if system else []
        body["messages"].append({"role": "user", "content": content})
    notes += unknown_fields(fields, GENERATE_FIELDS | {"name"})
    memory = None if is_raw or images else Memory(before, voice.remember, for_completions)
    if images and before:
        notes.append("context is not supported beside images")
    return Ask(
        model, path, body, voice, is_stream, tuple(notes), keep_alive_s, context, memory=memory
    )


def _read_embed(fields: Mapping[str, Any], model: str, is_legacy: bool) -> Intent:
    given = text_of(fields, "prompt") if is_legacy else fields.get("input")
    texts = given if isinstance(given, list) else [given] if given not in (None, "") else []
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            INVALID, "invalid input type",
            evidence=(f"input: {json.dumps(given)[:60]}",),
            remedies=("send a string or an array of them",),
        )  # fmt: skip
    voice = EmbedVoice(model, is_legacy, int(number_of(fields, "dimensions") or 0))
    keep_alive_s = read_keep_alive(fields)
    if not texts:
        return Load(model, keep_alive_s, voice)
    _, notes, context = read_options(fields)
    may_cut = not is_legacy and bool_of(fields, "truncate", True)
    return Ask(
        model, EMBEDDINGS, {"input": texts}, voice, False, tuple(notes), keep_alive_s, context,
        may_cut=may_cut,
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


def _name(fields: Mapping[str, Any], field: str) -> str:
    """Return a model's name, refused where it can be none."""
    value = text_of(fields, field)
    if not is_name(value):
        raise UserError(
            INVALID, f"{field} {json.dumps(value[:100])} is invalid",
            evidence=("a model's name is [host/][namespace/]name[:tag]",),
            remedies=("use letters, digits, dots, dashes and underscores",),
        )  # fmt: skip
    return value


def _show(value: object) -> Show:
    return Show(Rendered(200, json.dumps(value, ensure_ascii=False).encode()))


DIALECT = Ollama()
