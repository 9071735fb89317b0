"""Prometheus metrics of one gateway, in a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from enginehouse.gateway.journey import Journey
from enginehouse.gateway.router import Router

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ITL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LABELS = ("model", "engine", "dialect", "operation")


class Metrics:
    """Counts what passes the gateway."""

    def __init__(self, router: Router) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "enginehouse_requests", "requests by how they ended", (*LABELS, "outcome"),
            registry=self.registry,
        )  # fmt: skip
        self._times = {
            name: Histogram(
                f"enginehouse_{name}_seconds", text, LABELS, buckets=buckets,
                registry=self.registry,
            )
            for name, text, buckets in (
                ("time_to_first_token", "arrival to first byte of the answer's body", BUCKETS_S),
                ("inter_token_latency", "mean time per further token of a stream", ITL_BUCKETS_S),
                ("request_duration", "arrival to end of the answer", BUCKETS_S),
                ("queue_time", "time held before the engine", BUCKETS_S),
                ("load_time", "time a request waited for its model to be loaded", BUCKETS_S),
            )
        }  # fmt: skip
        self._tokens = {
            name: Counter(f"enginehouse_{name}_tokens", text, LABELS, registry=self.registry)
            for name, text in (
                ("prompt", "tokens of prompts"),
                ("output", "tokens of answers"),
                ("cached_prompt", "tokens of prompts that were not computed anew"),
            )
        }
        self.truncations = Counter(
            "enginehouse_truncations", "prompts that were shortened", LABELS,
            registry=self.registry,
        )  # fmt: skip
        self.fallbacks = Counter(
            "enginehouse_fallbacks", "times a model went on with the next step of its chain",
            ("model", "step"), registry=self.registry,
        )  # fmt: skip
        self.errors = Counter(
            "enginehouse_errors", "errors that clients were told of", (*LABELS, "error"),
            registry=self.registry,
        )  # fmt: skip
        self.retries = Counter(
            "enginehouse_upstream_retries", "requests sent again on a fresh connection",
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Servers(router))
        router.on_fallback = lambda model, step: self.fallbacks.labels(model, step).inc()

    def ended(self, journey: Journey) -> None:
        """Count a request's end."""
        labels = (journey.model, journey.engine, journey.dialect, journey.operation)
        total_s = journey.total_s
        self.requests.labels(*labels, journey.outcome or "failed").inc()
        self._times["request_duration"].labels(*labels).observe(total_s)
        if journey.error_id:
            self.errors.labels(*labels, journey.error_id).inc()
        if journey.is_truncated:
            self.truncations.labels(*labels).inc()
        if journey.is_held:
            self._times["queue_time"].labels(*labels).observe(journey.queue_s)
        if journey.load_s:
            self._times["load_time"].labels(*labels).observe(journey.load_s)
        if journey.first_byte_s:
            self._times["time_to_first_token"].labels(*labels).observe(journey.first_byte_s)
        usage = journey.usage
        if usage is None:
            return
        self._tokens["prompt"].labels(*labels).inc(usage.prompt_tokens)
        self._tokens["output"].labels(*labels).inc(usage.output_tokens)
        self._tokens["cached_prompt"].labels(*labels).inc(usage.cached_tokens)
        if usage.output_tokens > 1 and journey.chunks:
            each_s = (total_s - journey.first_byte_s) / (usage.output_tokens - 1)
            self._times["inter_token_latency"].labels(*labels).observe(each_s)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self.registry)


class _Servers(Collector):
    """Reads the servers' state when metrics are asked for."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        """Yield one gauge a fact, with a sample for each loaded model."""
        gauges = {
            name: GaugeMetricFamily(f"enginehouse_{name}", text, labels=("model", "engine"))
            for name, text in (
                ("in_flight", "requests at the engine"),
                ("waiting", "requests held"),
                ("engine_ready", "1 when tokens come out of it"),
                ("engine_memory_bytes", "memory of the engine"),
                ("context_tokens", "tokens that one request may use"),
            )
        }
        restarts = CounterMetricFamily(
            "enginehouse_engine_restarts", "restarts of the engine", labels=("model", "engine")
        )
        for name, server in self._router.servers.items():
            labels = (name, server.plan.engine)
            supervisor = server.supervisor
            for gauge, value in (
                ("in_flight", supervisor.in_flight),
                ("waiting", server.gate.waiting),
                ("engine_ready", int(server.is_ready)),
                ("engine_memory_bytes", supervisor.memory()),
                ("context_tokens", server.plan.context_tokens),
            ):
                gauges[gauge].add_metric(labels, float(value))
            restarts.add_metric(labels, float(supervisor.restarts))
        yield from gauges.values()
        yield restarts
