"""OpenAI's API: chat completions, completions, embeddings, models."""

from __future__ import annotations

import json
from dataclasses import dataclass

from enginehouse.core.dialect import Rendered, Route, RouteKind
from enginehouse.core.errors import ErrorReport

ROUTES = (
    Route("POST", "/v1/chat/completions", RouteKind.FORWARD, "/v1/chat/completions", "chat"),
    Route("POST", "/v1/completions", RouteKind.FORWARD, "/v1/completions", "completions"),
    Route("POST", "/v1/embeddings", RouteKind.FORWARD, "/v1/embeddings", "embeddings"),
    Route("GET", "/v1/models", RouteKind.MODELS, operation="models"),
    Route("GET", "/v1/models/{model:path}", RouteKind.MODEL, operation="model"),
)


@dataclass(frozen=True)
class OpenAI:
    """The dialect; its errors are `{"error": {"message", "type", "param", "code"}}`."""

    name: str = "openai"
    routes: tuple[Route, ...] = ROUTES

    def render_error(self, report: ErrorReport, status: int) -> Rendered:
        """Render an error before the first byte of an answer."""
        return Rendered(status, _dump(_error(report, status)))

    def render_stream_error(self, report: ErrorReport, status: int) -> bytes:
        """Render an error within a stream, as the SDK reads it: an event with `error`."""
        return b"data: " + _dump(_error(report, status)) + b"\n\n"

    def render_models(self, names: tuple[str, ...], created: int) -> Rendered:
        """Render the list of served models."""
        data = [_model(name, created) for name in names]
        return Rendered(200, _dump({"object": "list", "data": data}))

    def render_model(self, name: str, created: int) -> Rendered:
        """Render one served model."""
        return Rendered(200, _dump(_model(name, created)))


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "enginehouse"}


def _error(report: ErrorReport, status: int) -> dict[str, object]:
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    message = report.what
    if report.evidence:
        message += f" ({'; '.join(report.evidence)})"
    error = {"message": message, "type": kind, "param": None, "code": report.id}
    return {"error": error}


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


DIALECT = OpenAI()
