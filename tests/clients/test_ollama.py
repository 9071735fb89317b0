"""The `ollama` package, sync and async."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest

from tests.clients.asked import AGE, ASK_WEATHER, SAY_HI, WEATHER
from tests.clients.conftest import MODEL

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]
HI: Any = [{"role": "user", "content": SAY_HI}]
SHORT: Any = {"num_predict": 8, "temperature": 0, "seed": 1}


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    """A client as its documentation makes it."""
    made = ollama.Client(url)
    yield made
    made._client.close()


def check_end(last: Any) -> None:
    """The end has a reason, counts, and durations that add up."""
    assert last.done
    assert last.done_reason in ("stop", "length")
    assert last.eval_count <= 8
    assert last.prompt_eval_count > 0
    parts = last.load_duration + last.prompt_eval_duration + last.eval_duration
    assert parts <= last.total_duration


def test_chat(client: ollama.Client) -> None:
    """Whole and streamed give the same text for the same seed."""
    whole = client.chat(MODEL, messages=HI, options=SHORT)
    check_end(whole)
    pieces = list(client.chat(MODEL, messages=HI, options=SHORT, stream=True))
    check_end(pieces[-1])
    assert not any(piece.done for piece in pieces[:-1])
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content


def test_generate(client: ollama.Client) -> None:
    """Plain, raw, with a template of the request's own, with logprobs."""
    check_end(client.generate(MODEL, SAY_HI, system="Be brief.", options=SHORT))
    raw = client.generate(MODEL, "The sky is", raw=True, options=SHORT)
    made = client.generate(MODEL, "sky", template="The {{ .Prompt }} is", options=SHORT)
    assert raw.response
    assert raw.response == made.response
    streamed = client.generate(MODEL, "The sky is", raw=True, options=SHORT, stream=True)
    assert "".join(piece.response or "" for piece in streamed) == raw.response
    told = client.generate(MODEL, SAY_HI, logprobs=True, top_logprobs=2, options=SHORT)
    assert told.logprobs


def test_tools_and_format(client: ollama.Client) -> None:
    """A tool's call has its arguments as an object; a format gives its shape."""
    asked: Any = [{"role": "user", "content": ASK_WEATHER}]
    answer = client.chat(MODEL, messages=asked, tools=[WEATHER], options={"num_predict": 100})
    for call in answer.message.tool_calls or ():
        assert call.function.name == "get_weather"
        assert isinstance(call.function.arguments, dict)
    told = [*asked, answer.message, {"role": "tool", "tool_name": "get_weather", "content": "18"}]
    assert client.chat(MODEL, messages=told, tools=[WEATHER], options=SHORT).done
    shaped = client.chat(MODEL, messages=HI, format=AGE, options={"num_predict": 60})
    assert isinstance(json.loads(shaped.message.content or "")["age"], int)
    assert client.chat(MODEL, messages=HI, format="json", options=SHORT).done


def test_models(client: ollama.Client) -> None:
    """List, show, load, running, copy, delete, unload, pull."""
    assert f"{MODEL}:latest" in [model.model for model in client.list().models]
    shown = client.show(MODEL)
    assert "completion" in (shown.capabilities or [])
    assert shown.modelinfo
    client.generate(MODEL, "")
    running = client.ps().models
    assert [model.name for model in running] == [f"{MODEL}:latest"]
    assert (running[0].size or 0) > 50_000_000
    client.copy(MODEL, "mine")
    assert client.chat("mine", messages=HI, options=SHORT).done
    client.delete("mine")
    with pytest.raises(ollama.ResponseError) as gone:
        client.delete("mine")
    assert gone.value.status_code == 404
    lines = list(client.pull(MODEL, stream=True))
    assert lines[-1].status == "success"
    client.generate(MODEL, "", keep_alive=0)
    assert client.ps().models == []
    assert client.chat(MODEL, messages=HI, options=SHORT).load_duration


def test_context_and_errors(client: ollama.Client) -> None:
    """`num_ctx` is served; what cannot be is told with the status the client looks at."""
    larger = client.chat(MODEL, messages=HI, options={**SHORT, "num_ctx": 4096})
    assert larger.done
    assert (client.ps().models[0].context_length or 0) >= 4096
    for name, attempt in (
        ("unknown", lambda: client.chat("nope", messages=HI)),
        ("pull", lambda: client.pull("nope")),
        ("path", lambda: client.pull("/etc/passwd")),
    ):
        with pytest.raises(ollama.ResponseError) as problem:
            attempt()
        assert problem.value.status_code == 404, name
    with pytest.raises(ollama.ResponseError, match="does not support thinking"):
        client.chat(MODEL, messages=HI, think=True)
    with pytest.raises(ollama.ResponseError) as unable:
        client.embed(MODEL, "x")
    assert 400 <= unable.value.status_code < 502


async def test_async(url: str) -> None:
    """The async client, whole and streamed."""
    client = ollama.AsyncClient(url)
    assert (await client.chat(MODEL, messages=HI, options=SHORT)).done
    stream = await client.generate(MODEL, SAY_HI, options=SHORT, stream=True)
    assert [piece async for piece in stream][-1].done
    assert (await client.list()).models
    await client.close()  # type: ignore[no-untyped-call]
