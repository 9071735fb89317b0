"""The `anthropic` package, sync and async."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from tests.clients.asked import ASK_WEATHER, CITY, SAY_HI
from tests.clients.conftest import MODEL

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]
HI: Any = [{"role": "user", "content": SAY_HI}]
TOOL: Any = {"name": "get_weather", "description": "Get the weather", "input_schema": CITY}


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    """A client as its documentation makes it."""
    with anthropic.Anthropic(base_url=url, api_key="none") as made:
        yield made


def test_messages(client: anthropic.Anthropic) -> None:
    """Text, reason and counts; a system prompt and a stop sequence are taken."""
    answer = client.messages.create(
        model=MODEL, max_tokens=8, messages=HI, system="Be brief.", extra_body={"temperature": 0}
    )
    assert answer.role == "assistant"
    assert answer.content[0].type == "text"
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0
    assert 0 < answer.usage.output_tokens <= 8


def test_stream(client: anthropic.Anthropic) -> None:
    """The events make up the same message."""
    with client.messages.stream(model=MODEL, max_tokens=8, messages=HI) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text
    assert final.content[0].type == "text"
    assert final.content[0].text == text
    assert final.usage.output_tokens > 0


def test_a_stream_begins_with_the_prompts_tokens(client: anthropic.Anthropic) -> None:
    """`message_start` counts what the engine reads, cached or not, and never fewer than 1."""
    prompt: Any = [{"role": "user", "content": "Of seven lakes, name the deepest."}]
    counted = client.messages.count_tokens(model=MODEL, messages=prompt).input_tokens
    for _ in ("computed", "cached"):
        events = list(client.messages.create(
            model=MODEL, max_tokens=2, messages=prompt, stream=True,
        ))  # fmt: skip
        assert events[0].type == "message_start"
        usage = events[0].message.usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_stop_sequence_that_ended_an_answer_is_named(
    client: anthropic.Anthropic, is_stream: bool
) -> None:
    """Both fields say so, whole and streamed; an answer that ends otherwise names none."""
    asked: Any = {
        "model": MODEL, "max_tokens": 60, "messages": HI, "stop_sequences": ["\x00", *"aeio "],
    }  # fmt: skip
    if is_stream:
        with client.messages.stream(**asked) as stream:
            answer = stream.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence in asked["stop_sequences"]
    other = client.messages.create(model=MODEL, max_tokens=2, messages=HI, stop_sequences=["\x00"])
    assert (other.stop_reason, other.stop_sequence) == ("max_tokens", None)


def test_a_schema_forces_the_answer(client: anthropic.Anthropic) -> None:
    """`output_config.format` holds the answer to its schema."""
    schema = {"type": "object", "properties": {"tree": {"enum": ["oak", "elm"]}},
              "required": ["tree"], "additionalProperties": False}  # fmt: skip
    answer = client.messages.create(
        model=MODEL, max_tokens=40, messages=HI,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )  # fmt: skip
    assert answer.content[0].type == "text"
    assert json.loads(answer.content[0].text)["tree"] in ("oak", "elm")


def test_tools(client: anthropic.Anthropic) -> None:
    """A forced call comes as a block, whole and streamed, and its result is taken."""
    asked: Any = {
        "model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": ASK_WEATHER}],
        "tools": [TOOL], "tool_choice": {"type": "any"},
    }  # fmt: skip
    answer = client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    block = answer.content[-1]
    assert block.type == "tool_use"
    assert block.name == "get_weather"
    assert isinstance(block.input["city"], str)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message().content[-1]
    assert streamed.type == "tool_use"
    assert isinstance(streamed.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "18 degrees"}
    told: Any = [
        *asked["messages"], {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]  # fmt: skip
    after = client.messages.create(model=MODEL, max_tokens=20, tools=[TOOL], messages=told)
    assert after.content


def test_shape_and_stops(client: anthropic.Anthropic) -> None:
    """A schema shapes the answer; which stop sequence ended it is told, whole and streamed."""
    schema = {"type": "object", "properties": {"tree": {"enum": ["oak", "elm"]}},
              "required": ["tree"]}  # fmt: skip
    body = {"temperature": 0.0}  # sampled, sixty tokens came without a vowel once
    asked: Any = {"model": MODEL, "max_tokens": 60, "messages": HI, "extra_body": body}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    block = client.messages.create(**asked, output_config=config).content[0]
    assert block.type == "text"
    assert json.loads(block.text)["tree"] in ("oak", "elm")
    stops = ["a", "e", "i", "o", "u"]
    answer = client.messages.create(**asked, stop_sequences=stops)
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence in stops
    with client.messages.stream(**asked, stop_sequences=stops) as stream:
        assert stream.get_final_message().stop_sequence in stops


def test_the_form_of_an_answer(client: anthropic.Anthropic) -> None:
    """A schema is kept to, with a definition that it refers to."""
    city = {"type": "object", "properties": {"size": {"type": "integer", "maximum": 9}},
            "required": ["size"]}  # fmt: skip
    schema = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}},
              "required": ["city"], "$defs": {"City": city}}  # fmt: skip
    shape = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"format": shape}}, {"output_format": shape}):
        answer = client.messages.create(model=MODEL, max_tokens=100, messages=HI, extra_body=fields)
        said: Any = answer.content[0]
        assert isinstance(json.loads(said.text)["city"]["size"], int)
    tool: Any = {**TOOL, "input_schema": schema}
    called = client.messages.create(
        model=MODEL, max_tokens=100, messages=HI, tools=[tool], tool_choice={"type": "any"}
    )
    block: Any = called.content[0]
    assert isinstance(block.input["city"]["size"], int)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(
            model=MODEL, max_tokens=5, messages=HI, extra_body={"output_format": {"type": "xml"}}
        )


def test_counts_models_and_errors(client: anthropic.Anthropic) -> None:
    """Counting tokens, listing models, and the client's own exceptions."""
    counted = client.messages.count_tokens(model=MODEL, messages=HI)
    answer = client.messages.create(model=MODEL, max_tokens=1, messages=HI)
    cached = answer.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == answer.usage.input_tokens + cached
    assert MODEL in [model.id for model in client.models.list()]
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="nope", max_tokens=1, messages=HI)
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert unknown.value.request_id == unknown.value.response.headers["x-request-id"]
    assert answer._request_id
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=MODEL, max_tokens=1, messages=[])


async def test_async(url: str) -> None:
    """The async client, whole and streamed."""
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as client:
        answer = await client.messages.create(model=MODEL, max_tokens=4, messages=HI)
        assert answer.content
        async with client.messages.stream(model=MODEL, max_tokens=4, messages=HI) as stream:
            assert "".join([text async for text in stream.text_stream])
