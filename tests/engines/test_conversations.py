"""The same conversations over vLLM and over llama.cpp, through the gateway: the same shapes.

Answers that a dialect renders must have identical shapes, streams the same sequence of events.
OpenAI's chat and completions are passed on as the engine wrote them: there the fields of OpenAI's
API must be the same, and what each engine adds is listed.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from enginehouse.gateway.replay import Replay
from tests.clients.asked import SAY_HI
from tests.engines.houses import CHECKPOINT, NAME, served, vllm_python
from tests.engines.shapes import additions, collapse, events_of, pruned, shape_of, spread

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not vllm_python(), reason="no vLLM in an environment here"),
    pytest.mark.skipif(
        not CHECKPOINT.is_dir(), reason="no TEST_CHECKPOINT (benchmarks/checkpoint_of_gguf.py)"
    ),
]  # fmt: skip
HI: list[Any] = [{"role": "user", "content": SAY_HI}]
CITY: dict[str, Any] = {
    "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
"""Closed, so that a small model cannot run on until its tokens are used up."""
TOOL: dict[str, Any] = {"name": "get_weather", "description": "Get the weather", "parameters": CITY}
SHORT = {"max_tokens": 6, "temperature": 0, "seed": 1}
OLLAMA = {"num_predict": 6, "temperature": 0, "seed": 1, "repeat_penalty": 1.1}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ENDLESS = "word " * 9000
CALLED: list[Any] = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "18 degrees"},
]  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One request; its body lacks the model's name. `is_own` tells that the engine's own bytes
    come back.
    """

    name: str
    path: str
    body: dict[str, Any] | bytes
    is_own: bool = False


def chat(name: str, messages: list[Any] = HI, is_own: bool = True, **fields: Any) -> Asked:
    return Asked(f"chat {name}", CHAT, {"messages": messages, **SHORT, **fields}, is_own)


SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
USAGE = {"include_usage": True}
FORCED: dict[str, Any] = {
    "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required", "max_tokens": 60
}  # fmt: skip
CLAUDE = {"tools": [{"name": "get_weather", "input_schema": CITY}], "tool_choice": {"type": "any"},
          "max_tokens": 60, "messages": HI}  # fmt: skip
REPLY = {"tools": [{"type": "function", **TOOL}], "tool_choice": "required", "input": SAY_HI,
         "max_output_tokens": 60}  # fmt: skip
