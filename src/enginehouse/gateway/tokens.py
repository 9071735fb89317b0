"""Count and show tokens as the engine itself does, and shorten conversations that are too long."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from enginehouse.core.body import invalid
from enginehouse.core.chat import with_system_in_front
from enginehouse.core.errors import EngineError
from enginehouse.gateway.server import Server
from enginehouse.gateway.upstream import UpstreamError, refusal

LLAMA, VLLM = "llama-server", "vllm"
TEMPLATE_FIELDS = ("messages", "tools", "tool_choice", "chat_template_kwargs", "reasoning_effort")


async def count_tokens(server: Server, api: str, body: dict[str, Any]) -> int:
    """Return how many tokens the prompt of a chat request has, by the engine's own template.

    Raises:
        EngineError: `engine.no_tokenizer`, where the engine cannot say.
    """
    try:
        return len(await _prompt_tokens(server, api, body))
    except UpstreamError:
        front = with_system_in_front(body.get("messages"))
        if front is None:
            raise
        return len(await _prompt_tokens(server, api, {**body, "messages": front}))


async def _prompt_tokens(server: Server, api: str, body: dict[str, Any]) -> list[int]:
    chat = {name: body[name] for name in TEMPLATE_FIELDS if name in body}
    if api == LLAMA:
        prompt = await _ask(server, "/apply-template", chat)
        content = {"content": prompt["prompt"], "add_special": True, "parse_special": True}
        return list((await _ask(server, "/tokenize", content))["tokens"])
    if api == VLLM:
        asked = {"model": server.plan.model_name, **chat}
        return list((await _ask(server, "/tokenize", asked))["tokens"])
    raise _no_tokenizer(server)


async def prompt_tokens(server: Server, api: str, body: dict[str, Any]) -> list[int]:
    """Return the tokens of a request's prompt: finished, as tokens already, or a conversation."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return prompt
    if isinstance(prompt, str):
        return await text_tokens(server, api, prompt, is_start=True)
    return await _prompt_tokens(server, api, body)


async def text_tokens(server: Server, api: str, text: str, is_start: bool = False) -> list[int]:
    """Return the tokens of a text; those that only begin a prompt where `is_start`."""
    told = await tokenize(server, api, {"content": text, "add_special": is_start})
    return list(told["tokens"])


def _no_tokenizer(server: Server) -> EngineError:
    return EngineError(
        "engine.no_tokenizer", f"{server.plan.engine} does not tell the tokens of a prompt",
        evidence=("it has no route for them",), remedies=("serve the model by llama.cpp or vLLM",),
    )  # fmt: skip


async def tokenize(server: Server, api: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of `content` (llama-server's name), `prompt` (vLLM's) or `messages`."""
    if "messages" in fields:
        tokens: list[Any] = await _prompt_tokens(server, api, fields)
    else:
        text = fields.get("content", fields.get("prompt"))
        if not isinstance(text, str):
            raise invalid("content", "a string", text)
        special = bool(fields.get("add_special", fields.get("add_special_tokens", False)))
        if api == LLAMA:
            rest = {k: v for k, v in fields.items() if k not in ("model", "prompt")}
            asked = {**rest, "content": text, "add_special": special}
            tokens = (await _ask(server, "/tokenize", asked))["tokens"]
        elif api == VLLM:
            asked = {
                "model": server.plan.model_name, "prompt": text, "add_special_tokens": special
            }  # fmt: skip
            tokens = (await _ask(server, "/tokenize", asked))["tokens"]
        else:
            raise _no_tokenizer(server)
    return {
        "tokens": tokens, "count": len(tokens), "max_model_len": server.plan.context_tokens
    }  # fmt: skip


async def detokenize(server: Server, api: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the text of tokens, under both engines' names."""
    tokens = fields.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(t, int) for t in tokens):
        raise invalid("tokens", "an array of whole numbers", tokens)
    asked: dict[str, Any] = {"tokens": tokens}
    if api == VLLM:
        asked["model"] = server.plan.model_name
    answer = await _ask(server, "/detokenize", asked)
    text = answer.get("content", answer.get("prompt", ""))
    return {"content": text, "prompt": text}


async def shorten(
    server: Server, api: str, body: dict[str, Any], room_tokens: int
) -> tuple[dict[str, Any], str] | None:
    """Return a chat request without its oldest turns, so that its prompt fits, and what was done.

    System messages and the last user message stay; None when even they do not fit.
    """
    messages = list(body["messages"])
    before = await count_tokens(server, api, body)
    dropped = 0
    tokens = before
    while tokens > room_tokens:
        position = next((i for i, m in enumerate(messages) if m.get("role") != "system"), None)
        if position is None or position >= len(messages) - 1:
            return None
        del messages[position]
        dropped += 1
        while position < len(messages) - 1 and messages[position].get("role") != "user":
            del messages[position]  # an answer or a tool's result without its question
            dropped += 1
        tokens = await count_tokens(server, api, {**body, "messages": messages})
    said = (
        f"{dropped} of the oldest messages were left out: "
        f"{before} tokens do not fit, {tokens} were sent"
    )
    return {**body, "messages": messages}, said


async def cut_texts(
    server: Server, api: str, texts: list[str], most: int
) -> tuple[list[list[int]], str]:
    """Return texts to embed as tokens, each with at most so many, and what was done.

    The special tokens at both ends stay: a model reads its vector there.
    """
    shown = []
    cut = 0
    for text in texts:
        plain = await text_tokens(server, api, text)
        whole = await text_tokens(server, api, text, is_start=True)
        added = len(whole) - len(plain)
        head = 1 if added and whole[:1] != plain[:1] else 0
        tail = whole[len(whole) - (added - head) :]
        if len(whole) > most:
            cut += 1
            whole = [*whole[: max(0, most - len(tail))], *tail]
        shown.append(whole)
    return shown, f"{cut} of {len(texts)} inputs were cut to {most} tokens"


async def _ask(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = await server.post(path, json.dumps(body, ensure_ascii=False).encode())
    try:
        decoded = msgspec.json.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        decoded = None
    if status != 200 or not isinstance(decoded, dict):
        raise refusal(answer, status)
    return decoded
