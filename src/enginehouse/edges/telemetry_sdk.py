"""Send spans and metrics with OpenTelemetry's SDK; imported only where telemetry is switched on."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from enginehouse.core.errors import UserError
from enginehouse.edges.telemetry import (
    HOUSE,
    INSTRUMENTS,
    Finished,
    samples_of,
    span_attributes,
    span_name,
)

log = logging.getLogger(__name__)
STOP_S = 5.0
"""How long what is left may take to be sent at stop."""
SAY_EVERY_S = 600.0
SDK_LOG = "opentelemetry"
Ends = Callable[[], tuple[SpanProcessor, MetricReader]]


class Telemetry:
    """Turns finished requests into spans and metrics; `note` never waits for the collector."""

    def __init__(self, open_ends: Ends) -> None:
        self._open_ends = open_ends
        self._complaints = _SaidSeldom()
        self._histograms: dict[str, Histogram] = {}

    def start(self) -> None:
        """Open the pipelines, with the SDK's own threads.

        Raises:
            UserError: `telemetry.unusable`.
        """
        self._complaints.start()
        try:
            spans, reader = self._open_ends()
            resource = _resource()
            self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
            self._meters = MeterProvider((reader,), resource=resource, shutdown_on_exit=False)
        except ValueError as problem:
            self._complaints.stop()
            given = sorted(name for name in os.environ if name.startswith("OTEL_"))
            raise UserError(
                "telemetry.unusable",
                "OpenTelemetry cannot be set up as its environment variables say",
                evidence=(str(problem), f"set here: {', '.join(given) or 'none'}"),
                remedies=("correct or unset the OTEL_ variables",),
            ) from problem
        self._traces.add_span_processor(spans)
        self._tracer = self._traces.get_tracer(HOUSE, _version())
        meter = self._meters.get_meter(HOUSE, _version())
        self._histograms = {
            one.name: meter.create_histogram(
                one.name, one.unit, one.summary, explicit_bucket_boundaries_advisory=one.buckets
            )
            for one in INSTRUMENTS
        }

    def note(self, finished: Finished) -> None:
        """Hand over one request; its span is a child of what the client's `traceparent` names."""
        row = finished.row
        span = self._tracer.start_span(
            span_name(finished),
            context=TraceContextTextMapPropagator().extract({"traceparent": finished.traceparent}),
            kind=trace.SpanKind.SERVER,
            attributes=span_attributes(finished),
            start_time=int(row.at * 1e9),
        )
        if finished.is_fault:
            span.set_status(trace.StatusCode.ERROR, finished.error_type)
        within = trace.set_span_in_context(span)
        for sample in samples_of(finished):
            self._histograms[sample.name].record(sample.value, sample.attributes, within)
        span.end(int((row.at + row.total_s) * 1e9))

    def stop(self) -> None:
        """Send what is left, for a few seconds at most, and end."""
        ends = time.monotonic() + STOP_S
        threads = [
            threading.Thread(target=shut, name="telemetry stop", daemon=True)
            for shut in (self._traces.shutdown, self._meters.shutdown)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            log.warning("telemetry that was left could not be sent within %g s", STOP_S)
        self._complaints.stop()


class _SaidSeldom(logging.Handler):
    """Says the SDK's warnings at most every ten minutes: a collector may be away for long."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said_at = float("-inf")

    def start(self) -> None:
        """Take what the SDK logs."""
        logger = logging.getLogger(SDK_LOG)
        logger.addHandler(self)
        logger.propagate = False

    def stop(self) -> None:
        """Leave the SDK's log as it was."""
        logger = logging.getLogger(SDK_LOG)
        logger.removeHandler(self)
        logger.propagate = True
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Say a warning where none was said lately."""
        now = time.monotonic()
        if now - self._said_at > SAY_EVERY_S:
            self._said_at = now
            log.warning("telemetry: %s (serving goes on)", record.getMessage())


def send_to(endpoint: str) -> Telemetry:
    """Return what sends to a collector by OTLP over HTTP, in the SDK's background threads."""

    def open_ends() -> tuple[SpanProcessor, MetricReader]:
        spans = BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces"))
        return spans, PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"))

    return Telemetry(open_ends)


def _resource() -> Resource:
    """Return who sends; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word."""
    ours = Resource.create(
        {
            "service.name": HOUSE,
            "service.version": _version(),
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    return ours.merge(OTELResourceDetector().detect())


def _version() -> str:
    try:
        return importlib.metadata.version(HOUSE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