ASKED = (
    chat("whole"),
    chat("streamed", stream=True),
    chat("streamed with usage", stream=True, stream_options=USAGE),
    chat("of two choices", n=2, temperature=1.0),
    chat("with logprobs", logprobs=True, top_logprobs=2),
    chat("of a schema", response_format=SCHEMA, max_tokens=30),
    chat("of JSON", response_format={"type": "json_object"}, max_tokens=30),
    chat("with stop", stop=["a", "e", "i", "o"]),
    chat("with a tool", is_own=False, **FORCED),
    chat("with a tool, streamed", is_own=False, stream=True, **FORCED),
    chat("after a tool", CALLED, is_own=False, tools=FORCED["tools"], tool_choice="none"),
    Asked("text", TEXT, {"prompt": "The sky is", **SHORT}, True),
    Asked("text streamed", TEXT, {"prompt": "The sky is", **SHORT, "stream": True}, True),
    Asked("generate", "/api/generate", {"prompt": SAY_HI, "options": OLLAMA}),
    Asked("generate whole", "/api/generate",
          {"prompt": SAY_HI, "options": OLLAMA, "stream": False}),
    Asked("generate raw", "/api/generate",
          {"prompt": "The sky is", "raw": True, "options": OLLAMA, "stream": False}),
    Asked("generate raw with logprobs", "/api/generate",
          {"prompt": "The sky is", "raw": True, "options": OLLAMA, "stream": False,
           "logprobs": True, "top_logprobs": 2}),
    Asked("generate with logprobs", "/api/generate",
          {"prompt": SAY_HI, "options": OLLAMA, "stream": False, "logprobs": True,
           "top_logprobs": 2}),
    Asked("generate raw with logprobs, streamed", "/api/generate",
          {"prompt": "The sky is", "raw": True, "options": OLLAMA, "logprobs": True,
           "top_logprobs": 2}),
    Asked("ollama chat", "/api/chat", {"messages": HI, "options": OLLAMA}),
    Asked("ollama chat whole", "/api/chat", {"messages": HI, "options": OLLAMA, "stream": False}),
    Asked("ollama chat with every option", "/api/chat", {
        "messages": HI, "stream": False, "options": {
            **OLLAMA, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9,
            "repeat_last_n": 32, "presence_penalty": 0.1, "frequency_penalty": 0.1,
            "mirostat": 0, "stop": ["."], "num_keep": 4}}),
    Asked("ollama format", "/api/chat",
          {"messages": HI, "format": CITY, "options": {**OLLAMA, "num_predict": 30}}),
    Asked("ollama tool", "/api/chat", {
        "messages": HI, "tools": FORCED["tools"], "options": {**OLLAMA, "num_predict": 60}}),
    Asked("messages", "/v1/messages", {"messages": HI, "max_tokens": 6, "temperature": 0}),
    Asked("messages streamed", "/v1/messages",
          {"messages": HI, "max_tokens": 6, "temperature": 0, "stream": True, "top_k": 5}),
    Asked("messages tool", "/v1/messages", {**CLAUDE, "temperature": 0}),
    Asked("messages tool streamed", "/v1/messages", {**CLAUDE, "temperature": 0, "stream": True}),
    Asked("count_tokens", "/v1/messages/count_tokens", {"messages": HI}),
    Asked("responses", "/v1/responses", {"input": SAY_HI, "max_output_tokens": 6}),
    Asked("responses streamed", "/v1/responses",
          {"input": SAY_HI, "max_output_tokens": 6, "stream": True}),
    Asked("responses tool", "/v1/responses", REPLY),
    Asked("responses tool streamed", "/v1/responses", {**REPLY, "stream": True}),
    Asked("responses input_tokens", "/v1/responses/input_tokens", {"input": SAY_HI}),
    Asked("tokenize", "/tokenize", {"content": SAY_HI}),
    Asked("tokenize a conversation", "/tokenize", {"messages": HI}),
    Asked("detokenize", "/detokenize", {"tokens": [1, 504, 6376]}),
    Asked("embeddings", "/v1/embeddings", {"input": "x"}),
    Asked("ollama embed", "/api/embed", {"input": "x"}),
    *(
        Asked(f"{name} error: {path}", path, {"model": model, **body}, path in (CHAT, TEXT))
        for name, model, text in (("unknown model", "nope", "x"), ("too long", NAME, ENDLESS))
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 4}),
            (TEXT, {"prompt": text, "max_tokens": 4}),
            ("/api/chat", {"messages": [{"role": "user", "content": text}]}),
            ("/api/generate", {"prompt": text}),
            ("/v1/messages", {"messages": [{"role": "user", "content": text}], "max_tokens": 4}),
            ("/v1/responses", {"input": text}),
        )
    ),
    *(
        Asked(f"bad JSON error: {path}", path, b"{nonsense")
        for path in (CHAT, "/api/chat", "/v1/messages", "/v1/responses", "/tokenize")
    ),
    chat("error: without a message", []),
    chat("error: a bad role", [{"role": "nobody", "content": 3}]),
    chat("error: a bad number", temperature="hot"),
)  # fmt: skip
ADDED = {
    "llama.cpp": {
        "timings", "choices.logprobs.content.id", "choices.logprobs.content.top_logprobs.id",
        "error.n_prompt_tokens", "error.n_ctx",
    },
    "vllm": {
        "choices.routed_experts", "choices.stop_reason", "choices.token_ids",
        "choices.prompt_logprobs", "choices.prompt_token_ids", "choices.message.audio",
        "choices.message.function_call", "choices.message.reasoning", "ec_transfer_params",
        "kv_transfer_params", "metrics", "prompt_logprobs", "prompt_text", "prompt_token_ids",
        "usage.prompt_tokens_details.created_cache_tokens",
        "usage.prompt_tokens_details.multimodal_tokens",
    },
}  # fmt: skip
"""What the engines add to OpenAI's own answers, which are passed on as they are."""
OURS = {"error.from", "error.remedies"}
"""What the gateway adds to an engine's error."""


