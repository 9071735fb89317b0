"""The HTTP status of every error that the gateway can give, by its stable id."""

from __future__ import annotations

from enginehouse.core.errors import ErrorReport

STATUS: dict[str, int] = {
    "request.not_json": 400,
    "request.invalid": 400,
    "request.template": 400,
    "request.insert": 400,
    "request.think": 400,
    "request.stateful": 400,
    "request.image_url": 400,
    "request.embeddings.unsupported": 400,
    "context_length_exceeded": 400,
    "previous_response_not_found": 400,
    "auth.missing": 401,
    "auth.unknown": 401,
    "auth.scope": 403,
    "auth.origin": 403,
    "model_not_found": 404,
    "response_not_found": 404,
    "item_not_found": 404,
    "request.no_route": 404,
    "request.method": 405,
    "request.too_slow": 408,
    "request.stalled": 408,
    "request.too_large": 413,
    "rate.limited": 429,
    "internal.fault": 500,
    "request.not_supported": 501,
    "engine.error": 502,
    "engine.bad_answer": 502,
    "engine.broke_off": 502,
    "engine.no_tokenizer": 501,
    "gateway.rejected": 503,
    "memory.no_room": 503,
    "model.load_timeout": 503,
    "server.stopping": 503,
    "request.time_limit": 504,
}
"""Errors by id; what is not here has the status of whose turn it is."""
BY_TURN = {"user": 400, "engine": 502, "machine": 503, "us": 500}
RETRY_AFTER_S = {"engine.broke_off": 1, "gateway.rejected": 5,
                 "memory.no_room": 10, "model.load_timeout": 10, "rate.limited": 1,
                 "server.stopping": 10}  # fmt: skip
"""When to come again, for errors that pass."""


def status_of(report: ErrorReport) -> int:
    """Return the HTTP status of an error."""
    return STATUS.get(report.id) or BY_TURN.get(report.turn, 500)


def outcome_of(report: ErrorReport) -> str:
    """Return how a request with this error ended: `rejected` where it was the user's, on any route.

    What the engine says with a 4xx is the user's, with a 5xx its own.
    """
    return "rejected" if report.turn == "user" else "failed"


PASSED_ON = frozenset({400, 404, 413, 429, 501, 503, 504})
"""Statuses of an engine that mean the same from us."""


def passed_on(status: int) -> int:
    """Return the status for an engine's error: its own, or 400 and 502 where that is another.

    So clients meet only statuses that the API description names; 500 would be a fault of ours.
    """
    return status if status in PASSED_ON else 400 if 400 <= status < 500 else 502
