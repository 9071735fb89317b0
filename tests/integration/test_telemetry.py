"""What OpenTelemetry is told of requests: names, values, parents; and what happens without it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from enginehouse.core.errors import UserError
from enginehouse.edges.request_log import RequestRow
from enginehouse.edges.telemetry import (
    DURATION,
    FIRST_TOKEN,
    INSTRUMENTS,
    PER_TOKEN,
    TOKENS,
    Finished,
    open_telemetry,
    samples_of,
    span_attributes,
    span_name,
)
from enginehouse.edges.telemetry_sdk import STOP_S, Telemetry
from enginehouse.gateway.contracts import Rules
from enginehouse.gateway.serve import _logger
from tests.integration.conftest import Served, Serving
from tests.integration.houses import House

CHAT = "/v1/chat/completions"
SECRET = "the heron stands in the rain"
ASK = {"model": "fake", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8}
STREAM = ASK | {"stream": True, "stream_options": {"include_usage": True}}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ROW = RequestRow(
    "r1", 1_700_000_000.0, "", "openai", "chat", "m", "llama.cpp", 200, "served", "",
    10, 5, 4, 0.1, 0.0, 0.5, 0.9, 0, 0,
)  # fmt: skip


class Memory:
    """Telemetry that keeps in memory what it would send."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.telemetry = Telemetry(lambda: (SimpleSpanProcessor(self.exporter), self.reader))

    async def spans(self, number: int) -> tuple[ReadableSpan, ...]:
        """Return the spans, once there are so many: a request's end follows its last byte."""
        while len(self.exporter.get_finished_spans()) < number:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
        return self.exporter.get_finished_spans()

    def points(self) -> dict[str, list[Any]]:
        """Return each histogram's points."""
        data = self.reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        return {one.name: list(one.data.data_points) for one in scope.metrics}


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    memory.telemetry.start()
    yield memory
    memory.telemetry.stop()


async def post(served: Served, path: str, body: dict[str, Any], **headers: str) -> tuple[int, str]:
    """Post, and return the status and the text of the answer."""
    async with served.client.post(path, json=body, headers=headers) as answer:
        return answer.status, await answer.text()


async def test_a_request_is_one_span_below_its_clients(serving: Serving, memory: Memory) -> None:
    """Name, kind, parent, times and attributes are those of the GenAI conventions."""
    async with serving(on_end=_logger(None, memory.telemetry)) as served:
        before = time.time()
        parent = f"00-{TRACE}-{PARENT}-01"
        status, _ = await post(
            served, CHAT, STREAM, **{"traceparent": parent, "x-request-id": "my-request"}
        )
        assert status == 200
        (span,) = await memory.spans(1)
    assert (span.name, span.kind) == ("chat fake", SpanKind.SERVER)
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.status.status_code is StatusCode.UNSET
    assert span.start_time is not None
    assert span.end_time is not None
    assert before - 1 < span.start_time / 1e9 <= span.end_time / 1e9 < time.time() + 1
    told = dict(span.attributes or {})
    assert told.pop("enginehouse.queue_s") == pytest.approx(0, abs=1)
    assert told.pop("enginehouse.first_byte_s")
    assert told.pop("gen_ai.usage.input_tokens")
    assert told.pop("gen_ai.usage.output_tokens") == 8
    told.pop("gen_ai.usage.cache_read.input_tokens", None)
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fake",
        "gen_ai.request.model": "fake",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "fake",
        "http.response.status_code": 200,
        "enginehouse.request.id": "my-request",
        "enginehouse.dialect": "openai",
        "enginehouse.operation": "chat",
        "enginehouse.outcome": "served",
        "enginehouse.load_s": 0.0,
        "enginehouse.truncated": False,
        "enginehouse.fallback": False,
    }


