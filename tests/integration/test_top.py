"""`top` over a running gateway and over what is none: views, lines, and clear refusals."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from enginehouse.core.keys import ApiKey
from enginehouse.core.top import view_of
from enginehouse.edges.endpoint import EndpointReader, parse_metrics
from enginehouse.edges.keys_file import KeysFile
from enginehouse.edges.ports import bind_socket
from enginehouse.gateway.access import Guarded
from tests.integration.conftest import Served, Serving
from tests.integration.houses import House
from tests.integration.wire import port_of

ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return a house that nobody has used."""
    (tmp_path / "house").mkdir()
    return House(tmp_path / "house")


async def url_of(served: Served) -> str:
    """Return the gateway's address."""
    return f"http://127.0.0.1:{await port_of(served)}"


async def ask(served: Served, stream: bool = True, **headers: str) -> None:
    """Have one request answered."""
    body = {**ASK, "stream": stream, "stream_options": {"include_usage": True}}
    async with served.client.post("/v1/chat/completions", json=body, headers=headers) as answer:
        await answer.read()
        assert answer.status == 200


async def test_a_view_is_that_of_the_traffic(serving: Serving) -> None:
    """What was asked between two looks is in the interval, and all of it in the total."""
    async with serving() as served, EndpointReader(await url_of(served)) as reader:
        await ask(served)
        earlier = await reader.look()
        await asyncio.gather(ask(served), ask(served, stream=False))
        async with served.client.post("/v1/chat/completions", json={"model": "none"}) as answer:
            assert answer.status in (400, 404)
        view = view_of(await reader.look(), earlier)
        series = parse_metrics(served.proxy.metrics.render().decode())
    [fake] = view.models
    assert (view.model, view.status, fake.engine, fake.state) == ("fake", "ready", "fake", "ready")
    assert fake.memory_bytes
    assert fake.interval is not None
    assert dict(fake.interval.requests) == {"served": 2}
    assert dict(fake.total.requests) == {"served": 3}
    assert fake.interval.output_tokens > 0
    assert fake.total.output_tokens > fake.interval.output_tokens
    assert fake.interval.output_tok_per_s
    assert fake.interval.ttft.samples == 2
    assert fake.total.ttft.p50_s
    assert fake.interval.itl.samples >= 1
    assert sum(view.other_requests.values()) == 1
    asked = [
        value for (name, labels), value in series.items()
        if name == "enginehouse_requests_total" and ("operation", "ps") in labels
    ]  # fmt: skip
    assert asked == [1.0]  # what is loaded is not asked for at every look


async def test_a_request_under_way_is_in_flight(serving: Serving) -> None:
    """A request that has not ended is shown at its model, and so is one that waits."""
    slow = serving("--token-s", "0.2", slots=1)
    async with slow as served, EndpointReader(await url_of(served)) as reader:
        asked = [asyncio.ensure_future(ask(served)) for _ in range(2)]
        while not served.gate.waiting:  # noqa: ASYNC110 - other tasks
            await asyncio.sleep(0.01)
        [fake] = view_of(await reader.look()).models
        assert (fake.in_flight, fake.queued) == (1, 1)
        await asyncio.gather(*asked)


async def test_once_prints_one_snapshot_and_json_the_same_as_data(
    serving: Serving, house: House
) -> None:
    """--once is plain text, --json one document; both cover one interval."""
    async with serving() as served:
        await ask(served)
        arguments = ("top", "--url", await url_of(served), "--interval", "200ms")
        text = await asyncio.to_thread(house.run, *arguments, "--once")
        document = await asyncio.to_thread(house.run_json, *arguments)
    assert text.returncode == 0, text.stderr
    assert "\x1b" not in text.stdout
    for word in ("1 of 1 models ready", "TTFT P95", "ITL P50", "TOK/S", "CACHED", "fake"):
        assert word in text.stdout
    [fake] = document["models"]
    assert fake["total"]["requests"] == {"served": 1}
    assert fake["interval"]["requests"] == {}
    assert fake["total"]["ttft"]["samples"] == 1
    assert 0.1 < document["interval_s"] < 5


