"""What OpenTelemetry is told of a finished request: a span's and some metrics' names and values.

Names follow the GenAI semantic conventions (status: development), read on 2026-11-26 in
https://github.com/open-telemetry/semantic-conventions-genai/blob/004902b8cb70/docs/gen-ai/gen-ai-metrics.md
Nothing here is the text of a prompt or an answer. The SDK, the extra `otel`, is imported only when
an endpoint is set.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from enginehouse.core.errors import UserError
from enginehouse.edges.request_log import RequestRow

if TYPE_CHECKING:
    from enginehouse.edges.telemetry_sdk import Telemetry

KEY = "telemetry.otlp_endpoint"
HOUSE = "enginehouse"
"""The provider of an answer that no engine gave."""
CHAT, TEXT, EMBEDDINGS = "chat", "text_completion", "embeddings"
OPERATIONS = {
    "chat": CHAT, "messages": CHAT, "responses": CHAT,
    "completions": TEXT, "completion": TEXT, "generate": TEXT, "infill": TEXT,
    "embeddings": EMBEDDINGS, "embed": EMBEDDINGS,
}  # fmt: skip
"""The convention's word for a route's operation; others keep their own."""
MEASURED = frozenset({CHAT, TEXT, EMBEDDINGS, "rerank"})
"""Operations that an engine works for; lists and versions would only blur the histograms."""
GOOD = frozenset({"served", "held-then-served"})
LONGEST_NAME = 100

DURATION = "gen_ai.server.request.duration"
FIRST_TOKEN = "gen_ai.server.time_to_first_token"
PER_TOKEN = "gen_ai.server.time_per_output_token"
TOKENS = "gen_ai.client.token.usage"
Attributes = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Instrument:
    """A histogram, with the buckets that the convention asks for."""

    name: str
    unit: str
    summary: str
    buckets: tuple[float, ...]


INSTRUMENTS = (
    Instrument(
        DURATION, "s", "arrival to the end of the answer",
        tuple(0.01 * 2**power for power in range(14)),
    ),
    Instrument(
        FIRST_TOKEN, "s", "arrival to the first token of a stream",
        (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
         10.0),
    ),
    Instrument(
        PER_TOKEN, "s", "mean time per further token of a stream",
        (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    ),
    Instrument(TOKENS, "{token}", "tokens used", tuple(float(4**power) for power in range(14))),
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A request that has ended: its row of the log, and what only telemetry asks for.

    `asked` is the model's name as the client gave it, `traceparent` the client's W3C header.
    """

    row: RequestRow
    asked: str = ""
    traceparent: str = ""
    is_stream: bool = False

    @property
    def operation(self) -> str:
        """The convention's word for what was asked."""
        return OPERATIONS.get(self.row.operation, self.row.operation)

    @property
    def error_type(self) -> str:
        """The error's id, `cancelled`, the engine's status, or empty where it was served."""
        row = self.row
        if row.error or row.outcome == "cancelled":
            return row.error or row.outcome
        if row.status >= 400:
            return str(row.status)
        return "" if row.outcome in GOOD else "_OTHER"

    @property
    def is_fault(self) -> bool:
        """Whether the server failed; what the client did wrong or gave up is no fault."""
        row = self.row
        return row.status >= 500 or (row.outcome not in GOOD | {"rejected", "cancelled"})


@dataclass(frozen=True)
class Sample:
    """One value for one instrument."""

    name: str
    value: float
    attributes: Attributes


def span_name(finished: Finished) -> str:
    """Return `{operation} {model}`; a name that means no model here is not in it."""
    model = finished.row.model and (finished.asked or finished.row.model)
    return f"{finished.operation} {model}" if model else finished.operation


def span_attributes(finished: Finished) -> Attributes:
    """Return a span's attributes, without those that are not known."""
    row = finished.row
    told: Attributes = {
        "gen_ai.operation.name": finished.operation,
        "gen_ai.provider.name": row.engine or HOUSE,
        "enginehouse.request.id": row.id,
        "enginehouse.dialect": row.dialect,
        "enginehouse.operation": row.operation,
        "enginehouse.outcome": row.outcome or "failed",
        "enginehouse.queue_s": row.queue_s,
        "enginehouse.load_s": row.load_s,
        "enginehouse.truncated": bool(row.truncated),
        "enginehouse.fallback": bool(row.fell_back),
    }
    where_known: Attributes = {
        "gen_ai.request.model": (finished.asked or row.model)[:LONGEST_NAME],
        "gen_ai.request.stream": finished.is_stream,
        "gen_ai.response.model": row.model,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": row.cached_tokens,
        "error.type": finished.error_type,
        "http.response.status_code": row.status,
        "enginehouse.first_byte_s": row.first_byte_s,
    }
    return told | {name: value for name, value in where_known.items() if value}


def samples_of(finished: Finished) -> tuple[Sample, ...]:
    """Return what the metrics record. Only names of models that are here become attributes.

    The time to the first token and per token are those of streams that were served: the first byte
    of an answer that comes whole is its last.
    """
    row = finished.row
    if finished.operation not in MEASURED:
        return ()
    told: Attributes = {
        "gen_ai.operation.name": finished.operation,
        "gen_ai.provider.name": row.engine or HOUSE,
    }
    if row.model:
        told |= {"gen_ai.request.model": row.model, "gen_ai.response.model": row.model}
    error = finished.error_type
    failed: Attributes = {"error.type": error} if error else {}
    samples = [Sample(DURATION, row.total_s, told | failed)]
    if finished.is_stream and not error and row.first_byte_s:
        samples.append(Sample(FIRST_TOKEN, row.first_byte_s, told))
        if row.output_tokens > 1:
            each_s = (row.total_s - row.first_byte_s) / (row.output_tokens - 1)
            samples.append(Sample(PER_TOKEN, each_s, told))
    for kind, tokens in (("input", row.prompt_tokens), ("output", row.output_tokens)):
        if tokens:
            samples.append(Sample(TOKENS, tokens, told | {"gen_ai.token.type": kind}))
    return tuple(samples)


def open_telemetry(endpoint: str) -> Telemetry | None:
    """Return what sends to an OTLP collector's address, not yet started; None for an empty one.

    Raises:
        UserError: `telemetry.endpoint`, `telemetry.not_installed`.
    """
    if not endpoint:
        return None
    _check_endpoint(endpoint)
    try:
        sdk = importlib.import_module("enginehouse.edges.telemetry_sdk")
    except ImportError as problem:
        if not (problem.name or "").startswith("opentelemetry"):
            raise
        raise UserError(
            "telemetry.not_installed",
            "telemetry cannot be sent: OpenTelemetry is not installed",
            evidence=(f"{KEY} is {endpoint}", f"{type(problem).__name__}: {problem}"),
            remedies=("pip install 'enginehouse[otel]'", f"unset {KEY}"),
        ) from problem
    telemetry: Telemetry = sdk.send_to(endpoint.rstrip("/"))
    return telemetry


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_fit = False
    path = parts.path.rstrip("/") if is_fit else ""
    if is_fit and not (parts.query or parts.fragment or path.endswith(("/traces", "/metrics"))):
        return
    raise UserError(
        "telemetry.endpoint",
        f"{KEY} is no address of an OTLP collector",
        evidence=(f"{KEY} is {endpoint}",),
        remedies=(
            "give its base address for OTLP over HTTP, such as http://127.0.0.1:4318; "
            "/v1/traces and /v1/metrics are added",
        ),
    )
