"""The gateway over a real child process: what is asked arrives, and every failure is honest."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import time

import psutil

from enginehouse.core.lifecycle import State
from enginehouse.edges.ports import bind_socket
from enginehouse.edges.processes import EngineProcess
from enginehouse.gateway.supervisor import MEMORY_FOR_S
from tests.integration.conftest import Serving

ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
CHAT = "/v1/chat/completions"


async def test_what_is_written_is_sent_at_once() -> None:
    """Nagle's algorithm would hold a stream's first token back until the headers are known of."""
    with bind_socket("127.0.0.1", 0) as bound:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

        class Taker(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.set_result(transport)

        server = await loop.create_server(Taker, sock=bound)
        _, writer = await asyncio.open_connection(*bound.getsockname())
        accepted = (await made).get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        (await made).close()
        server.close()
        await server.wait_closed()


async def test_a_stream_and_a_whole_answer_carry_the_engines_bytes(serving: Serving) -> None:
    """Both forms of an answer come through whole."""
    async with serving() as served:
        async with served.client.post(CHAT, json=ASK) as answer:
            assert answer.status == 200
            whole = (await answer.json())["choices"][0]["message"]["content"]
        async with served.client.post(CHAT, json=ASK | {"stream": True}) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            lines = (await answer.text()).split("\n\n")
        pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == whole
        assert lines[-2] == "data: [DONE]"


async def test_what_cannot_be_served_is_refused_in_the_dialects_shape(serving: Serving) -> None:
    """Unknown model, bad JSON, too large, no route, no embeddings: status and code for each."""
    async with serving() as served:
        for path, data, status, code in (
            (CHAT, json.dumps(ASK | {"model": "other"}).encode(), 404, "model_not_found"),
            (CHAT, b"{nope", 400, "request.not_json"),
            (CHAT, b"[]", 400, "request.not_json"),
            (CHAT, b'{"model": "fake", "messages": [ ]}', 400, "request.invalid"),
            (
                "/v1/messages",
                b'{"model": "fake", "max_tokens": 1, "messages": []}',
                400,
                "request.invalid",
            ),
            (CHAT, b"\xff\xfe", 400, "request.not_json"),
            (CHAT, b" " * (2 << 20), 413, "request.too_large"),
            ("/v1/embeddings", b'{"input": "x"}', 400, "request.embeddings.unsupported"),
            ("/v1/nothing", b"{}", 404, "request.no_route"),
            ("/v1/models", b"{}", 405, "request.method"),
        ):
            async with served.client.post(path, data=io.BytesIO(data)) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
        async with served.client.get("/v1/models") as answer:
            assert [m["id"] for m in (await answer.json())["data"]] == ["fake"]
        async with served.client.get("/v1/models/fake:latest") as answer:
            assert answer.status == 200
        async with served.client.get("/metrics") as answer:
            assert 'outcome="rejected"} 6.0' in await answer.text()


async def test_a_client_that_goes_away_frees_the_engine(serving: Serving) -> None:
    """Upstream work is cancelled when the client disconnects, and its place is given back."""
    async with serving("--token-s", "0.05") as served:
        long = ASK | {"stream": True, "max_tokens": 1000}
        answer = await served.client.post(CHAT, json=long)
        await answer.content.readline()
        answer.close()
        while (await served.engine_state())["cancelled"] < 1:  # noqa: ASYNC110 - a child
            await asyncio.sleep(0.02)
        assert served.supervisor.in_flight == 0


async def test_a_dead_kept_connection_costs_no_request(serving: Serving) -> None:
    """The engine closes kept-alive connections after each stream; all requests are served."""
    async with serving("--close-after-stream") as served:
        for _ in range(30):
            async with served.client.post(CHAT, json=ASK | {"stream": True}) as answer:
                assert answer.status == 200
                assert "[DONE]" in await answer.text()


async def test_a_crash_in_the_middle_is_said_and_the_engine_comes_back(serving: Serving) -> None:
    """The stream ends with an error event; /health tells it; the next request is served."""
    async with serving("--die-after-tokens", "5") as served:
        async with served.client.post(CHAT, json=ASK | {"stream": True}) as answer:
            text = await answer.text()
        assert '"code": "engine.broke_off"' in text
        assert "[DONE]" not in text
        async with served.client.post(CHAT, json=ASK | {"max_tokens": 3}) as answer:
            assert answer.status == 200
        assert served.supervisor.restarts == 1


async def test_a_hung_engine_is_seen_and_replaced(serving: Serving) -> None:
    """A stopped process answers nothing: health turns 503, a new engine is started."""
    async with serving() as served:
        assert served.supervisor._process is not None
        os.kill(served.supervisor._process.pid, signal.SIGSTOP)
        while served.supervisor.state is State.READY:
            await served.supervisor.wait_change()
        async with served.client.get("/health") as answer:
            assert answer.status == 503
            assert "hangs" in (await answer.json())["reason"]
        assert await served.supervisor.wait_settled() is State.READY
        async with served.client.get("/health") as answer:
            assert answer.status == 200


async def test_health_is_not_ok_without_a_token(serving: Serving) -> None:
    """An engine whose /health says 200 but that makes no token is never ready."""
    async with serving("--no-token", settle=False) as served:
        while served.supervisor.restarts < 1:
            await served.supervisor.wait_change()
        assert "no first token" in served.supervisor.reason
        async with served.client.get("/health") as answer:
            assert answer.status == 503


async def test_more_than_the_queue_holds_is_turned_away(serving: Serving) -> None:
    """With one slot and a queue of two, the rest get 503 with Retry-After; nobody is lost."""
    async with serving("--token-s", "0.02", slots=1, queue_limit=2) as served:

        async def ask() -> tuple[int, str]:
            async with served.client.post(CHAT, json=ASK) as answer:
                await answer.read()
                return answer.status, answer.headers.get("Retry-After", "")

        answers = await asyncio.gather(*(ask() for _ in range(8)))
        assert sorted(status for status, _ in answers) == [200] * 3 + [503] * 5
        assert all(retry for status, retry in answers if status == 503)


async def test_nothing_outlives_a_stop(serving: Serving) -> None:
    """An engine that ignores SIGTERM and its child of another session are both ended."""
    async with serving("--ignore-sigterm", "--grandchild") as served:
        assert served.supervisor._process is not None
        leader = psutil.Process(served.supervisor._process.pid)
        family = [leader, *leader.children(recursive=True)]
        assert len(family) == 2
    _, alive = psutil.wait_procs(family, timeout=5)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


class Counted:
    """An engine's process whose readings of memory are counted."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self.readings = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._process, name)

    def memory(self) -> tuple[int, int | None]:
        self.readings += 1
        return self._process.memory()


async def test_an_engines_memory_is_not_read_at_every_request(serving: Serving) -> None:
    """Lists and metrics share one reading for a while; a new engine is read anew."""
    async with serving() as served:
        supervisor, client = served.supervisor, served.client
        assert supervisor._process is not None
        counted = Counted(supervisor._process)
        supervisor._process = counted  # type: ignore[assignment]
        began = time.monotonic()
        sizes = set()
        for _ in range(10):
            for path in ("/api/tags", "/v1/models", "/metrics"):
                async with client.get(path) as answer:
                    assert answer.status == 200
            async with client.get("/api/ps") as answer:
                sizes.add((await answer.json())["models"][0]["size"])
        assert counted.readings <= 1 + (time.monotonic() - began) // MEMORY_FOR_S
        assert len(sizes) == counted.readings
        assert min(sizes) > 1 << 20
        supervisor.memory(0.0)  # who has to decide on it reads it now
        assert counted.readings == len(sizes) + 1
        restarts = supervisor.restarts
        counted._process.kill()
        while supervisor.restarts == restarts:
            await supervisor.wait_change()
        assert await supervisor.wait_settled() is State.READY
        assert supervisor.memory() > 1 << 20