@dataclass(frozen=True)
class Told:
    """An answer: its status and type, and what it says: one JSON, or a stream's events."""

    status: int
    kind: str
    said: Any


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The checkpoint served by vLLM."""
    with served("vllm", str(CHECKPOINT), tmp_path_factory.mktemp("vllm")) as url:
        yield url


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo GGUF served by llama.cpp."""
    with served("llama.cpp", "demo", tmp_path_factory.mktemp("llama")) as url:
        yield url


def ask(url: str, asked: Asked) -> Told:
    """Send a request and read its whole answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    body = asked.body
    sent = body if isinstance(body, bytes) else json.dumps({"model": NAME, **body}).encode()
    try:
        connection.request("POST", asked.path, sent, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        kind = answer.headers.get_content_type()
        text = answer.read().decode()
    finally:
        connection.close()
    is_stream = kind in ("text/event-stream", "application/x-ndjson")
    return Told(answer.status, kind, events_of(text) if is_stream else json.loads(text))


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.name)
def test_both_engines_answer_in_one_shape(vllm: str, llama: str, asked: Asked) -> None:
    """Status, type and shape of an answer do not tell which engine gave it."""
    ours, theirs = ask(vllm, asked), ask(llama, asked)
    assert (ours.status, ours.kind) == (theirs.status, theirs.kind), (ours.said, theirs.said)
    if asked.is_own:
        assert additions(ours.said) <= ADDED["vllm"] | OURS
        assert additions(theirs.said) <= ADDED["llama.cpp"] | OURS
        ours, theirs = (Told(t.status, t.kind, as_openai(t.said)) for t in (ours, theirs))
    if "error" in asked.name:
        assert code_of(ours.said) == code_of(theirs.said)
    assert shapes(ours) == shapes(theirs), (ours.said, theirs.said)


def as_openai(said: Any) -> Any:
    """Return what OpenAI's API has of an answer."""
    return spread(pruned(said)) if isinstance(said, list) else pruned(said)


def shapes(told: Told) -> Any:
    """Return an answer's shape, of a stream the sequence of its events' shapes."""
    if isinstance(told.said, list):
        return collapse([shape_of(event) for event in told.said])
    return shape_of(told.said)


def code_of(said: Any) -> str:
    """Return an error's code, in whichever dialect."""
    error = said[-1] if isinstance(said, list) else said
    inner = error.get("error")
    return str((inner if isinstance(inner, dict) and "code" in inner else error).get("code", ""))


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("/v1/messages/count_tokens", {"messages": HI}, "input_tokens"),
        ("/v1/responses/input_tokens", {"input": SAY_HI}, "input_tokens"),
        ("/tokenize", {"messages": HI}, "tokens"),
        ("/tokenize", {"content": "Say hi to the whole world."}, "tokens"),
        ("/detokenize", {"tokens": [504, 6376, 314]}, "content"),
    ],
)
def test_both_engines_count_the_same(
    vllm: str, llama: str, path: str, body: dict[str, Any], count: str
) -> None:
    """The checkpoint's tokenizer and template are the GGUF's."""
    asked = Asked("", path, body)
    assert ask(vllm, asked).said[count] == ask(llama, asked).said[count]


def test_a_streamed_request_can_be_asked_again_for_one_token(vllm: str, llama: str) -> None:
    """The probe of an idle engine repeats the last request; an engine that refused it would be
    taken for hung. vLLM refuses options of a stream where there is none.
    """
    replay = Replay()
    fields = {"model": NAME, "messages": HI, **SHORT, "stream": True, "stream_options": USAGE}
    replay.note(CHAT, json.dumps(fields).encode())
    path, body = replay.probe()
    for url in (vllm, llama):
        told = ask(url, Asked("", path, body))
        assert (told.status, told.kind) == (200, "application/json"), told.said
        assert told.said["usage"]["completion_tokens"] == 1


def test_what_only_one_engine_refuses(vllm: str, llama: str) -> None:
    """vLLM keeps to OpenAI's limits, llama-server does not; neither is hidden by the gateway."""
    asked = chat("with five stops", stop=list("aeiou"))
    assert ask(llama, asked).status == 200
    refused = ask(vllm, asked)
    assert refused.status == 400
    assert refused.said["error"]["code"] == "engine.error"
