"""What Anthropic's API lets a client say, as it reaches the engine or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from enginehouse.core.keys import ApiKey
from enginehouse.gateway.access import Guarded
from tests.integration.conftest import Served, Serving

PIXEL = "iVBORw0KGgoAAAAN"
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
SHAPE = {"type": "object", "properties": {"tree": {"type": "string"}}, "required": ["tree"]}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "oak.png"}}
LOOK = {"name": "look", "input_schema": {"type": "object"}}


def asking(*blocks: dict[str, Any], **fields: object) -> dict[str, Any]:
    """A request whose last message has these blocks, after a call of a tool."""
    told = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": [CALL]}]
    messages = [*told, {"role": "user", "content": list(blocks)}]
    return {"model": "fake", "max_tokens": 4, "messages": messages, **fields}


async def sent_for(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """Return what the engine got for a request."""
    async with served.client.post("/v1/messages", json=body) as answer:
        assert answer.status == 200, await answer.text()
        assert "x-enginehouse-notes" not in answer.headers
    bodies: list[dict[str, Any]] = (await served.engine_state())["bodies"]
    return bodies[-1]


async def test_images_in_a_tools_result_stay_images(serving: Serving) -> None:
    """They follow as the user's, also where tools are told in words, and never as text."""
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True,
              "content": [{"type": "text", "text": "an oak"}, IMAGE]}  # fmt: skip
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    async with serving() as served:
        sent = (await sent_for(served, asking(result, tools=[LOOK])))["messages"][-2:]
    assert sent == [
        {"role": "tool", "tool_call_id": "toolu_1", "content": "error: an oak"},
        {"role": "user", "content": [url]},
    ]
    async with serving(own_tools=False) as served:
        sent = (await sent_for(served, asking(result, tools=[LOOK])))["messages"][-2:]
    assert [message["role"] for message in sent] == ["user", "user"]
    assert sent[0]["content"].startswith("Result")
    assert sent[1]["content"] == [url]


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": SHAPE}, "effort": "low"}},
        {"output_format": {"type": "json_schema", "schema": SHAPE}},
    ],
    ids=["output_config", "output_format"],
)
async def test_the_form_of_an_answer_reaches_the_engine(
    serving: Serving, fields: dict[str, Any]
) -> None:
    """A schema by either of its names becomes the engine's own; so does the effort."""
    async with serving() as served:
        sent = await sent_for(served, asking({"type": "text", "text": "A tree."}, **fields))
    assert sent["response_format"]["json_schema"]["schema"] == SHAPE
    assert sent.get("reasoning_effort") == fields.get("output_config", {}).get("effort")


BILL = "x-anthropic-billing-header: cc_version=1.2.a; cch=12ab;"
BRIEF = {"type": "text", "text": "Be brief."}


@pytest.mark.parametrize("system", [f"{BILL}Be brief.", [{"type": "text", "text": BILL}, BRIEF]])
async def test_a_conversation_has_one_system_prompt_in_front(
    serving: Serving, system: object
) -> None:
    """What stands in `system` and in first messages is one; what is only for bills is told of."""
    body = asking(system=system)
    body["messages"] = [
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "Hi."}, {"role": "system", "content": "Now be loud."},
    ]  # fmt: skip
    async with serving() as served:
        async with served.client.post("/v1/messages", json=body) as answer:
            assert answer.headers["x-enginehouse-notes"] == (
                "the billing header in system is left out"
            )
        sent = (await served.engine_state())["bodies"][-1]["messages"]
    assert sent == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Hi."}, {"role": "system", "content": "Now be loud."},
    ]  # fmt: skip


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_template_that_wants_the_system_first_gets_it_so(
    serving: Serving, is_stream: bool
) -> None:
    """A refused conversation is asked again with its system messages in front, and that is told."""
    body = asking(stream=is_stream, colour="red")
    body["messages"] = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."},
        {"role": "system", "content": "Now be loud."},
    ]  # fmt: skip
    async with serving("--system-first") as served:
        async with served.client.post("/v1/messages", json=body) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers.getall("x-enginehouse-notes") == [
                "colour is not supported; system messages were moved to the front: "
                "this model takes them nowhere else"
            ]
            await answer.read()
        sent = (await served.engine_state())["bodies"][-1]["messages"]
    assert sent == [
        {"role": "system", "content": "Be kind.\n\nNow be loud."},
        {"role": "user", "content": "Hi."},
    ]  # fmt: skip


