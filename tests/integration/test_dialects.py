"""One recorded conversation through every dialect: the same content, in each one's own shape."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from enginehouse.core.catalog import Served as ServedModel
from enginehouse.gateway.router import Offer, Step
from tests.integration.conftest import Served, Serving, fake_plan

RECORDINGS = sorted((Path(__file__).parents[1] / "fixtures" / "conversations").glob("*.json"))
FACTS = ServedModel(
    "fake", family="llama", parameters=134_515_008, context_length=8192,
    capabilities=("completion", "tools", "thinking"),
)  # fmt: skip
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}


@dataclass
class Heard:
    """What a client understood of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str = ""
    tokens: tuple[int, int] = (0, 0)


async def ask_openai(client: aiohttp.ClientSession, stream: bool) -> Heard:
    body = {"model": "fake", "messages": MESSAGES, "stream": stream,
            "stream_options": {"include_usage": True}}  # fmt: skip
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        text = await answer.text()
    heard = Heard()
    arguments: dict[int, list[str]] = {}
    pieces = [json.loads(text)] if not stream else [
        json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")
    ]  # fmt: skip
    for piece in pieces:
        for choice in piece["choices"]:
            message = choice.get("delta") or choice.get("message") or {}
            heard.text += message.get("content") or ""
            heard.reasoning += message.get("reasoning_content") or ""
            heard.finish = choice["finish_reason"] or heard.finish
            for call in message.get("tool_calls") or []:
                held = arguments.setdefault(call.get("index", 0), ["", ""])
                held[0] += call["function"].get("name") or ""
                held[1] += call["function"]["arguments"]
        if piece.get("usage"):
            usage = piece["usage"]
            heard.tokens = (usage["prompt_tokens"], usage["completion_tokens"])
    heard.calls = [(name, json.loads(given)) for name, given in arguments.values()]
    return heard


async def ask_ollama(client: aiohttp.ClientSession, stream: bool) -> Heard:
    body = {"model": "fake:latest", "messages": MESSAGES, "stream": stream, "think": True}
    async with client.post("/api/chat", json=body) as answer:
        assert answer.status == 200
        assert answer.content_type == ("application/x-ndjson" if stream else "application/json")
        text = await answer.text()
    heard = Heard()
    pieces = [json.loads(line) for line in text.splitlines()]
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for piece in pieces:
        message = piece["message"]
        heard.text += message["content"]
        heard.reasoning += message.get("thinking", "")
        for call in message.get("tool_calls", []):
            heard.calls.append((call["function"]["name"], call["function"]["arguments"]))
    last = pieces[-1]
    heard.finish = last["done_reason"]
    heard.tokens = (last["prompt_eval_count"], last["eval_count"])
    durations = [last[f"{n}_duration"] for n in ("load", "prompt_eval", "eval")]
    assert all(isinstance(d, int) for d in (*durations, last["total_duration"]))
    assert sum(durations) <= last["total_duration"]
    return heard


async def ask_anthropic(client: aiohttp.ClientSession, stream: bool) -> Heard:
    body = {
        "model": "fake", "max_tokens": 64, "system": "Be brief.", "stream": stream,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Weather?"}]}],
    }  # fmt: skip
    async with client.post("/v1/messages", json=body) as answer:
        assert answer.status == 200
        text = await answer.text()
    blocks: dict[int, dict[str, Any]] = {}
    heard = Heard()
    if not stream:
        message = json.loads(text)
        blocks = dict(enumerate(message["content"]))
        heard.finish, usage = message["stop_reason"], message["usage"]
    else:
        kinds = []
        for event in filter(None, text.split("\n\n")):
            name, data = event.split("\n", 1)
            fields = json.loads(data.removeprefix("data: "))
            assert name == f"event: {fields['type']}"
            kinds.append(fields["type"])
            if fields["type"] == "content_block_start":
                blocks[fields["index"]] = {**fields["content_block"], "json": ""}
            elif fields["type"] == "content_block_delta":
                delta, block = fields["delta"], blocks[fields["index"]]
                block["json"] += delta.get("partial_json", "")
                block["text"] = block.get("text", "") + delta.get("text", "")
                block["thinking"] = block.get("thinking", "") + delta.get("thinking", "")
            elif fields["type"] == "message_delta":
                heard.finish, usage = fields["delta"]["stop_reason"], fields["usage"]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        assert kinds.count("content_block_start") == kinds.count("content_block_stop")
    for block in blocks.values():
        if block["type"] == "text":
            heard.text += block["text"]
        elif block["type"] == "thinking":
            heard.reasoning += block["thinking"]
        else:
            given = json.loads(block["json"]) if block.get("json") else block["input"]
            heard.calls.append((block["name"], given))
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    heard.tokens = (prompt, usage["output_tokens"])
    return heard