async def test_metrics_are_those_of_the_conventions(serving: Serving, memory: Memory) -> None:
    """A stream records all four; a whole answer has no first token; lists record none."""
    async with serving(on_end=_logger(None, memory.telemetry)) as served:
        await post(served, CHAT, STREAM)
        await post(served, CHAT, ASK)
        async with served.client.get("/v1/models") as answer:
            await answer.read()
        await memory.spans(3)
    points = memory.points()
    told = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "fake",
        "gen_ai.request.model": "fake", "gen_ai.response.model": "fake",
    }  # fmt: skip
    counts = {name: [(p.count, dict(p.attributes)) for p in found]
              for name, found in points.items()}  # fmt: skip
    assert counts == {
        DURATION: [(2, told)],
        FIRST_TOKEN: [(1, told)],
        PER_TOKEN: [(1, told)],
        TOKENS: [(2, told | {"gen_ai.token.type": kind}) for kind in ("input", "output")],
    }
    assert points[TOKENS][1].sum == 16
    assert points[FIRST_TOKEN][0].sum < points[DURATION][0].sum
    for one in INSTRUMENTS:
        assert tuple(points[one.name][0].explicit_bounds) == one.buckets


async def test_no_text_of_a_prompt_or_an_answer_leaves(serving: Serving, memory: Memory) -> None:
    """Even where prompts are kept in the log, telemetry has none; nor error texts that quote."""
    rules = Rules(is_content_logged=True)
    async with serving(rules=rules, on_end=_logger(None, memory.telemetry)) as served:
        _, answered = await post(served, CHAT, ASK)
        await post(served, "/api/chat", ASK | {"stream": False, "options": SECRET})
        await post(served, CHAT, {"model": "fake", "messages": SECRET})
        sent = "".join(span.to_json() for span in await memory.spans(3))
    data = memory.reader.get_metrics_data()
    assert data is not None
    sent += data.to_json()
    assert "chat fake" in sent
    assert SECRET not in sent
    assert '"content":' not in sent.replace(" ", "")
    assert answered not in sent


async def test_failures_say_what_they_were(serving: Serving, memory: Memory) -> None:
    """A client's fault is no error of the span; a broken engine is; each names its id."""
    script = ("--die-after-tokens", "5")
    async with serving(*script, on_end=_logger(None, memory.telemetry)) as served:
        assert (await post(served, CHAT, ASK | {"model": SECRET * 9}))[0] == 404
        await post(served, CHAT, STREAM)
        unknown, broken = await memory.spans(2)
    assert unknown.name == "chat"
    assert unknown.status.status_code is StatusCode.UNSET
    told = dict(unknown.attributes or {})
    assert told["error.type"] == "model_not_found"
    assert told["gen_ai.provider.name"] == "enginehouse"
    assert told["gen_ai.request.model"] == (SECRET * 9)[:100]
    assert (broken.status.status_code, broken.status.description) == (
        StatusCode.ERROR, "engine.broke_off",
    )  # fmt: skip
    durations = [dict(point.attributes) for point in memory.points()[DURATION]]
    assert [one.get("error.type") for one in durations] == ["model_not_found", "engine.broke_off"]
    assert "gen_ai.request.model" not in durations[0]
    assert FIRST_TOKEN not in memory.points()


async def test_a_client_that_did_not_sample_has_no_span(serving: Serving, memory: Memory) -> None:
    """The parent's sampled flag holds; a broken traceparent begins a trace of our own."""
    async with serving(on_end=_logger(None, memory.telemetry)) as served:
        await post(served, CHAT, ASK, traceparent=f"00-{TRACE}-{PARENT}-00")
        await post(served, CHAT, ASK, traceparent="00-zz\t-01")
        (span,) = await memory.spans(1)
    assert span.parent is None
    assert memory.points()[DURATION][0].count == 2


