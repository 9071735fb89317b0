"""What Ollama's own server does with requests at the edges: refused alike, or done alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.chat import Completion, Delta, Moment
from enginehouse.core.errors import UserError
from enginehouse.dialects.ollama.template import render_template
from enginehouse.dialects.ollama.voice import ChatVoice
from enginehouse.gateway.upstream import batch_told, error_of_body, status_to_client
from tests.integration.conftest import Served, Serving

DIGEST = f"sha256:{'0' * 64}"
SHORT = {"num_predict": 2}
REFUSED: tuple[tuple[str, dict[str, Any] | None, int, str], ...] = (
    ("chat", None, 400, "missing request body"),
    ("push", None, 400, "missing request body"),
    ("create", None, 400, "missing request body"),
    ("chat", {}, 400, "model is required"),
    ("show", {}, 400, "model is required"),
    ("push", {}, 400, "model is required"),
    ("copy", {}, 400, 'source "" is invalid'),
    ("copy", {"source": "fake", "destination": "two words"}, 400, '"two words" is invalid'),
    ("create", {"model": "two words", "from": "fake"}, 400, "invalid model name"),
    ("create", {"model": "mine"}, 400, "neither 'from' or 'files'"),
    ("create", {"model": "mine", "from": "no"}, 404, "not found"),
    ("create", {"model": "mine", "from": "fake", "system": "x"}, 501, "create with system"),
    ("create", {"model": "mine", "files": {"a.gguf": DIGEST}}, 501, "create with files"),
    (f"blobs/{DIGEST}", None, 501, "not supported"),
    ("blobs/sha256:0", None, 400, "invalid digest format"),
    ("chat", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ("generate", {"top_logprobs": -1}, 400, "top_logprobs must be between 0 and 20"),
    ("chat", {"think": "much"}, 400, 'invalid think value: "much"'),
    ("chat", {"format": "xml"}, 400, "invalid format"),
    ("chat", {"options": {"stop": [1]}}, 400, "options.stop must be an array of strings"),
    ("generate", {"raw": True, "system": "x"}, 400, "raw mode does not support template"),
    ("generate", {"raw": True, "template": "x"}, 400, "raw mode does not support template"),
    ("generate", {"raw": True, "context": [1]}, 400, "raw mode does not support template"),
    ("generate", {"template": "{{ .Prompt"}, 400, "template cannot be rendered"),
    ("generate", {"context": ["a"]}, 400, "context must be an array of tokens"),
    ("embed", {"input": 5}, 400, "invalid input type"),
    ("embed", {"input": ["a", 5]}, 400, "invalid input type"),
)


async def call(served: Served, path: str, body: object) -> tuple[int, list[Any]]:
    """Post to a route of Ollama's; return the status and each line."""
    data = None if body is None else json.dumps(body).encode()
    async with served.client.post(f"/api/{path}", data=data) as answer:
        text = await answer.text()
        return answer.status, [json.loads(line) for line in text.splitlines()]


