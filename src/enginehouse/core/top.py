"""What a running endpoint does, made of two looks at its metrics. Pure.

The names are those of `gateway/metrics.py`; a look from elsewhere may lack any of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from enginehouse.core.buckets import Spread, spread_of
from enginehouse.core.catalog import plain_name

PREFIX = "enginehouse_"
Key = tuple[str, tuple[tuple[str, str], ...]]
"""A series: its name, and its labels with their values, sorted."""
Series = Mapping[Key, float]
Sample = tuple[Mapping[str, str], float]
Index = Mapping[tuple[str, str], list[Sample]]
GROWING = ("_total", "_bucket", "_count")
SUMMED = (*GROWING, "_sum")
"""A sum grows too, but not surely: it cannot show that there was a reset."""
NEVER_S = 10 * 365 * 86400.0
"""An unloading further away than this is told as never; a pinned model has a century."""
HEALTHY = "ok"
"""What `/health` calls a server that is ready."""
OWN_LOOKS = "ps"
"""The operation of our own looks: they are no traffic."""


@dataclass(frozen=True)
class Running:
    """What `/api/ps` says of a loaded model; `ends_at` in Unix seconds."""

    memory_bytes: int = 0
    context_tokens: int = 0
    ends_at: float | None = None


@dataclass(frozen=True)
class Health:
    """What `/health` says: the first model, how it is, and the state of each loaded one."""

    model: str = ""
    status: str = ""
    reason: str = ""
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """One look at an endpoint: at `at_s` of a steady clock, which was `now` in Unix seconds."""

    at_s: float
    now: float
    series: Series
    health: Health
    running: Mapping[str, Running] = field(default_factory=dict)


@dataclass(frozen=True)
class Traffic:
    """What passed in a time; shares and rates are None where there is nothing to divide by.

    TTFT is the time to the first byte of an answer's body, ITL a request's mean per further token.
    """

    seconds: float | None
    requests: Mapping[str, int]
    prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int
    output_tok_per_s: float | None
    cached_prompt_share: float | None
    ttft: Spread
    itl: Spread
    truncations: int
    fallbacks: int
    restarts: int


@dataclass(frozen=True)
class ModelView:
    """One model, now, since the look before (None at the first), and since the endpoint started.

    `restarts` count since the model was loaded.
    """

    model: str
    engine: str
    state: str
    memory_bytes: int | None
    context_tokens: int | None
    unloads_in_s: float | None
    in_flight: int
    queued: int
    interval: Traffic | None
    total: Traffic


@dataclass(frozen=True)
class View:
    """An endpoint: its first model and how that is, all models, and requests that reached none.

    The latter (`other_requests`) are lists of models, unknown models, and refused keys, by outcome.
    """

    model: str
    status: str
    reason: str
    interval_s: float | None
    models: tuple[ModelView, ...]
    other_requests: Mapping[str, int]


def is_enginehouse(series: Series) -> bool:
    """Whether metrics are those of an Enginehouse."""
    return any(name.startswith(PREFIX) for name, _ in series)


def read_health(document: object) -> Health | None:
    """Read the answer of `/health`; None when it is not one of an Enginehouse."""
    if not isinstance(document, dict) or not isinstance(document.get("models"), dict):
        return None
    models = {
        str(name): _state(one.get("status"))
        for name, one in document["models"].items()
        if isinstance(one, dict)
    }
    return Health(
        str(document.get("model") or ""),
        _state(document.get("status")),
        str(document.get("reason") or ""),
        models,
    )


def _state(status: object) -> str:
    return "ready" if status == HEALTHY else str(status or "unknown")


def read_running(document: object) -> dict[str, Running]:
    """Read the answer of `/api/ps`; what cannot be read is left away."""
    entries = document.get("models") if isinstance(document, dict) else None
    return {
        plain_name(str(entry.get("name") or "")): Running(
            _whole(entry.get("size")), _whole(entry.get("context_length")), _moment(entry)
        )
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    }


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _moment(entry: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(str(entry.get("expires_at"))).timestamp()
    except (ValueError, OverflowError):
        return None


def since(series: Series, earlier: Series) -> dict[Key, float]:
    """Return how much each counter and histogram has grown since an earlier look.

    One that was reset (the endpoint was restarted) or is new has grown from 0. A histogram is reset
    as a whole, so that its buckets stay of one kind.
    """
    reset = {
        _owner(key)
        for key, value in series.items()
        if (key[0].endswith(GROWING) and value < earlier.get(key, 0.0))
        or (key[0].endswith("_created") and value != earlier.get(key, value))
    }
    return {
        key: value - (0.0 if _owner(key) in reset else earlier.get(key, 0.0))
        for key, value in series.items()
        if key[0].endswith(SUMMED)
    }


def _owner(key: Key) -> Key:
    """Return the counter or histogram that a series is a part of."""
    name, labels = key
    return name.rsplit("_", 1)[0], tuple(pair for pair in labels if pair[0] != "le")


def view_of(look: Look, earlier: Look | None = None) -> View:
    """Return what an endpoint does, as two looks show it."""
    now = _indexed(look.series)
    grown = None if earlier is None else _indexed(since(look.series, earlier.series))
    seconds = None if earlier is None else look.at_s - earlier.at_s
    health = look.health
    names = {model for _, model in now} | {health.model, *health.models, *look.running}
    ordered = sorted(names - {""}, key=lambda n: (n != health.model, n not in health.models, n))
    others = [
        sample for sample in now.get(("requests_total", ""), ())
        if sample[0].get("operation") != OWN_LOOKS
    ]  # fmt: skip
    return View(
        health.model,
        health.status,
        health.reason,
        seconds,
        tuple(_model_view(look, name, now, grown, seconds) for name in ordered),
        _by(others, "outcome"),
    )


def _model_view(
    look: Look, name: str, now: Index, grown: Index | None, seconds: float | None
) -> ModelView:
    running = look.running.get(name, Running())
    ends_s = None if running.ends_at is None else running.ends_at - look.now
    state = look.health.models.get(name, "")
    return ModelView(
        model=name,
        engine=", ".join(_engines(now, name)),
        state=state or "unloaded",
        memory_bytes=_sum(now, "engine_memory_bytes", name) or running.memory_bytes or None,
        context_tokens=_sum(now, "context_tokens", name) or running.context_tokens or None,
        unloads_in_s=None if not state or ends_s is None or ends_s > NEVER_S else max(0.0, ends_s),
        in_flight=_sum(now, "in_flight", name),
        queued=_sum(now, "waiting", name),
        interval=None if grown is None else _traffic(grown, name, seconds),
        total=_traffic(now, name, None),
    )


def _engines(now: Index, model: str) -> list[str]:
    """Return the engine that a model is loaded by, else those that have served it."""
    for name in ("engine_ready", "requests_total"):
        found = {labels.get("engine", "") for labels, _ in now.get((name, model), ())} - {""}
        if found:
            return sorted(found)
    return []


def _traffic(index: Index, model: str, seconds: float | None) -> Traffic:
    prompt, cached, output = (
        _sum(index, f"{kind}_tokens_total", model) for kind in ("prompt", "cached_prompt", "output")
    )
    return Traffic(
        seconds=seconds,
        requests=_by(index.get(("requests_total", model), ()), "outcome"),
        prompt_tokens=prompt,
        cached_prompt_tokens=cached,
        output_tokens=output,
        output_tok_per_s=output / seconds if seconds and seconds > 0 else None,
        cached_prompt_share=cached / prompt if prompt > 0 else None,
        ttft=_spread(index, "time_to_first_token_seconds", model),
        itl=_spread(index, "inter_token_latency_seconds", model),
        truncations=_sum(index, "truncations_total", model),
        fallbacks=_sum(index, "fallbacks_total", model),
        restarts=_sum(index, "engine_restarts_total", model),
    )


def _spread(index: Index, name: str, model: str) -> Spread:
    """Return the spread of a histogram over all its labels but the model."""
    buckets: defaultdict[float, float] = defaultdict(float)
    for labels, value in index.get((f"{name}_bucket", model), ()):
        try:
            buckets[float(labels.get("le", ""))] += value
        except ValueError:
            continue
    return spread_of(buckets, sum(value for _, value in index.get((f"{name}_sum", model), ())))


def _indexed(series: Series) -> Index:
    """Return our series by name (without its prefix) and model."""
    index: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for (name, pairs), value in series.items():
        if name.startswith(PREFIX):
            labels = dict(pairs)
            index[name.removeprefix(PREFIX), labels.get("model", "")].append((labels, value))
    return index


def _sum(index: Index, name: str, model: str) -> int:
    return round(sum(value for _, value in index.get((name, model), ())))


def _by(picked: Iterable[Sample], label: str) -> dict[str, int]:
    """Return sums by a label's values, without zeros."""
    sums: defaultdict[str, float] = defaultdict(float)
    for labels, value in picked:
        sums[labels.get(label, "")] += value
    return {name: round(value) for name, value in sorted(sums.items()) if round(value)}