@asynccontextmanager
async def watching(
    house: House, url: str, stdout: int = subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `top` until it is left."""
    env = {**house.env, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    command = (sys.executable, "-m", "enginehouse", "top", "--url", url, "--interval", "200ms")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=stdout, stderr=subprocess.PIPE, env=env
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_elsewhere_than_in_a_terminal_each_interval_is_a_line(
    serving: Serving, house: House
) -> None:
    """A model's state and figures are told line by line; Ctrl-C ends with 0."""
    async with serving() as served, watching(house, await url_of(served)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [(await process.stdout.readline()).decode() for _ in range(2)]
        await served.router.unload("fake")
        while "state=unloaded" not in lines[-1]:
            lines.append((await process.stdout.readline()).decode())
        assert all("model=fake" in line and "tok/s=" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_an_endpoint_that_went_away_is_said_and_waited_for(house: House) -> None:
    """After a look that worked, one that fails is told on stderr, and looking goes on."""
    with standing_in(OURS) as url:
        async with watching(house, url) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            await process.stdout.readline()
            OURS["broken"] = (0, "")
            told = await asyncio.wait_for(process.stderr.readline(), 20)
            assert "can be reached" in told.decode()
            del OURS["broken"]
            again = await asyncio.wait_for(process.stderr.readline(), 20)
            assert "answers again" in again.decode()


async def test_a_terminal_is_drawn_on_and_left_clean(serving: Serving, house: House) -> None:
    """The view takes another screen, gives it back, and leaves what was seen last."""
    ours, theirs = pty.openpty()
    async with serving() as served, watching(house, await url_of(served), theirs) as process:
        seen = b""
        while b"models ready" not in seen:
            seen += await asyncio.to_thread(os.read, ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in seen or b"RESTARTS" not in seen.split(b"\x1b[?1049l")[1]:
            seen += await asyncio.to_thread(os.read, ours, 1 << 16)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    os.close(ours)
    os.close(theirs)
    assert b"\x1b[?1049h" in seen
    assert b"fake" in seen


async def test_a_key_is_needed_where_there_is_one(
    serving: Serving, house: House, tmp_path: Path
) -> None:
    """No key and a wrong one are told apart and not shown; a right one works, by variable too."""
    file = KeysFile(tmp_path / "keys.json")
    key, _ = file.create(ApiKey("", "top", "", ""))
    few, _ = file.create(ApiKey("", "few", "", "", requests_per_min=1))
    async with serving(access=Guarded(file.keys)) as served:
        arguments = ("top", "--once", "--interval", "100ms", "--url", await url_of(served))
        run = asyncio.to_thread
        none = await run(house.run, *arguments)
        wrong = await run(house.run, *arguments, "--key", key[:-1] + "_")
        right = await run(house.run, *arguments, "--key", key)
        by_variable = await run(house.run, *arguments, env={"ENGINEHOUSE_API_KEY": key})
        limited = await run(house.run, *arguments, "--key", few)
        odd = await run(house.run, *arguments, "--key", "a\nb")
    assert (none.returncode, wrong.returncode, odd.returncode) == (2, 2, 2)
    assert "error[endpoint.key]" in none.stderr
    assert "needs an API key" in none.stderr
    assert "refused the API key" in wrong.stderr
    assert key[:-1] not in wrong.stderr
    assert "--key KEY" in none.stderr
    assert (right.returncode, by_variable.returncode) == (0, 0), right.stderr
    assert "error[endpoint.rate_limited]" in limited.stderr
    assert "error[endpoint.bad_key]" in odd.stderr


Pages = dict[str, tuple[int, str]]
OURS: Pages = {
    "/health": (200, json.dumps({"model": "m", "status": "ok", "models": {}})),
    "/metrics": (200, 'enginehouse_requests_total{model="m",outcome="served"} 1\n'),
    "/api/ps": (200, json.dumps({"models": []})),
}


def standing_in(pages: Pages) -> _Standing:
    """Return a context with the address of a server of these pages; `broken` makes it hang up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = pages.get("broken") or pages.get(self.path, (404, "404 page not found"))
            if status:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None: ...

    return _Standing(Handler)


class _Standing:
    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.parametrize(
    "pages",
    [
        {},
        {"/health": (200, "")},
        {"/health": (200, '{"status":"ok"}')},
        {"/health": (200, "[" * 100_000)},
        {"/health": (302, "")},
        {**OURS, "/metrics": (200, "llamacpp:tokens_total 1\n")},
        {**OURS, "/metrics": (500, "boom \x1b[2J")},
        {**OURS, "/api/ps": (404, "no such page")},
    ],
    ids=["ollama", "vllm", "llama-server", "deep", "moved", "metrics", "fault", "no-ps"],
)
def test_what_is_no_enginehouse_is_told_so(house: House, pages: Pages) -> None:
    """Another server is refused with what it answered, and what to try."""
    with standing_in(pages) as url:
        done = house.run("top", "--once", "--url", url)
    assert done.returncode == 2
    assert "error[endpoint.not_enginehouse]" in done.stderr
    assert "answered" in done.stderr
    assert "--url http://HOST:PORT" in done.stderr
    assert "\x1b" not in done.stderr


def test_nothing_there_is_a_refusal_of_the_machine(house: House) -> None:
    """A port that nobody listens on ends with 4, the evidence and how to start one."""
    bound = bind_socket("127.0.0.1", 0)
    port = bound.getsockname()[1]
    bound.close()
    done = house.run("top", "--json", env={"ENGINEHOUSE_GATEWAY_PORT": str(port)})
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert error["id"] == "endpoint.unreachable"
    assert str(port) in error["what"]
    assert error["evidence"]
    assert "start one: enginehouse serve" in error["remedies"]


def test_tls_where_there_is_none_is_told(house: House) -> None:
    """https to a server of plain HTTP names the other scheme."""
    with standing_in(OURS) as url:
        done = house.run("top", "--once", "--url", url.replace("http:", "https:"))
    assert done.returncode == 4
    assert "ask by http://" in done.stderr


@pytest.mark.parametrize("interval", ["0s", "soon", "-1", "1000h"])
def test_an_interval_that_is_none_is_refused(house: House, interval: str) -> None:
    """An interval is a duration that can be waited for."""
    done = house.run("top", f"--interval={interval}")
    assert done.returncode == 2
    assert "error[top.interval]" in done.stderr
