"""The `openai` package, sync and async."""

from __future__ import annotations

import json
from typing import Any, cast

import openai
import pytest

from tests.clients.asked import AGE, ASK_WEATHER, SAY_HI, WEATHER
from tests.clients.conftest import MODEL

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]
HI: Any = [{"role": "user", "content": SAY_HI}]


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    """A client as its documentation makes it."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    """Text, reason and counts."""
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=8, seed=1)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_several_choices_stops_and_logprobs(client: openai.OpenAI) -> None:
    """`n`, `stop` and `logprobs` mean what they mean elsewhere."""
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=6, n=2, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content[0].top_logprobs) == 2
    text = client.completions.create(
        model=MODEL, prompt="1 2 3 4 5 6", max_tokens=20, stop=["9"], temperature=0
    )
    assert "9" not in text.choices[0].text


def test_stream_with_usage(client: openai.OpenAI) -> None:
    """The last chunk has the usage and no choice, and only where it was asked for."""
    asked: Any = {"model": MODEL, "messages": HI, "max_tokens": 6, "stream": True}
    chunks = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens <= 6
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert chunks[0].choices[0].delta.role == "assistant"
    plain = list(client.chat.completions.create(**asked))
    assert all(chunk.usage is None for chunk in plain)


def check_call(name: str, arguments: str) -> None:
    assert name == "get_weather"
    assert isinstance(json.loads(arguments)["city"], str)


def test_tools(client: openai.OpenAI) -> None:
    """A forced call has the tool's name and arguments of its schema, whole and streamed."""
    asked: Any = {
        "model": MODEL, "messages": [{"role": "user", "content": ASK_WEATHER}],
        "tools": [WEATHER], "tool_choice": "required", "max_tokens": 100,
    }  # fmt: skip
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    call = answer.choices[0].message.tool_calls[0]
    check_call(call.function.name, call.function.arguments)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    check_call(calls[0].function.name, calls[0].function.arguments)
    told = [
        *asked["messages"], answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"},
    ]  # fmt: skip
    after = client.chat.completions.create(
        model=MODEL, messages=told, tools=cast(Any, [WEATHER]), max_tokens=20
    )
    assert after.choices[0].message.content or after.choices[0].message.tool_calls


def test_json_schema(client: openai.OpenAI) -> None:
    """The answer has the schema's shape: a grammar makes it certain."""
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": AGE}},
    )  # fmt: skip
    assert isinstance(json.loads(answer.choices[0].message.content or "")["age"], int)


def test_responses(client: openai.OpenAI) -> None:
    """Whole, streamed, with a tool."""
    answer = client.responses.create(model=MODEL, input=SAY_HI, max_output_tokens=8)
    assert answer.output_text
    assert answer.usage is not None
    with client.responses.stream(model=MODEL, input=SAY_HI, max_output_tokens=8) as stream:
        kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    asked: Any = {"model": MODEL, "input": "Say hi.", "max_output_tokens": 400, "temperature": 0}
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text
    tool: Any = {"type": "function", **WEATHER["function"]}
    called = client.responses.create(
        model=MODEL, input=ASK_WEATHER, tools=[tool], tool_choice="required", max_output_tokens=100
    )
    calls = [item for item in called.output if item.type == "function_call"]
    check_call(calls[0].name, calls[0].arguments)
    counted = client.responses.input_tokens.count(model=MODEL, input=SAY_HI)
    assert counted.input_tokens > 0


def test_responses_are_kept(client: openai.OpenAI) -> None:
    """Pointed to, whole and streamed; shown, listed page by page, and let go."""
    asked: Any = {"model": MODEL, "max_output_tokens": 8}
    first = client.responses.create(input=SAY_HI, **asked)
    with client.responses.stream(input="Again.", previous_response_id=first.id, **asked) as stream:
        events: list[Any] = list(stream)
    second = events[-1].response
    assert second.previous_response_id == first.id
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    point: Any = [{"type": "item_reference", "id": second.output[-1].id}]
    third = client.responses.create(input=[*point, {"role": "user", "content": "More."}], **asked)
    assert third.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    items: list[Any] = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.role for item in items] == ["user", "assistant", "user"]
    assert items[1].id == first.output[-1].id
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as lost:
        client.responses.create(input="Once more.", previous_response_id=second.id, **asked)
    assert (lost.value.code, lost.value.param) == (
        "previous_response_not_found", "previous_response_id"
    )  # fmt: skip
    secret: Any = client.responses.create(input=SAY_HI, store=False, **asked)
    with pytest.raises(openai.NotFoundError) as never:
        client.responses.create(input=[{"type": "item_reference", "id": secret.output[-1].id}],
                                **asked)  # fmt: skip
    assert never.value.code == "item_not_found"


@pytest.mark.parametrize("is_stream", [False, True])
def test_responses_carry_logprobs(client: openai.OpenAI, is_stream: bool) -> None:
    """Where they are included, each token of the text has its own, and they spell it."""
    asked: Any = {
        "model": MODEL, "input": SAY_HI, "max_output_tokens": 6, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    if is_stream:
        with client.responses.stream(**asked) as stream:
            events: list[Any] = list(stream)
        answer: Any = events[-1].response
        pieces = [event for event in events if event.type == "response.output_text.delta"]
        assert pieces
        assert all(event.logprobs for event in pieces)
    else:
        answer = client.responses.create(**asked)
    told = answer.output[-1].content[0].logprobs
    assert "".join(token.token for token in told) == answer.output_text
    assert {len(token.top_logprobs) for token in told} == {2}


def test_models_and_errors(client: openai.OpenAI) -> None:
    """The list, one model, and the client's own exceptions with our codes."""
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nope", messages=HI)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError) as unable:
        client.embeddings.create(model=MODEL, input="x")
    assert unable.value.code == "request.embeddings.unsupported"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=cast(Any, "no list"))
    endless: Any = [{"role": "user", "content": "word " * 9999}]
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=endless)
    assert long.value.code == "context_length_exceeded"


async def test_async(url: str) -> None:
    """The async client, whole and streamed."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HI, max_tokens=4)
        assert answer.choices[0].message.content
        stream = await client.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=4, stream=True
        )
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason
