"""Carry out what a dialect made of a request: one function for each kind of intent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from enginehouse.core.chat import Moment
from enginehouse.core.dialect import (
    Ask,
    Copy,
    Count,
    Delete,
    Dialect,
    Forget,
    Load,
    Pull,
    Show,
    Tokenize,
)
from enginehouse.core.errors import EnginehouseError
from enginehouse.core.statuses import outcome_of
from enginehouse.core.tools import has_tools, tell_tools
from enginehouse.gateway.answer import Answer
from enginehouse.gateway.asking import carry_ask, keep_loaded
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.router import Offer
from enginehouse.gateway.server import Server
from enginehouse.gateway.tokens import (
    count_tokens,
    detokenize,
    tokenize,
)

if TYPE_CHECKING:
    from enginehouse.gateway.proxy import Proxy


async def carry_show(
    proxy: Proxy, show: Show, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Send what is known already."""
    await answer.render(show.rendered)
    return "served"


async def carry_forget(
    proxy: Proxy, forget: Forget, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Let a kept answer go."""
    proxy.kept.forget(journey.caller.key, forget.id)
    await answer.render(forget.rendered)
    return "served"


async def carry_count(
    proxy: Proxy, count: Count, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Count a prompt's tokens."""

    async def attempt(offer: Offer, server: Server) -> None:
        body = count.body
        if not offer.has_own_tools and body.get("messages") and has_tools(body):
            body = tell_tools(body)[0]
        tokens = await count_tokens(server, offer.tokens_api, body)
        await answer.render(count.render(tokens))

    return await proxy.holding.with_server(count.model, None, None, attempt, answer, journey)


async def carry_tokenize(
    proxy: Proxy, wanted: Tokenize, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Show tokens, or the text of tokens."""

    async def attempt(offer: Offer, server: Server) -> None:
        do = detokenize if wanted.is_back else tokenize
        shown = await do(server, offer.tokens_api, wanted.fields)
        await answer.whole(200, json.dumps(shown, ensure_ascii=False).encode())

    return await proxy.holding.with_server(wanted.model, None, None, attempt, answer, journey)


def _note_model(proxy: Proxy, offer: Offer, asked: str, journey: Journey) -> None:
    """Note which model a request means that does not ask it anything."""
    server = proxy.router.servers.get(offer.served.name)
    journey.asked, journey.model = asked, offer.served.name
    journey.engine = server.plan.engine if server is not None else ""


async def carry_load(
    proxy: Proxy, load: Load, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Load a model, or unload it."""
    offer = proxy.router.require(load.model)
    _note_model(proxy, offer, load.model, journey)
    is_unload = load.keep_alive_s == 0
    if is_unload:
        if not offer.is_pinned:
            await proxy.router.unload(offer.served.name)
    else:

        async def attempt(offer: Offer, server: Server) -> None:
            """Being let in is all there is to it: the engine is ready then."""

        await proxy.holding.with_server(load.model, None, None, attempt, answer, journey)
        if load.keep_alive_s is not None:
            keep_loaded(proxy, load.model, load.keep_alive_s)
    moment = Moment(proxy.now(), journey.total_s, journey.load_s)
    await answer.render(load.voice.loaded(is_unload, False, moment))
    return "served"


async def carry_pull(
    proxy: Proxy, pull: Pull, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Fetch a model; one that is known already succeeds at once."""
    journey.asked = pull.model
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_progress(status: str, digest: str, total: int, completed: int) -> None:
        line = pull.voice.progress(status, digest, total, completed)
        loop.call_soon_threadsafe(lines.put_nowait, line)

    async def fetch() -> None:
        try:
            if proxy.router.offer(pull.model) is None:
                offer = await proxy.library.fetch(pull.model, on_progress)
                proxy.router.add(offer)
                if proxy.router.offer(pull.model) is None:  # it is asked for by what was pulled
                    proxy.router.alias(offer.served.name, pull.model)
                    proxy.library.keep_aliases(dict(proxy.router.aliases))
        finally:
            lines.put_nowait(None)

    if proxy.router.offer(pull.model) is not None and pull.is_stream:
        on_progress("pulling manifest", "", 0, 0)
    work = asyncio.ensure_future(fetch())
    try:
        while (line := await lines.get()) is not None:
            if pull.is_stream:
                if not answer.has_started:
                    await answer.begin(200, pull.voice.stream_type.encode())
                await answer.chunk(line)
        await work
    except EnginehouseError as problem:
        if not answer.has_started:
            raise
        journey.error_id = problem.report.id
        await answer.finish(pull.voice.failed(problem.report))
        return outcome_of(problem.report)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    if (pulled := proxy.router.offer(pull.model)) is not None:
        _note_model(proxy, pulled, pull.model, journey)
    if answer.has_started:
        await answer.finish(pull.voice.done())
    elif pull.is_stream:
        await answer.begin(200, pull.voice.stream_type.encode())
        await answer.finish(pull.voice.done())
    else:
        await answer.whole(200, pull.voice.done())
    return "served"


async def carry_copy(
    proxy: Proxy, copy: Copy, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Give a model another name besides."""
    _note_model(proxy, proxy.router.require(copy.source), copy.source, journey)
    proxy.router.alias(copy.source, copy.destination)
    proxy.library.keep_aliases(dict(proxy.router.aliases))
    if copy.voice is None:
        await answer.whole(200, b"")
    elif copy.is_stream:
        await answer.begin(200, copy.voice.stream_type.encode())
        await answer.finish(copy.voice.progress("writing manifest", "", 0, 0) + copy.voice.done())
    else:
        await answer.whole(200, copy.voice.done())
    return "served"


async def carry_delete(
    proxy: Proxy, delete: Delete, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Take a name away; a model's file stays."""
    offer = proxy.router.require(delete.model)
    _note_model(proxy, offer, delete.model, journey)
    if await proxy.router.remove(delete.model):
        await proxy.library.forget(offer.served.name)
    proxy.library.keep_aliases(dict(proxy.router.aliases))
    await answer.whole(200, b"")
    return "served"


INTENTS: dict[type, Callable[..., Awaitable[str]]] = {
    Ask: carry_ask,
    Show: carry_show,
    Count: carry_count,
    Tokenize: carry_tokenize,
    Load: carry_load,
    Pull: carry_pull,
    Copy: carry_copy,
    Delete: carry_delete,
    Forget: carry_forget,
}
