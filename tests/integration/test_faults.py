"""The fault table: what can go wrong with a request, and what its client gets."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from enginehouse.core.catalog import Served as ServedModel
from enginehouse.core.errors import ErrorReport
from enginehouse.core.lifecycle import State
from enginehouse.core.statuses import STATUS
from enginehouse.dialects import load_dialects
from enginehouse.edges.request_log import RequestLog, RequestRow, open_log, read_log
from enginehouse.gateway.contracts import Rules
from enginehouse.gateway.router import Limits, Offer, Step
from tests.integration.conftest import Served, Serving, fake_plan

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, OLLAMA, CLAUDE, RESPONSES = (
    "/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/responses"
)  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "fake", "messages": MESSAGES, "max_tokens": 12},
    OLLAMA: {"model": "fake", "messages": MESSAGES, "options": {"num_predict": 12}},
    CLAUDE: {"model": "fake", "messages": MESSAGES, "max_tokens": 12},
    RESPONSES: {"model": "fake", "input": "hi", "max_output_tokens": 12},
}


def test_every_error_has_its_shape_in_every_dialect() -> None:
    """A code, whose turn it is, a sentence: before an answer and within a stream."""
    for dialect in load_dialects():
        for id, status in STATUS.items():
            report = ErrorReport(id, "what happened", ("seen",), turn="engine")
            rendered = dialect.render_error(report, status)
            assert rendered.status == status
            shown = json.loads(rendered.body)
            inner = shown if dialect.name == "ollama" else shown["error"]
            text = inner["error"] if dialect.name == "ollama" else inner["message"]
            assert (inner["code"], inner["from"]) == (id, "engine")
            assert text == "what happened (seen)"
            event = dialect.render_stream_error(report, status)
            data = event.strip().split(b"data: ")[-1]
            assert id.encode() in data
            assert isinstance(json.loads(data), dict)


@pytest.mark.parametrize("path", BODIES)
async def test_an_engine_that_dies_before_the_first_byte(serving: Serving, path: str) -> None:
    """The request is served by the engine's next run; nobody hears of it."""
    async with serving("--token-s", "0.05") as served:
        process = served.supervisor._process
        assert process is not None
        process.kill()
        async with served.client.post(path, json=BODIES[path]) as answer:
            assert answer.status == 200
            await answer.read()
        assert served.supervisor.restarts == 1


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("how", [("--die-after-tokens", "5"), ("--end-early",)])
async def test_an_engine_that_breaks_off(serving: Serving, path: str, how: tuple[str, ...]) -> None:
    """The answer ends with an error in the dialect's shape, never as if it were whole."""
    async with (
        serving(*how) as served,
        served.client.post(path, json={**BODIES[path], "stream": True}) as answer,
    ):
        assert answer.status == 200
        text = await answer.text()
    assert "engine.broke_off" in text.strip().splitlines()[-1]
    for end in ("[DONE]", '"done":true', "message_stop", "response.completed"):
        assert end not in text


async def test_an_engine_that_stalls_is_given_up_by_the_time_limit(serving: Serving) -> None:
    """A stream that says nothing any more ends with an error; its slot is free again."""
    rules = Rules(time_limit_s=1.0)
    async with serving("--stall-after-tokens", "3", rules=rules, slots=1) as served:
        body = {**BODIES[OLLAMA], "stream": True}
        async with served.client.post(OLLAMA, json=body) as answer:
            lines = (await answer.text()).splitlines()
        assert json.loads(lines[-1])["code"] == "request.time_limit"
        assert served.supervisor.in_flight == 0


