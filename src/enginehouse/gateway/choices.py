"""Several choices (`n`) from an engine that gives fewer: one request each, under one answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp

from enginehouse.core.body import unknown
from enginehouse.core.chat import Usage
from enginehouse.core.sse import EventSplitter
from enginehouse.gateway.answer import Answer
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.server import Server
from enginehouse.gateway.upstream import (
    DONE,
    broke_off,
    refusal,
)

if TYPE_CHECKING:
    from enginehouse.gateway.proxy import Proxy

MOST_CHOICES = 128
"""OpenAI's own limit."""


def each_choice(body: dict[str, Any], wanted: int) -> list[dict[str, Any]]:
    """Return the requests for one choice each; a seed is counted on, so that they differ.

    Raises:
        UserError: `request.invalid`, for more than OpenAI gives.
    """
    if wanted > MOST_CHOICES:
        raise unknown("n", str(wanted), (f"1 to {MOST_CHOICES}",))
    seed = body.get("seed")
    one = {name: value for name, value in body.items() if name != "n"}
    return [
        {**one, "seed": seed + index} if isinstance(seed, int) else one for index in range(wanted)
    ]


async def answer_several(
    proxy: Proxy, server: Server, path: str, body: dict[str, Any], wanted: int, answer: Answer,
    journey: Journey,
) -> None:  # fmt: skip
    """Ask for one choice after the other, and answer as for all of them.

    Raises:
        UpstreamError, EnginehouseError: as for a single one.
    """
    asked = each_choice(body, wanted)
    if body.get("stream"):
        await _stream(proxy, server, path, asked, answer, journey)
        return
    wholes = [await _ask(proxy, server, path, one) for one in asked]
    merged = {**wholes[0], "choices": [_numbered(w, i) for i, w in enumerate(wholes)]}
    usage = _sum([whole.get("usage") for whole in wholes])
    if usage:
        merged["usage"] = usage
    journey.usage = _usage(usage)
    journey.first_byte_s = journey.total_s
    await answer.whole(200, json.dumps(merged, ensure_ascii=False).encode())


async def _ask(proxy: Proxy, server: Server, path: str, one: dict[str, Any]) -> dict[str, Any]:
    sent = json.dumps(one, ensure_ascii=False).encode()
    async with proxy.seat(server, path, sent) as seated:
        upstream = await proxy.post(server, path, seated)
        async with upstream:
            whole = await upstream.read()
    if upstream.status != 200:
        raise refusal(whole, upstream.status)
    server.supervisor.progress()
    told: dict[str, Any] = json.loads(whole)
    return told


def _numbered(whole: dict[str, Any], index: int) -> dict[str, Any]:
    choices = whole.get("choices") or [{}]
    return {**choices[0], "index": index}


async def _stream(
    proxy: Proxy, server: Server, path: str, asked: list[dict[str, Any]], answer: Answer,
    journey: Journey,
) -> None:  # fmt: skip
    """Send the choices' events one choice after the other, with one id and one count at the end."""
    usages, last, id = [], {}, ""
    for index, one in enumerate(asked):
        async for event in _events(proxy, server, path, one):
            id = id or str(event.get("id", ""))
            event["id"] = id
            if event.get("usage"):
                usages.append(event["usage"])
            if not event.get("choices"):
                last = event
                continue
            event["choices"] = [{**choice, "index": index} for choice in event["choices"]]
            if not journey.chunks:
                journey.first_byte_s = journey.total_s
            journey.chunks += 1
            server.supervisor.progress()
            if not answer.has_started:
                await answer.begin(200, b"text/event-stream")
            await answer.chunk(_event(event))
    usage = _sum(usages)
    journey.usage = _usage(usage)
    closing = _event({**last, "usage": usage}) if last else b""
    await answer.finish(closing + b"data: [DONE]\n\n")


async def _events(
    proxy: Proxy, server: Server, path: str, one: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    sent = json.dumps(one, ensure_ascii=False).encode()
    splitter = EventSplitter()
    async with proxy.seat(server, path, sent) as seated:
        upstream = await proxy.post(server, path, seated)
        async with upstream:
            assert isinstance(upstream, aiohttp.ClientResponse)
            if upstream.status != 200:
                whole = await upstream.read()
                raise refusal(whole, upstream.status)
            async for chunk in upstream.content.iter_any():
                for data in splitter.feed(chunk):
                    if data == DONE:
                        return
                    yield json.loads(data)
    raise broke_off(EOFError("its stream ended too soon"), server.supervisor.reason)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _sum(usages: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return one usage: the prompt's as it is, once; the answers' tokens together."""
    told = [usage for usage in usages if usage]
    if not told:
        return None
    output = sum(usage.get("completion_tokens") or 0 for usage in told)
    prompt = told[0].get("prompt_tokens") or 0
    return {**told[0], "completion_tokens": output, "total_tokens": prompt + output}


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if usage is None:
        return None
    return Usage(usage.get("prompt_tokens") or 0, usage["completion_tokens"])