async def ask_responses(client: aiohttp.ClientSession, stream: bool) -> Heard:
    body = {"model": "fake", "instructions": "Be brief.", "input": "Weather?", "stream": stream}
    async with client.post("/v1/responses", json=body) as answer:
        assert answer.status == 200
        text = await answer.text()
    if stream:
        events = [json.loads(e.split("\ndata: ", 1)[1]) for e in filter(None, text.split("\n\n"))]
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        response = events[-1]["response"]
        said = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    else:
        response, said = json.loads(text), None
    heard = Heard(finish=response["status"])
    for item in response["output"]:
        if item["type"] == "message":
            heard.text += "".join(part["text"] for part in item["content"])
        elif item["type"] == "reasoning":
            heard.reasoning += "".join(part["text"] for part in item["content"])
        else:
            heard.calls.append((item["name"], json.loads(item["arguments"])))
    assert said is None or said == heard.text
    heard.tokens = (response["usage"]["input_tokens"], response["usage"]["output_tokens"])
    return heard


FINISHES = {
    ask_openai: {"tool_calls": "tool_calls", "length": "length"},
    ask_ollama: {"tool_calls": "stop", "length": "length"},
    ask_anthropic: {"tool_calls": "tool_use", "length": "max_tokens"},
    ask_responses: {"tool_calls": "completed", "length": "incomplete"},
}


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
async def test_every_dialect_gives_the_same_content(serving: Serving, recording: Path) -> None:
    """Text, reasoning, tool calls and counts are the same, streamed or whole, in each dialect."""
    choice = json.loads(recording.read_text())["whole"]["choices"][0]
    usage = json.loads(recording.read_text())["whole"]["usage"]
    message = choice["message"]
    calls = [(c["function"]["name"], json.loads(c["function"]["arguments"]))
             for c in message["tool_calls"]]  # fmt: skip
    async with serving("--conversation", str(recording), facts=FACTS) as served:
        for ask, finishes in FINISHES.items():
            for stream in (False, True):
                heard = await ask(served.client, stream)
                assert heard == Heard(
                    message["content"],
                    message.get("reasoning_content") or "",
                    calls,
                    finishes[choice["finish_reason"]],
                    (usage["prompt_tokens"], usage["completion_tokens"]),
                ), (ask.__name__, stream)


async def body_sent(served: Served) -> dict[str, Any]:
    """Return the last chat request that reached the engine."""
    bodies: list[dict[str, Any]] = (await served.engine_state())["bodies"]
    return bodies[-1]