async def test_a_client_that_reads_nothing_frees_its_slot(serving: Serving) -> None:
    """What a stalled client holds is given back after the limit, and counted."""
    rules = Rules(stall_limit_s=1.0)
    async with serving("--token-s", "0", "--fill-bytes", "20000", rules=rules, slots=1) as served:
        port = served.client._base_url.port  # type: ignore[union-attr]
        body = json.dumps({**BODIES[CHAT], "stream": True, "max_tokens": 4000}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        await reader.readline()
        while served.supervisor.in_flight == 0:  # noqa: ASYNC110 - a child
            await asyncio.sleep(0.02)
        while served.supervisor.in_flight:  # noqa: ASYNC110 - a child
            await asyncio.sleep(0.05)
        writer.close()


async def test_a_model_that_cannot_start_falls_back(serving: Serving, tmp_path: Path) -> None:
    """The next step of the chain serves, then the other model; the client sees only the answer."""
    broken = fake_plan(tmp_path, "--fail", "no memory today")
    works = fake_plan(tmp_path)
    other = Offer(
        ServedModel("frail"),
        (Step("as chosen", lambda c: broken), Step("minimal", lambda c: works)),
    )
    last = Offer(ServedModel("worse"), (
        Step("as chosen", lambda c: broken), Step("the model fake", other_model="fake")
    ))  # fmt: skip
    async with serving(more=(other, last)) as served:
        for model in ("frail", "worse"):
            body = {**BODIES[CHAT], "model": model}
            async with served.client.post(CHAT, json=body) as answer:
                assert answer.status == 200, await answer.text()
                assert (await answer.json())["choices"][0]["message"]["content"]
        async with served.client.get("/metrics") as answer:
            metrics = await answer.text()
    assert 'enginehouse_fallbacks_total{model="frail",step="minimal"} 1.0' in metrics
    assert 'enginehouse_fallbacks_total{model="worse",step="the model fake"} 1.0' in metrics


async def test_a_chain_that_is_at_its_end_says_so(serving: Serving, tmp_path: Path) -> None:
    """A model of which nothing starts gives 503 in the dialect's shape; others are served on."""
    broken = fake_plan(tmp_path, "--fail", "no memory today")
    dead = Offer(ServedModel("dead"), (
        Step("as chosen", lambda c: broken), Step("minimal", lambda c: broken)
    ))  # fmt: skip
    async with serving(more=(dead,)) as served:
        for path, body in BODIES.items():
            async with served.client.post(path, json={**body, "model": "dead"}) as answer:
                assert answer.status == 503
                assert "failed" in await answer.text()
        async with served.client.post(CHAT, json=BODIES[CHAT]) as answer:
            assert answer.status == 200


async def test_a_client_that_waits_for_a_model_is_kept_patient(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a model loads, each dialect's stream carries what its clients read past."""
    monkeypatch.setattr("enginehouse.gateway.holding.KEEP_ALIVE_S", 0.2)
    slow = Offer(
        ServedModel("slow"), (Step("x", lambda c: fake_plan(tmp_path, "--load-s", "0.8")),)
    )
    for path, body in BODIES.items():
        async with serving(more=(slow,)) as served:
            asked = {**body, "model": "slow", "stream": True}
            async with served.client.post(path, json=asked) as answer:
                assert answer.status == 200
                text = await answer.text()
        if path == OLLAMA:
            pieces = [json.loads(line) for line in text.split("\n")[:-1]]
            assert [p["message"]["content"] for p in pieces[:2]] == ["", ""]
            assert not any("done_reason" in piece for piece in pieces[:-1])
        else:
            assert ("event: ping" if path == CLAUDE else ": waiting") in text
        assert "clock" in text


async def test_a_load_that_takes_too_long_is_an_honest_error(
    serving: Serving, tmp_path: Path
) -> None:
    """A request waits for its model for a bounded time."""
    slow = Offer(ServedModel("slow"), (Step("x", lambda c: fake_plan(tmp_path, "--never-ready")),))
    async with (
        serving(more=(slow,), limits=Limits(load_wait_s=0.5)) as served,
        served.client.post(CHAT, json={**BODIES[CHAT], "model": "slow"}) as answer,
    ):
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "model.load_timeout"
        assert int(answer.headers["Retry-After"]) > 0


async def ask_long(served: Served) -> tuple[aiohttp.ClientResponse, str]:
    """Ask something that is longer than 20 words."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "one two three four five"}
             for i in range(9)]  # fmt: skip
    async with served.client.post(CHAT, json={**BODIES[CHAT], "messages": turns}) as answer:
        return answer, await answer.text()


async def test_truncation_is_visible(serving: Serving) -> None:
    """By default a prompt that is too long is an error; where it is shortened, a header says so."""
    async with serving("--context", "20") as served:
        answer, text = await ask_long(served)
        assert answer.status == 400
        assert "exceed_context_size_error" in text
        async with served.client.post(
            OLLAMA, json={"model": "fake", "messages": [{"role": "user", "content": "x " * 30}]}
        ) as refused:
            assert refused.status == 400
            assert (await refused.json())["code"] == "context_length_exceeded"
    async with serving("--context", "20", rules=Rules(truncation="warn"), context=32) as served:
        answer, text = await ask_long(served)
        assert answer.status == 200
        assert (
            "6 of the oldest messages were left out: 45 tokens"
            in answer.headers["x-enginehouse-truncated"]
        )
        async with served.client.get("/metrics") as metrics:
            assert "enginehouse_truncations_total{" in await metrics.text()


async def test_a_larger_context_is_served_by_a_reload(serving: Serving) -> None:
    """`num_ctx` above the served context starts the engine anew, on /v1 too; below it does not."""
    facts = ServedModel("fake", context_length=4096)
    async with serving(context=1024, facts=facts) as served:
        for context, serves in ((512, 1024), (2048, 2048), (100_000, 4096), (1024, 4096)):
            body = {**BODIES[CHAT], "num_ctx": context}
            async with served.client.post(CHAT, json=body) as answer:
                assert answer.status == 200
            async with served.client.get("/api/ps") as answer:
                [running] = (await answer.json())["models"]
            assert running["context_length"] == serves


async def test_models_make_room_for_each_other(serving: Serving, tmp_path: Path) -> None:
    """A second model that does not fit beside the first is loaded in its place, and back."""
    second = Offer(
        ServedModel("second"), (Step("x", lambda c: fake_plan(tmp_path), needed_bytes=30 << 20),)
    )
    async with serving(more=(second,), room_bytes=40 << 20, needed_bytes=30 << 20) as served:
        for model in ("second", "fake", "second"):
            body = {**BODIES[CHAT], "model": model}
            async with served.client.post(CHAT, json=body) as answer:
                assert answer.status == 200, await answer.text()
            assert list(served.router.servers) == [model]
    async with (
        serving(more=(second,), room_bytes=40 << 20, needed_bytes=30 << 20, pin=True) as served,
        served.client.post(CHAT, json={**BODIES[CHAT], "model": "second"}) as answer,
    ):
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "memory.no_room"


async def test_an_idle_model_is_unloaded_and_comes_back(serving: Serving) -> None:
    """keep_alive in seconds unloads after them, 0 at once, and the next request loads again."""
    async with serving() as served:
        for keep_alive in (0.5, 0):
            body = {**BODIES[OLLAMA], "keep_alive": keep_alive, "stream": False}
            async with served.client.post(OLLAMA, json=body) as answer:
                assert answer.status == 200
            while served.router.servers:  # noqa: ASYNC110 - a child
                await asyncio.sleep(0.05)
            async with served.client.get("/health") as answer:
                assert (await answer.json())["status"] == "idle"
        async with served.client.post(OLLAMA, json=BODIES[OLLAMA]) as answer:
            assert answer.status == 200
            await answer.read()
        assert served.router.servers["fake"].supervisor.state is State.READY


def row(number: int) -> RequestRow:
    """Return a row of the log."""
    return RequestRow(
        f"r{number}", float(number), "", "openai", "chat", "m", "e", 200, "served", "",
        1, 2, 0, 0.0, 0.0, 0.1, 0.2, 0, 0,
    )  # fmt: skip


def test_a_full_disk_loses_log_rows_and_nothing_else(tmp_path: Path) -> None:
    """Rows that cannot be written are counted; once there is room the log goes on."""
    path = tmp_path / "requests.sqlite"
    fails = [True]

    def open_database(where: Path) -> sqlite3.Connection:
        database = open_log(where)
        if fails.pop() if fails else False:
            database.execute("PRAGMA max_page_count=1")  # as a full disk: SQLITE_FULL
        return database

    log = RequestLog(path, 0.0, open_database)
    for number in range(300):
        log.note(row(number))
    log.start()
    while log.written + log.lost < 300:
        pass
    assert log.lost > 0
    log.note(row(1000))
    log.stop()
    assert read_log(path, 1)[0].id == "r1000"
