"""How requests end: what the client, the metrics and the log are told of it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from enginehouse.core.catalog import Served as ServedModel
from enginehouse.core.errors import ErrorReport, UserError
from enginehouse.core.keys import ApiKey
from enginehouse.core.statuses import STATUS, outcome_of, status_of
from enginehouse.edges.http_guard import SeldomInvalid
from enginehouse.edges.leases import LeaseBook
from enginehouse.gateway.access import Guarded
from enginehouse.gateway.contracts import Rules
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.router import Offer, Step
from enginehouse.gateway.serve import serve
from enginehouse.gateway.serving import Serving as ServingSettings
from tests.integration.conftest import Serving, fake_plan
from tests.integration.gateways import running
from tests.integration.houses import House

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, OLLAMA = "/v1/chat/completions", "/api/chat"
BODY: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "max_tokens": 4}


async def test_a_first_model_that_cannot_start_is_ready_by_its_fallback(tmp_path: Path) -> None:
    """Where the first model's chain ends at another model, that one makes the server ready."""
    broken = fake_plan(tmp_path, "--fail", "no memory today")
    works = fake_plan(tmp_path)
    offers = (
        Offer(ServedModel("first"), (
            Step("as chosen", lambda c: broken), Step("the model good", other_model="good")
        )),
        Offer(ServedModel("good"), (Step("as chosen", lambda c: works),)),
    )  # fmt: skip
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = ServingSettings("127.0.0.1", 0, 8, 2.0)
    work = asyncio.ensure_future(
        serve(offers, serving, LeaseBook(tmp_path / "leases"), url.set_result)
    )
    async with aiohttp.ClientSession(await asyncio.wait_for(url, 30)) as client:
        async with client.post(CHAT, json={**BODY, "model": "first"}) as answer:
            assert answer.status == 200
        async with client.get("/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "ok")
    signal.raise_signal(signal.SIGINT)
    await asyncio.wait_for(work, 30)


LONG = [{"role": "user", "content": "x " * 30}]


async def test_an_outcome_means_the_same_on_every_route(serving: Serving) -> None:
    """An engine's 4xx is the user's, `rejected`; its 5xx is `failed`: forwarded or read."""
    ended: list[Journey] = []
    named: list[str] = []
    embed = {"model": "fake", "input": ["break"]}  # as the fake engine then does
    rows: list[tuple[str, dict[str, Any], int, str]] = [
        (CHAT, {**BODY, "messages": LONG}, 400, "rejected"),
        (OLLAMA, {"model": "fake", "messages": LONG}, 400, "rejected"),
        ("/v1/rerank", {"model": "fake"}, 404, "rejected"),
        ("/v1/embeddings", embed, 502, "failed"),
        ("/api/embed", embed, 502, "failed"),
    ]
    async with serving("--context", "20", "--embed", embeds=True, on_end=ended.append) as served:
        for path, body, status, _ in rows:
            async with served.client.post(path, json=body) as answer:
                assert answer.status == status, (path, await answer.text())
                named.append(answer.headers["x-enginehouse-error"])
        while len(ended) < len(rows):  # noqa: ASYNC110 - noted once the answer is out
            await asyncio.sleep(0.01)
        async with served.client.get("/metrics") as answer:
            metrics = await answer.text()
    assert [(j.status, j.outcome) for j in ended] == [(row[2], row[3]) for row in rows]
    assert [j.error_id for j in ended] == named
    counted = re.findall(r'enginehouse_requests_total\{.*outcome="(\w+)".*\} (\S+)', metrics)
    assert {outcome for outcome, _ in counted} == {"rejected", "failed"}
    assert sum(float(n) for _, n in counted) == len(rows)


async def test_a_limit_on_time_is_no_fault_of_the_client(serving: Serving) -> None:
    """`request.time_limit` is the engine's turn and `failed`, however the engine was slow."""
    ended: list[Journey] = []
    rules = Rules(time_limit_s=0.5)
    async with (
        serving("--token-s", "0.2", rules=rules, on_end=ended.append) as served,
        served.client.post(CHAT, json={**BODY, "max_tokens": 60}) as answer,
    ):
        assert answer.status == 504
        error = (await answer.json())["error"]
    assert (error["code"], error["from"]) == ("request.time_limit", "engine")
    assert (ended[-1].outcome, ended[-1].error_id) == ("failed", "request.time_limit")


def test_every_error_of_the_table_is_sent_by_something() -> None:
    """No id stands in the table that no path of the gateway gives; limits have theirs."""
    rooms = ("core", "dialects", "edges", "gateway")
    source = Path(__file__).parents[2] / "src" / "enginehouse"
    texts = "".join(
        file.read_text() for room in rooms for file in (source / room).rglob("*.py")
        if file.name != "statuses.py"
    )  # fmt: skip
    assert [id for id in STATUS if f'"{id}"' not in texts] == []
    for id, status in (("stalled", 408), ("too_slow", 408), ("too_large", 413)):
        report = ErrorReport(f"request.{id}", "x", turn="user")
        assert (STATUS[report.id], status_of(report)) == (status, status)
        assert outcome_of(report) == "rejected"


async def test_keep_alive_means_the_same_on_openais_routes(serving: Serving) -> None:
    """Seconds or a duration keep a model loaded so long, 0 unloads it; nonsense is refused."""
    responses = {"model": "fake", "input": "hi", "max_output_tokens": 4}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for path, body in (
        (CHAT, BODY),
        ("/v1/responses", responses),
        (CHAT, {**BODY, "tools": [tool]}),
    ):
        async with serving(own_tools=False) as served:
            async with served.client.post(path, json={**body, "keep_alive": "10m"}) as answer:
                assert answer.status == 200, await answer.text()
                assert "keep_alive" not in answer.headers.get("x-enginehouse-notes", "")
            assert served.router.servers["fake"].keep_alive_s == 600.0
            assert "keep_alive" not in (await served.engine_state())["bodies"][-1]
            async with served.client.post(path, json={**body, "keep_alive": "soon"}) as answer:
                assert answer.status == 400
            async with served.client.post(path, json={**body, "keep_alive": 0}) as answer:
                assert answer.status == 200
            while served.router.servers:  # noqa: ASYNC110 - a child
                await asyncio.sleep(0.02)


async def test_no_route_is_an_error_like_any_other(serving: Serving) -> None:
    """404 and 405 carry the client's request id, our code, the evidence and what to try."""
    rows = (("GET", "/v2/chat", 404, ""), ("GET", "/api/chat", 405, "POST"),
            ("DELETE", "/v1/chat/completions", 405, "POST"))  # fmt: skip
    async with serving() as served:
        for method, path, status, allowed in rows:
            told = {"x-request-id": "mine-1"}
            async with served.client.request(method, path, headers=told) as answer:
                assert answer.status == status
                assert answer.headers["x-request-id"] == "mine-1"
                shown = await answer.json()
            error = shown if path.startswith("/api") else shown["error"]
            assert answer.headers["x-enginehouse-error"] == error["code"]
            assert error["remedies"] == ["GET /openapi.json lists the routes"]
            assert allowed in str(shown)
        async with served.client.get("/nothing") as answer:
            assert len(answer.headers["x-request-id"]) == 32


async def test_a_refused_key_says_what_to_do(serving: Serving) -> None:
    """Each error of access has evidence and remedies."""
    access = Guarded(lambda: {"a": ApiKey("a", "a", "", "")})
    async with serving(access=access) as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Origin": "http://evil.example"}):
            async with served.client.post(CHAT, json=BODY, headers=headers) as answer:
                assert answer.status in (401, 403)
                error = (await answer.json())["error"]
                assert error["remedies"]
                assert "(" in error["message"]


async def test_a_pull_that_breaks_off_says_why_in_the_full_shape(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error within a pull's stream has its code, whose turn it is, and what to try."""
    ended: list[Journey] = []

    async def fetch(name: str, on_progress: Callable[[str, str, int, int], None]) -> Offer:
        on_progress("pulling manifest", "", 0, 0)
        await asyncio.sleep(0.05)
        raise UserError("model.gone", "it is gone", evidence=("404",), remedies=("another",))

    async with serving(on_end=ended.append) as served:
        monkeypatch.setattr(served.proxy.library, "fetch", fetch)
        async with served.client.post("/api/pull", json={"model": "far"}) as answer:
            lines = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == {
        "error": "it is gone (404)", "code": "model.gone", "from": "user", "remedies": ["another"]
    }  # fmt: skip
    assert (ended[-1].outcome, ended[-1].error_id) == ("rejected", "model.gone")


async def test_what_only_loads_or_unloads_is_noted_with_its_model(serving: Serving) -> None:
    """The log knows the model of a request without a prompt, of a copy and a delete."""
    ended: list[Journey] = []
    rows: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("POST", "/api/generate", {"model": "fake", "keep_alive": 0}),
        ("POST", "/api/generate", {"model": "fake", "keep_alive": 60}),
        ("POST", "/api/copy", {"source": "fake", "destination": "other"}),
        ("POST", "/api/pull", {"model": "other"}),
        ("DELETE", "/api/delete", {"model": "other"}),
    )
    async with serving(on_end=ended.append) as served:
        for method, path, body in rows:
            async with served.client.request(method, path, json=body) as answer:
                assert answer.status == 200
                await answer.read()
    assert [(j.operation, j.model) for j in ended] == [(path[5:], "fake") for _, path, _ in rows]
    assert ended[0].engine == "fake"


def test_bad_requests_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """However many requests are no HTTP, a line comes once a minute, with their number."""
    now = [100.0]
    seldom, uvicorn_log = SeldomInvalid(lambda: now[0]), logging.getLogger("uvicorn.error")
    uvicorn_log.addFilter(seldom)
    try:
        for _ in range(2):
            for _ in range(50):
                uvicorn_log.warning("Invalid HTTP request received.")
            now[0] += 61.0
        uvicorn_log.warning("something else")
    finally:
        uvicorn_log.removeFilter(seldom)
    said = "a request was no valid HTTP and was refused"
    assert caplog.messages == [said, f"{said} (50 since this was last said)", "something else"]


def test_a_server_that_gets_no_http_says_so_once(tmp_path: Path) -> None:
    """Twenty lines of rubbish are one line in the server's output."""
    house = House(tmp_path)
    with running(house) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(b"rubbish\r\n\r\n")
                assert line.recv(100).startswith(b"HTTP/1.1 400")
        assert gateway.chat() == 200
    said = (house.folder / "gateway.log").read_text()
    assert said == "a request was no valid HTTP and was refused\n"


@pytest.mark.parametrize("truncation", ["warn", "shift"])
async def test_warn_says_in_the_answer_what_shift_says_beside_it(
    serving: Serving, truncation: str
) -> None:
    """Both leave out the oldest turns and say so in a header; `warn` also in the body."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "one two three four five"}
             for i in range(9)]  # fmt: skip
    body = {**BODY, "messages": turns}
    responses = {"model": "fake", "max_output_tokens": 4,
                 "input": [{**turn, "type": "message"} for turn in turns]}  # fmt: skip
    rows = ((CHAT, body), ("/v1/responses", responses), (OLLAMA, {**body, "stream": False}),
            (OLLAMA, {**body, "stream": True}), ("/v1/messages", body))  # fmt: skip
    async with serving("--context", "20", rules=Rules(truncation=truncation), context=32) as served:
        for path, asked in rows:
            async with served.client.post(path, json=asked) as answer:
                assert answer.status == 200, await answer.text()
                said = answer.headers["x-enginehouse-truncated"]
                last = json.loads((await answer.text()).splitlines()[-1])
            told = last.get("warning") if path == OLLAMA else (last.get("warnings") or [None])[0]
            is_told = truncation == "warn" and path != "/v1/messages"
            assert told == (said if is_told else None), path
