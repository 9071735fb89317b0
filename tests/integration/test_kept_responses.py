"""Responses that later ones point to: over the wire, as clients of the Responses API ask."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from enginehouse.core.keys import ApiKey
from enginehouse.edges.keys_file import KeysFile
from enginehouse.gateway.access import Guarded
from enginehouse.gateway.contracts import Rules
from enginehouse.gateway.kept import KeepLimits
from tests.integration.conftest import Served, Serving

PATH = "/v1/responses"
CALLING = Path(__file__).parents[1] / "fixtures" / "conversations" / "tool_call.json"
LOOK = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}


async def ask(client: aiohttp.ClientSession, input: object, **more: Any) -> dict[str, Any]:
    """Ask for three tokens; return the whole response, or of a stream the last event's."""
    body = {"model": "fake", "input": input, "max_output_tokens": 3, **more}
    async with client.post(PATH, json=body) as answer:
        text = await answer.text()
        assert answer.status == 200, text
    if not more.get("stream"):
        return dict(json.loads(text))
    last = [part for part in text.split("\n\n") if part][-1]
    return dict(json.loads(last.split("\ndata: ", 1)[1])["response"])


async def refused(
    client: aiohttp.ClientSession, input: object, **more: Any
) -> tuple[int, dict[str, Any]]:
    """Ask for what is refused; return the status and the error."""
    async with client.post(PATH, json={"model": "fake", "input": input, **more}) as answer:
        return answer.status, (await answer.json())["error"]


async def shown(
    client: aiohttp.ClientSession, path: str, method: str = "GET", **headers: str
) -> tuple[int, Any]:
    """Return the status and the body."""
    async with client.request(method, path, headers=headers) as answer:
        return answer.status, await answer.json()


async def messages_sent(served: Served) -> list[tuple[str, str]]:
    """Return the roles and texts of the conversation that reached the engine last."""
    sent = (await served.engine_state())["bodies"][-1]["messages"]
    return [(message["role"], message["content"]) for message in sent]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_earlier_response_comes_in_front(serving: Serving, stream: bool) -> None:
    """Its input and output, whole or streamed, without its instructions; and so on in a chain."""
    async with serving() as served:
        first = await ask(served.client, "One.", instructions="Be brief.", stream=stream)
        assert (first["store"], first["previous_response_id"]) == (True, None)
        said = first["output"][0]["content"][0]["text"]
        before = [("user", "One."), ("assistant", said)]
        second = await ask(
            served.client, "Two.", previous_response_id=first["id"], stream=stream,
            instructions="Be long.",
        )  # fmt: skip
        assert second["previous_response_id"] == first["id"]
        assert await messages_sent(served) == [("system", "Be long."), *before, ("user", "Two.")]
        await ask(served.client, [{"role": "user", "content": "Three."}],
                  previous_response_id=second["id"])  # fmt: skip
        assert await messages_sent(served) == [
            *before, ("user", "Two."), ("assistant", said), ("user", "Three."),
        ]  # fmt: skip
        counted = {"model": "fake", "input": "Four.", "previous_response_id": second["id"]}
        async with served.client.post(f"{PATH}/input_tokens", json=counted) as answer:
            words = (await answer.json())["input_tokens"]
        assert words == 3 + 2 * len(said.split())


