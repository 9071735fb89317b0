"""Prometheus metrics of one gateway, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from enginehouse.core.lifecycle import State
from enginehouse.gateway.router import Gate
from enginehouse.gateway.supervisor import Supervisor

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
LABELS = ("model", "engine", "dialect", "operation")


class Metrics:
    """Counts what passes the gateway."""

    def __init__(self, supervisor: Supervisor, gate: Gate) -> None:
        self.registry = CollectorRegistry()
        self._labels = (supervisor.plan.model_name, supervisor.plan.engine)
        self.requests = Counter(
            "enginehouse_requests",
            "requests by how they ended",
            (*LABELS, "outcome"),
            registry=self.registry,
        )
        self.ttft = Histogram(
            "enginehouse_time_to_first_token_seconds",
            "arrival to first byte of the answer's body",
            LABELS,
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.duration = Histogram(
            "enginehouse_request_duration_seconds",
            "arrival to end of the answer",
            LABELS,
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.retries = Counter(
            "enginehouse_upstream_retries",
            "requests sent again on a fresh connection",
            registry=self.registry,
        )
        for name, text, read in (
            ("in_flight", "requests at the engine", lambda: supervisor.in_flight),
            ("waiting", "requests held", lambda: gate.waiting),
            ("engine_ready", "1 when ready", lambda: supervisor.state is State.READY),
            ("engine_restarts", "restarts of the engine", lambda: supervisor.restarts),
            ("engine_memory_bytes", "memory of the engine", supervisor.memory),
        ):
            gauge = Gauge(f"enginehouse_{name}", text, registry=self.registry)
            gauge.set_function(lambda read=read: float(read()))  # type: ignore[misc]

    def ended(self, dialect: str, operation: str, outcome: str, duration_s: float) -> None:
        """Count a request's end."""
        labels = (*self._labels, dialect, operation)
        self.requests.labels(*labels, outcome).inc()
        self.duration.labels(*labels).observe(duration_s)

    def first_byte(self, dialect: str, operation: str, after_s: float) -> None:
        """Note the time to an answer's first byte."""
        self.ttft.labels(*self._labels, dialect, operation).observe(after_s)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self.registry)