@pytest.mark.parametrize(
    ("changes", "error", "is_fault"),
    [
        ({}, "", False),
        ({"outcome": "held-then-served"}, "", False),
        ({"outcome": "cancelled", "status": 0}, "cancelled", False),
        ({"status": 400}, "400", False),
        ({"status": 500}, "500", True),
        (
            {"outcome": "rejected", "error": "gateway.rejected", "status": 503},
            "gateway.rejected",
            True,
        ),
        ({"outcome": "rejected", "error": "key.missing", "status": 401}, "key.missing", False),
        ({"outcome": "failed", "error": "engine.broke_off"}, "engine.broke_off", True),
        ({"outcome": ""}, "_OTHER", True),
    ],
)
def test_every_end_has_its_error_type(changes: dict[str, Any], error: str, is_fault: bool) -> None:
    """`error.type` is absent exactly where a request was served."""
    finished = Finished(replace(ROW, **changes))
    assert (finished.error_type, finished.is_fault) == (error, is_fault)
    assert span_attributes(finished).get("error.type", "") == error


@pytest.mark.parametrize(
    ("operation", "name", "count"),
    [
        ("messages", "chat gpt-4o", 5), ("responses", "chat gpt-4o", 5),
        ("generate", "text_completion gpt-4o", 5), ("infill", "text_completion gpt-4o", 5),
        ("embed", "embeddings gpt-4o", 5), ("rerank", "rerank gpt-4o", 5),
        ("tags", "tags gpt-4o", 0),
    ],
)  # fmt: skip
def test_operations_have_the_conventions_names(operation: str, name: str, count: int) -> None:
    """An alias is the request's model, what it means is the response's; lists measure nothing."""
    finished = Finished(replace(ROW, operation=operation), asked="gpt-4o", is_stream=True)
    assert span_name(finished) == name
    assert len(samples_of(finished)) == count
    told = span_attributes(finished)
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("gpt-4o", "m")
    per_token = [one.value for one in samples_of(finished) if one.name == PER_TOKEN]
    assert per_token == ([pytest.approx(0.1)] if count else [])


# over a wire


@contextmanager
def collector() -> Iterator[tuple[str, dict[str, list[bytes]]]]:
    """Receive OTLP over HTTP on the loopback; yield the base address and the posts by path."""
    posts: dict[str, list[bytes]] = {"/v1/traces": [], "/v1/metrics": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts[self.path].append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posts
        finally:
            server.shutdown()
            thread.join()


async def test_a_collector_gets_what_is_left_at_stop(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans and metrics arrive as OTLP from the SDK's threads, which are gone after the stop."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-house")
    with collector() as (address, posts):
        telemetry = open_telemetry(f"{address}/")
        assert telemetry is not None
        telemetry.start()
        async with serving(on_end=_logger(None, telemetry)) as served:
            await post(served, CHAT, STREAM)
            await post(served, CHAT, ASK)
        await asyncio.to_thread(telemetry.stop)
    traces = ExportTraceServiceRequest.FromString(posts["/v1/traces"][0])
    (resource,) = traces.resource_spans
    told = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert told["service.name"] == "my-house"
    assert told["service.instance.id"]
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == ["chat fake", "chat fake"]
    metrics = ExportMetricsServiceRequest.FromString(posts["/v1/metrics"][-1])
    found = {
        metric.name: metric.unit
        for group in metrics.resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
    }
    assert found == {one.name: one.unit for one in INSTRUMENTS}
    assert not [t for t in threading.enumerate() if t.name.startswith(("Otel", "telemetry"))]


SERVER = """
import asyncio, sys
from pathlib import Path
from enginehouse.core.catalog import Served
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.telemetry import open_telemetry
from enginehouse.gateway.router import Offer, Step
from enginehouse.gateway.serve import serve
from enginehouse.gateway.serving import Serving
from tests.integration.conftest import fake_plan
folder = Path(sys.argv[1])
plan = fake_plan(folder)
serving = Serving("127.0.0.1", 0, 8, 5.0, telemetry=open_telemetry(sys.argv[2]))
offers = (Offer(Served("fake"), (Step("as chosen", lambda context: plan),)),)
leases = LeaseBook(folder / "leases")
asyncio.run(serve(offers, serving, leases, lambda url: print(url, flush=True)))
"""


def test_a_server_sends_its_requests_before_it_ends(tmp_path: Path) -> None:
    """A served request's span is with the collector once SIGINT has ended the server."""
    with collector() as (address, posts):
        with subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        ) as child:
            assert child.stdout is not None
            url = child.stdout.readline().strip()
            asked = urllib.request.Request(f"{url}{CHAT}", json.dumps(ASK).encode())
            with urllib.request.urlopen(asked, timeout=20) as answer:
                assert answer.status == 200
                answer.read()
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=30)
        assert (child.returncode, said) == (0, "")
    (traces,) = map(ExportTraceServiceRequest.FromString, posts["/v1/traces"])
    (resource,) = traces.resource_spans
    assert [span.name for one in resource.scope_spans for span in one.spans] == ["chat fake"]
    assert len(posts["/v1/metrics"]) == 1