@pytest.mark.parametrize("stream", [False, True])
async def test_items_stand_for_what_they_point_to(serving: Serving, stream: bool) -> None:
    """As Vercel's AI SDK sends a tool's result: the thoughts and the call by their ids alone."""
    async with serving("--conversation", str(CALLING)) as served:
        asked = [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}]
        first = await ask(served.client, asked, tools=[LOOK], stream=stream)
        points = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        call = next(item for item in first["output"] if item["type"] == "function_call")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "18"}
        await ask(served.client, [*asked, *points, result], tools=[LOOK], stream=stream)
        sent = (await served.engine_state())["bodies"][-1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    told = sent[1]["tool_calls"][0]
    assert (told["id"], told["function"]["name"]) == (call["call_id"], call["name"])
    assert told["function"]["arguments"] == call["arguments"]
    assert (sent[2]["tool_call_id"], sent[2]["content"]) == (call["call_id"], "18")


@pytest.mark.parametrize("root", ["/v1/responses", "/responses"])
async def test_a_response_is_shown_and_forgotten(serving: Serving, root: str) -> None:
    """As it was answered, with what came before it page by page; then it is gone."""
    async with serving() as served:
        first = await ask(served.client, "One.")
        second = await ask(served.client, "Two.", previous_response_id=first["id"])
        one = f"{root}/{second['id']}"
        assert await shown(served.client, one) == (200, second)
        _, page = await shown(served.client, f"{one}/input_items?order=asc&limit=2")
        assert [item["role"] for item in page["data"]] == ["user", "assistant"]
        assert page["data"][0]["content"] == [{"type": "input_text", "text": "One."}]
        assert page["data"][1] == first["output"][0]
        assert (page["has_more"], page["last_id"]) == (True, first["output"][0]["id"])
        _, rest = await shown(served.client, f"{one}/input_items?order=asc&after={page['last_id']}")
        assert [item["content"][0]["text"] for item in rest["data"]] == ["Two."]
        assert not rest["has_more"]
        _, back = await shown(served.client, f"{one}/input_items")
        assert back["data"] == [*page["data"], *rest["data"]][::-1]
        for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=nobody"):
            status, body = await shown(served.client, f"{one}/input_items?{query}")
            assert (status, body["error"]["code"]) == (400, "request.invalid"), query
        status, body = await shown(served.client, f"{one}?stream=true")
        assert (status, body["error"]["code"]) == (400, "request.stateful")
        gone = {"id": second["id"], "object": "response", "deleted": True}
        assert await shown(served.client, one, "DELETE") == (200, gone)
        for path, method in ((one, "GET"), (one, "DELETE"), (f"{one}/input_items", "GET")):
            status, body = await shown(served.client, path, method)
            assert (status, body["error"]["code"]) == (404, "response_not_found")
            assert body["error"]["remedies"]
        assert (await shown(served.client, f"{root}/{first['id']}"))[0] == 200


async def test_what_is_not_kept_is_not_found(serving: Serving) -> None:
    """An unknown id, `store: false` and too old an answer get OpenAI's statuses, with remedies."""
    async with serving() as served:
        told = await ask(served.client, "Secret.", store=False)
        assert told["store"] is False
        kept = await ask(served.client, "One.")
        for id in ("resp_nobody", told["id"]):
            status, error = await refused(served.client, "Two.", previous_response_id=id)
            assert (status, error["code"]) == (400, "previous_response_not_found")
            assert error["param"] == "previous_response_id"
            assert id in error["message"]
            assert "send the whole conversation as input" in error["remedies"]
        point = {"type": "item_reference", "id": told["output"][0]["id"]}
        status, error = await refused(served.client, [point])
        assert (status, error["code"], error["param"]) == (404, "item_not_found", "input")
        assert "store: false" in error["remedies"][0]
        status, error = await refused(served.client, "Two.", conversation="conv_1")
        assert (status, error["code"]) == (400, "request.stateful")
        clock = served.proxy.kept._clock
        served.proxy.kept._clock = lambda: clock() + 3601
        assert (await shown(served.client, f"{PATH}/{kept['id']}"))[0] == 404
        assert served.proxy.kept.bytes == 0


async def test_keeping_can_be_turned_off(serving: Serving) -> None:
    """Then a response says so, and the refusal which setting it is."""
    rules = Rules(kept=KeepLimits(answers=0))
    async with serving(rules=rules) as served:
        body = {"model": "fake", "input": "One.", "store": True}
        async with served.client.post(PATH, json=body) as answer:
            first = await answer.json()
            assert "store is not supported" in answer.headers["x-enginehouse-notes"]
        assert first["store"] is False
        _, error = await refused(served.client, "Two.", previous_response_id=first["id"])
        assert "gateway.responses_kept" in error["message"]


async def test_each_key_has_its_own(serving: Serving, tmp_path: Path) -> None:
    """Another key's response is as unknown as one that never was, and cannot be let go."""
    file = KeysFile(tmp_path / "keys.json")
    mine, other = [file.create(ApiKey("", name, "", ""))[0] for name in ("mine", "other")]
    body: dict[str, Any] = {"model": "fake", "input": "One.", "max_output_tokens": 2}
    async with serving(access=Guarded(file.keys)) as served:
        async with served.client.post(PATH, json=body, headers={"x-api-key": mine}) as answer:
            first = await answer.json()
        one, theirs = f"{PATH}/{first['id']}", {"x-api-key": other}
        for path, method in ((one, "GET"), (one, "DELETE"), (f"{one}/input_items", "GET")):
            assert (await shown(served.client, path, method, **theirs))[0] == 404
        point = [{"type": "item_reference", "id": first["output"][0]["id"]}]
        for more, status in (({"previous_response_id": first["id"]}, 400), ({"input": point}, 404)):
            async with served.client.post(PATH, json=body | more, headers=theirs) as answer:
                assert answer.status == status
        assert await shown(served.client, one, **{"x-api-key": mine}) == (200, first)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_broke_off_is_not_kept(serving: Serving, stream: bool) -> None:
    """An answer that its engine did not end."""
    async with serving("--die-after-tokens", "3") as served:
        body = {"model": "fake", "input": "One.", "max_output_tokens": 8, "stream": stream}
        async with served.client.post(PATH, json=body) as answer:
            assert "engine.broke_off" in await answer.text()
        assert len(served.proxy.kept) == 0


async def test_what_its_client_left_is_not_kept(serving: Serving) -> None:
    """Though a part of it was sent."""
    ended: asyncio.Queue[str] = asyncio.Queue()
    script = ("--stall-after-tokens", "2")
    async with serving(*script, on_end=lambda journey: ended.put_nowait(journey.outcome)) as served:
        body = {"model": "fake", "input": "One.", "max_output_tokens": 8, "stream": True}
        async with served.client.post(PATH, json=body) as answer:
            assert b"response.created" in await answer.content.readany()
            answer.close()
        assert await asyncio.wait_for(ended.get(), 5) == "cancelled"
        assert len(served.proxy.kept) == 0


async def test_an_id_is_never_given_twice(serving: Serving) -> None:
    """Not to a client that sends one x-request-id with all it asks, of whatever characters."""
    headers = {"x-request-id": "a/b?c"}
    async with serving() as served:
        ids = []
        for text in ("One.", "Two."):
            body = {"model": "fake", "input": text, "max_output_tokens": 2}
            async with served.client.post(PATH, json=body, headers=headers) as answer:
                assert answer.headers["x-request-id"] == "a/b?c"
                ids.append((await answer.json())["id"])
        assert len(set(ids)) == 2
        for id, text in zip(ids, ("One.", "Two."), strict=True):
            _, page = await shown(served.client, f"{PATH}/{id}/input_items")
            assert page["data"][0]["content"][0]["text"] == text