async def test_what_an_ollama_client_says_reaches_the_engine(serving: Serving) -> None:
    """Options, format, tools, images and tool results arrive in the engine's own words."""
    async with serving(facts=FACTS) as served:
        body = {
            "model": "fake", "stream": False, "think": False, "format": {"type": "object"},
            "options": {"num_predict": 3, "temperature": 0.1, "repeat_penalty": 1.2, "stop": "x",
                        "num_gpu": 4, "colour": "red"},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}],
            "messages": [
                {"role": "user", "content": "see", "images": ["iVBORw0KGgoAAAAN"]},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"function": {"name": "f", "arguments": {"city": "Bern"}}}]},
                {"role": "tool", "content": "{}", "tool_name": "f"},
            ],
        }  # fmt: skip
        async with served.client.post("/api/chat", json=body) as answer:
            assert answer.status == 200
            notes = answer.headers["x-enginehouse-notes"]
        sent = await body_sent(served)
    assert "options.colour is unknown" in notes
    assert "options.num_gpu" in notes
    expected = {"max_tokens": 3, "temperature": 0.1, "repeat_penalty": 1.2, "stop": ["x"],
                "top_k": 40, "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    assert {name: sent[name] for name in expected} == expected
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    seen, called, result = sent["messages"]
    assert seen["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"city": "Bern"}
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]


async def test_a_choice_that_names_a_tool_reaches_an_engine_with_tools(serving: Serving) -> None:
    """In every dialect that has one: the named tool alone, and `required`; strange ones are 400."""
    tools = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
             for name in ("f", "g")]  # fmt: skip
    flat = [{"type": "function", **tool["function"]} for tool in tools]  # type: ignore[dict-item]
    claude = [{"name": name, "input_schema": PARAMETERS} for name in ("f", "g")]
    said = [{"role": "user", "content": "do"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {
            "messages": said, "tools": tools,
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "/v1/responses": {
            "input": "do", "tools": flat,
            "tool_choice": {"type": "allowed_tools", "mode": "required",
                            "tools": [{"type": "function", "name": "g"}]},
        },
        "/v1/messages": {
            "messages": said, "tools": claude, "max_tokens": 4,
            "tool_choice": {"type": "tool", "name": "g"},
        },
    }  # fmt: skip
    async with serving(facts=FACTS) as served:
        for path, body in bodies.items():
            asked = {"model": "fake", **body}
            async with served.client.post(path, json=asked) as answer:
                assert answer.status == 200, path
            sent = await body_sent(served)
            assert [tool["function"]["name"] for tool in sent["tools"]] == ["g"], path
            assert sent["tool_choice"] == "required", path
            strange = (
                json.dumps(asked).replace('"g"}', '"h"}').replace('{"name": "h",', '{"name": "g",')
            )
            async with served.client.post(path, data=strange) as answer:
                assert answer.status == 400, path
                assert "'h'" in await answer.text()


async def test_ollamas_other_routes(serving: Serving) -> None:
    """Tags, ps, show, version, pull of a known name, copy, delete, load, unknown models."""
    async with serving(facts=FACTS) as served:
        client = served.client

        async def call(method: str, path: str, body: object = None) -> tuple[int, Any]:
            async with client.request(method, path, json=body) as answer:
                text = await answer.text()
                return answer.status, [json.loads(line) for line in text.splitlines()]

        async with client.get("/") as answer:
            assert await answer.text() == "Ollama is running"
        _, [version] = await call("GET", "/api/version")
        assert all(part.isdigit() for part in version["version"].split("."))
        _, [tags] = await call("GET", "/api/tags")
        assert [model["name"] for model in tags["models"]] == ["fake:latest"]
        _, [ps] = await call("GET", "/api/ps")
        assert "Z" not in ps["models"][0]["expires_at"]
        _, [shown] = await call("POST", "/api/show", {"name": "fake"})
        assert shown["model_info"]["llama.context_length"] == 8192
        assert shown["capabilities"] == ["completion", "tools", "thinking"]
        _, lines = await call("POST", "/api/pull", {"model": "fake"})
        assert lines[-1] == {"status": "success"}
        assert (await call("POST", "/api/pull", {"model": "no", "stream": False}))[0] == 404
        copy = {"source": "fake", "destination": "mine"}
        assert (await call("POST", "/api/copy", copy))[0] == 200
        chat = {"model": "mine", "messages": MESSAGES, "options": {"num_predict": 2}}
        assert (await call("POST", "/api/chat", chat))[0] == 200
        assert (await call("DELETE", "/api/delete", {"model": "mine"}))[0] == 200
        status, [error] = await call("POST", "/api/chat", chat)
        assert (status, error["code"]) == (404, "model_not_found")
        assert "not found" in error["error"]
        _, [loaded] = await call("POST", "/api/generate", {"model": "fake", "prompt": ""})
        assert loaded["done_reason"] == "load"
        for path in ("/api/push", f"/api/blobs/sha256:{'0' * 64}"):
            assert (await call("POST", path, {"model": "x"}))[0] == 501
        raw = {"model": "fake", "prompt": "sky", "raw": True, "stream": False}
        assert (await call("POST", "/api/generate", raw))[1][0]["response"].startswith("the clock")
        embed = {"model": "fake", "input": "x"}
        assert (await call("POST", "/api/embed", embed))[0] == 400


async def test_tokens_are_told_and_counted(serving: Serving) -> None:
    """Tokenize, detokenize and the counts of three dialects agree with the engine's tokenizer."""
    async with serving() as served:

        async def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
            async with served.client.post(path, json=body) as answer:
                assert answer.status == 200
                shown: dict[str, Any] = await answer.json()
                return shown

        assert (await ask("/tokenize", {"content": "a b c"}))["tokens"] == [0, 1, 2]
        assert (await ask("/tokenize", {"prompt": "a b"}))["count"] == 2
        assert (await ask("/detokenize", {"tokens": [0, 1]}))["content"] == "the clock"
        body = {"model": "fake", "messages": [{"role": "user", "content": "one two three"}]}
        assert (await ask("/v1/messages/count_tokens", body))["input_tokens"] == 3
        path = "/v1/chat/completions/input_tokens"
        assert (await ask(path, body))["input_tokens"] == 3
        body = {"model": "fake", "input": "one two"}
        assert (await ask("/v1/responses/input_tokens", body))["input_tokens"] == 2


async def test_vectors_of_a_chat_model_are_refused_before_it_is_loaded(
    serving: Serving, tmp_path: Path
) -> None:
    """A model that answers conversations is not started only to say that it gives no vectors."""
    plan = fake_plan(tmp_path, "--never-ready")
    sleeping = Offer(ServedModel("sleeping"), (Step("x", lambda context: plan),))
    async with serving(more=(sleeping,)) as served:
        for path, field in (("/v1/embeddings", "input"), ("/embeddings", "content"),
                            ("/api/embed", "input"), ("/api/embeddings", "prompt")):  # fmt: skip
            body = {"model": "sleeping", field: "one"}
            async with served.client.post(path, json=body) as answer:
                assert answer.status == 400, path
                told = answer.headers["x-enginehouse-error"]
                assert told == "request.embeddings.unsupported"
        assert "sleeping" not in served.router.servers


async def test_embeddings_in_both_dialects(serving: Serving) -> None:
    """An embedding model answers OpenAI's and Ollama's routes; fewer dimensions have length 1."""
    async with serving("--embed", embeds=True) as served:
        body = {"model": "fake", "input": ["ab", "abc"], "dimensions": 2}
        async with served.client.post("/api/embed", json=body) as answer:
            vectors = (await answer.json())["embeddings"]
        assert [round(sum(x * x for x in vector), 6) for vector in vectors] == [1.0, 1.0]
        body = {"model": "fake", "prompt": "abc"}
        async with served.client.post("/api/embeddings", json=body) as answer:
            assert (await answer.json())["embedding"] == [3.0, 1.0, 0.5]
        body = {"model": "fake", "input": "abc"}
        async with served.client.post("/v1/embeddings", json=body) as answer:
            assert (await answer.json())["data"][0]["embedding"] == [3, 1.0, 0.5]