def test_a_collector_that_is_away_costs_nothing_and_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noting never waits, the stop is bounded, and of many warnings one is said."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        telemetry = open_telemetry(f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert telemetry is not None
        telemetry.start()
        began = time.monotonic()
        for _ in range(500):
            telemetry.note(Finished(ROW, is_stream=True))
        assert time.monotonic() - began < 1.0
        telemetry.stop()
        assert time.monotonic() - began < STOP_S + 2
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "serving goes on" in said[0]
    assert logging.getLogger("opentelemetry").propagate


# without it

LOOK = """
import sys
from pathlib import Path
from enginehouse.app_gateway import HouseLibrary, open_serving
from enginehouse.core.errors import EnginehouseError, render_error
from enginehouse.core.settings import Given, resolve
given = tuple(Given("telemetry.otlp_endpoint", one, "test") for one in sys.argv[2:])
state = Path(sys.argv[1])
settings = resolve(given)
try:
    serving = open_serving(settings, state, HouseLibrary(settings, state, lambda model: None))
    print("off" if serving.telemetry is None else "on")
except EnginehouseError as problem:
    print(render_error(problem.report))
import enginehouse.gateway.serve
print(any(name.startswith("opentelemetry") for name in sys.modules))
"""


def test_the_sdk_is_imported_only_when_asked_for(house: House) -> None:
    """An empty endpoint is off and imports nothing of OpenTelemetry."""
    done = house.python("-c", LOOK, str(house.folder))
    assert done.stdout.split() == ["off", "False"], done.stderr
    done = house.python("-c", LOOK, str(house.folder), "http://127.0.0.1:4318")
    assert done.stdout.split() == ["on", "True"], done.stderr


def test_a_missing_extra_is_told_with_its_remedy(house: House) -> None:
    """Where the endpoint is set and the SDK is not there, the error says what to install."""
    shadow = house.folder / "shadow" / "opentelemetry"
    shadow.mkdir(parents=True)
    name = "raise ModuleNotFoundError('No module named opentelemetry', name='opentelemetry')\n"
    (shadow / "__init__.py").write_text(name)
    path = os.pathsep.join([str(shadow.parent), *filter(None, sys.path)])
    address = "http://127.0.0.1:4318"
    done = house.python("-c", LOOK, str(house.folder), address, env={"PYTHONPATH": path})
    assert "error[telemetry.not_installed]" in done.stdout, done.stderr
    assert f"telemetry.otlp_endpoint is {address}" in done.stdout
    assert "pip install 'enginehouse[otel]'" in done.stdout


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:4318", "http://", "ftp://a", "http://a:x", "http://[::1", "http://a/v1/traces",
     "http://a?x=1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    """The error shows what was set and what an address looks like."""
    with pytest.raises(UserError) as caught:
        open_telemetry(endpoint)
    assert caught.value.report.id == "telemetry.endpoint"
    assert endpoint in caught.value.report.evidence[0]
    assert "http://127.0.0.1:4318" in caught.value.report.remedies[0]


def test_bad_variables_of_the_sdk_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK cannot be set up with is told with the variables that are set."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    telemetry = open_telemetry("http://127.0.0.1:4318")
    assert telemetry is not None
    with pytest.raises(UserError) as caught:
        telemetry.start()
    assert caught.value.report.id == "telemetry.unusable"
    assert "OTEL_BSP_MAX_QUEUE_SIZE" in caught.value.report.evidence[1]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)