async def test_what_is_wrong_is_named(serving: Serving) -> None:
    """A request that Ollama refuses is refused, with the words that clients know."""
    whole = {"model": "fake", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    async with serving() as served:
        for path, given, status, words in REFUSED:
            body = {**whole, **given} if given and path in ("chat", "generate") else given
            if path == "embed":
                body = {"model": "fake", **(given or {})}
            told, [answer] = await call(served, path, body)
            assert (told, words in answer["error"]) == (status, True), (path, given, answer)
        async with served.client.head(f"/api/blobs/{DIGEST}") as answer:
            assert answer.status == 404


async def test_a_conversation_is_carried_as_tokens(serving: Serving) -> None:
    """`context` of one answer, sent with the next prompt, comes before that prompt's tokens."""
    first = {"model": "fake", "prompt": "one two three", "options": SHORT}
    async with serving() as served:
        _, lines = await call(served, "generate", first)
        _, [whole] = await call(served, "generate", {**first, "stream": False})
        context = whole["context"]
        assert context[:3] == [0, 1, 2]
        assert len(context) == 3 + len(whole["response"].split())
        assert lines[-1]["context"] == context
        assert not any("context" in line for line in lines[:-1])
        then = {**first, "prompt": "and four", "context": context, "stream": False}
        _, [more] = await call(served, "generate", then)
        assert more["context"][: len(context) + 2] == [*context, 0, 1]
        assert len(more["context"]) > len(context) + 2
        _, [raw] = await call(served, "generate", {**first, "raw": True, "stream": False})
        assert "context" not in raw


async def test_a_finished_prompt_has_its_format_too(serving: Serving) -> None:
    """Engines read the shape of a completion under two names: both are sent."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    ask = {"model": "fake", "prompt": "x", "stream": False, "options": SHORT}
    async with serving() as served:
        for given in ({"raw": True}, {"template": "{{ .Prompt }}"}, {"context": [1]}):
            for shape, expected in ((schema, schema), ("json", {})):
                _, [answer] = await call(served, "generate", {**ask, **given, "format": shape})
                assert answer["done"]
                sent = (await served.engine_state())["bodies"][-1]
                assert sent["json_schema"] == expected
                assert sent["response_format"]["type"].startswith("json")


async def test_a_model_is_created_from_another(serving: Serving) -> None:
    """With nothing changed it is another name, told line by line or whole."""
    async with serving() as served:
        status, lines = await call(served, "create", {"model": "mine", "from": "fake"})
        assert (status, lines[-1]) == (200, {"status": "success"})
        again = {"name": "mine", "from": "fake", "stream": False}
        assert await call(served, "create", again) == (200, [{"status": "success"}])
        chat = {"model": "mine", "messages": [{"role": "user", "content": "x"}], "options": SHORT}
        assert (await call(served, "chat", chat))[0] == 200


async def test_nothing_to_embed_only_loads(serving: Serving) -> None:
    """No text gives no vector, and no error."""
    async with serving("--embed", embeds=True) as served:
        no_text: tuple[dict[str, object], ...] = ({}, {"input": ""}, {"input": []}, {"input": None})
        for given in no_text:
            expected = [{"model": "fake", "embeddings": []}]
            assert await call(served, "embed", {"model": "fake", **given}) == (200, expected)
        nothing = {"model": "fake", "prompt": ""}
        assert await call(served, "embeddings", nothing) == (200, [{"embedding": []}])


async def test_a_text_to_embed_is_cut_and_told(serving: Serving) -> None:
    """By default a text that is too long is cut, as Ollama does; with `truncate` off refused."""
    body = {"model": "fake", "input": ["one two three four five six seven", "one"]}
    async with serving("--embed", "--context", "4", embeds=True, context=4) as served:
        async with served.client.post("/api/embed", json=body) as answer:
            assert answer.status == 200
            told = answer.headers["x-enginehouse-truncated"]
            vectors = (await answer.json())["embeddings"]
        assert told == "1 of 2 inputs were cut to 4 tokens"
        assert [vector[0] > 0 for vector in vectors] == [True, True]
        status, [refused] = await call(served, "embed", {**body, "truncate": False})
        assert (status, refused["code"]) == (400, "context_length_exceeded")


def test_the_batch_is_read_from_the_refusal() -> None:
    """llama-server names the batch that a text to embed has to fit."""
    said = "input (901 tokens) is too large to process. increase the physical batch size (current"
    told = f"{said} batch size: 512)"
    assert batch_told(told) == 512
    body = json.dumps({"error": {"code": 500, "message": told, "type": "server_error"}}).encode()
    assert status_to_client(500, body) == 400
    assert error_of_body(body, 400).id == "context_length_exceeded"
    assert batch_told("something else: 512") == 0


def test_logprobs_have_the_alternatives_that_were_asked_for() -> None:
    """None without `top_logprobs`, else no more than it, in pieces and whole answers."""
    tops = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.0}]
    entry = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": tops}
    for most in (0, 1, 5):
        piece = json.loads(ChatVoice("m", top_logprobs=most).delta(
            Delta("a", logprobs=(entry,)), Moment(0.0)
        ))  # fmt: skip
        whole = json.loads(ChatVoice("m", top_logprobs=most).whole(
            Completion("a", logprobs=(entry,)), Moment(0.0)
        ))  # fmt: skip
        for shown in (piece["logprobs"], whole["logprobs"]):
            assert shown[0].get("top_logprobs", []) == tops[:most]
            assert shown[0]["bytes"] == [97]


def test_a_template_without_its_end_is_refused() -> None:
    """What Go would not parse is not sent to a model as it stands."""
    with pytest.raises(UserError):
        render_template("{{ .Prompt }} and {{ .System", {"Prompt": "x"})