async def test_a_templates_refusal_is_the_requests_fault(serving: Serving) -> None:
    """Where it is forwarded as it is, the engine's 500 becomes 400 with the engine's words."""
    messages = [{"role": "user", "content": "Hi."}, {"role": "system", "content": "Be kind."}]
    async with serving("--system-first") as served:
        body = {"model": "fake", "messages": messages}
        async with served.client.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 400
            told = (await answer.json())["error"]
    assert (told["type"], told["from"]) == ("invalid_request_error", "user")
    assert "System message must be at the beginning" in told["message"]


async def test_a_request_is_named_where_clients_look(serving: Serving) -> None:
    """`request-id` is on answers, streams and errors alike, and is the client's own where given."""
    named = {"x-request-id": "mine-1"}
    async with serving() as served:
        for body in (asking(), asking(stream=True), {"model": "nope"}):
            sending = served.client.post("/v1/messages", json=body, headers=named)
            async with sending as answer:
                assert answer.headers.getall("request-id") == ["mine-1"]
        async with served.client.get("/v1/models") as answer:
            assert "request-id" not in answer.headers


SHARED = (
    ("GET", "/v1/models/nope", 404), ("POST", "/v1/models", 405), ("GET", "/v1/nothing", 404),
    ("GET", "/v1/messages", 405), ("GET", "/v1/messages/batches", 404),
)  # fmt: skip


async def test_shared_routes_refuse_in_the_shape_of_who_asks(serving: Serving) -> None:
    """`anthropic-version` makes each error Anthropic's, with its id header; without it OpenAI's."""
    version = {"anthropic-version": "2023-06-01"}
    guarded = Guarded(lambda: {"a": ApiKey("a", "a", "", "")})
    async with serving() as served:
        for method, path, status in SHARED:
            async with served.client.request(method, path, headers=version) as answer:
                told = await answer.json()
                assert (answer.status, told["type"]) == (status, "error"), path
                assert told["error"]["code"] == answer.headers["x-enginehouse-error"]
                assert answer.headers["request-id"] == answer.headers["x-request-id"]
        async with served.client.get("/v1/models/nope") as answer:
            assert answer.status == 404
            assert "type" not in await answer.json()
        async with served.client.get("/v1/models/fake", headers=version) as answer:
            assert (await answer.json())["type"] == "model"
    async with serving(access=guarded) as served:
        for path in ("/v1/models", "/v1/models/fake", "/metrics"):
            async with served.client.get(path, headers=version) as answer:
                told = await answer.json()
                assert (answer.status, told["error"]["type"]) == (401, "authentication_error")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a text without text": ({"type": "text"}, "content[0].text"),
    "an image without bytes": ({"type": "image"}, "content[0].source"),
    "a call without an id": ({**CALL, "id": ""}, "content[0].id"),
    "a call without a name": ({**CALL, "name": None}, "content[0].name"),
    "a call without input": ({"type": "tool_use", "id": "a", "name": "b"}, "content[0].input"),
    "a result of nothing": ({"type": "tool_result", "content": "x"}, "content[0].tool_use_id"),
    "thoughts without thoughts": ({"type": "thinking"}, "content[0].thinking"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_block_that_says_nothing_is_refused(serving: Serving, case: str) -> None:
    """400 names the field and its place; nothing empty goes to the engine instead."""
    block, place = BAD[case]
    async with (
        serving() as served,
        served.client.post("/v1/messages", json=asking(block)) as answer,
    ):
        told = await answer.json()
        assert answer.status == 400
    assert told["error"]["type"] == "invalid_request_error"
    assert f"messages[2].{place}: field required" in told["error"]["message"]
