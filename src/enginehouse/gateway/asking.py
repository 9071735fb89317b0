"""Ask an engine what a dialect read and render its answer: one turn, with its second tries."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from enginehouse.core.catalog import no_embeddings
from enginehouse.core.chat import Delta, Moment, with_system_in_front
from enginehouse.core.dialect import Ask, Dialect
from enginehouse.core.length import LengthTeller
from enginehouse.core.sse import EventSplitter
from enginehouse.core.tools import ToolReader, has_tools, narrow_choice, tell_tools
from enginehouse.edges.engine_stream import EngineStream
from enginehouse.gateway.answer import Answer
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.pipe import Pipe
from enginehouse.gateway.router import Offer
from enginehouse.gateway.server import Server
from enginehouse.gateway.tokens import (
    cut_texts,
    prompt_tokens,
    text_tokens,
)
from enginehouse.gateway.upstream import (
    Upstream,
    UpstreamError,
    batch_told,
    broke_off,
    error_of_body,
    read_completion,
    read_delta,
    read_embeddings,
    status_to_client,
)

if TYPE_CHECKING:
    from enginehouse.gateway.proxy import Proxy

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
STREAM_OPTIONS = {"include_usage": True}
EARLY_USAGE: dict[str, dict[str, Any]] = {
    "llama-server": {"return_progress": True},
    "vllm": {"stream_options": {**STREAM_OPTIONS, "continuous_usage_stats": True}},
}
"""What makes an engine tell the prompt's tokens in the first event of a stream."""
STOP_NAMED: dict[str, dict[str, Any]] = {"llama-server": {"verbose": True}}
"""What makes an engine name the stop sequence that ended an answer; vLLM does so unasked."""
OF_ROLES = re.compile(rb"(?i)jinja|system message|\broles?\b")
"""What engines say when a template refuses a conversation for the order of its roles."""
SYSTEM_MOVED = "system messages were moved to the front: this model takes them nowhere else"
PROGRESS = b'"prompt_progress":'


async def carry_ask(
    proxy: Proxy, ask: Ask, dialect: Dialect, answer: Answer, journey: Journey
) -> str:
    """Ask the engine, and render its answer in the dialect's voice."""
    if ask.upstream_path == EMBEDDINGS:
        proxy.check_embeds(ask.model)
    turn = _Turn(proxy, ask, answer, journey)
    outcome = await proxy.holding.with_server(
        ask.model, ask.context_tokens, None, turn.attempt, answer, journey,
        turn.wait if ask.is_stream else None,
    )  # fmt: skip
    if ask.keep_alive_s is not None:
        keep_loaded(proxy, ask.model, ask.keep_alive_s)
    return outcome


def keep_loaded(proxy: Proxy, model: str, keep_alive_s: float) -> None:
    """Note how long a model shall stay loaded; 0 unloads it once its requests have ended."""
    offer, server = proxy.router.standing(proxy.router.require(model))
    if server is None or offer.is_pinned:
        return
    server.keep_alive_s = keep_alive_s
    if keep_alive_s == 0:
        proxy.router.unload_soon(offer.served.name)


class _Turn:
    """One request that is read and rendered."""

    def __init__(self, proxy: Proxy, ask: Ask, answer: Answer, journey: Journey) -> None:
        self._proxy = proxy
        self._ask = ask
        self._answer = answer
        self._journey = journey
        self._has_begun = False
        self._reader: ToolReader | None = None
        self._length: LengthTeller | None = None
        self._prompt: list[int] = []

    def _moment(self) -> Moment:
        journey = self._journey
        return Moment(
            self._proxy.now(), journey.total_s, journey.load_s + journey.queue_s,
            journey.first_byte_s, journey.warning, journey.usage,
        )  # fmt: skip

    async def wait(self) -> None:
        """Keep a client patient that waits for its model."""
        await self._open()
        await self._answer.chunk(self._begin() + self._ask.voice.keep_alive(self._moment()))

    async def _open(self) -> None:
        if not self._answer.has_started:
            await self._answer.begin(200, self._ask.voice.stream_type.encode())

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._ask.voice.begin(self._moment())

    async def attempt(self, offer: Offer, server: Server) -> None:
        """Send the request to the engine and its answer back."""
        ask, proxy = self._ask, self._proxy
        if ask.upstream_path == EMBEDDINGS and not server.plan.can_embed:
            raise no_embeddings(offer.served.name)
        told, path, self._reader = ask.body, ask.upstream_path, None
        self._prompt = []
        if ask.memory is not None and ask.memory.before and offer.tokens_api:
            prompt = await prompt_tokens(server, offer.tokens_api, ask.body)
            self._prompt = [*ask.memory.before, *prompt]
            told, path = {**ask.memory.for_completions(told), "prompt": self._prompt}, COMPLETIONS
        if not offer.has_own_tools and has_tools(ask.body):
            told, is_own_form = tell_tools(ask.body)
            self._reader = ToolReader(self._answer.request_id[:12]) if is_own_form else None
        elif "tool_choice" in ask.body:
            told = narrow_choice(ask.body)
        body, dropped = name_for_engine(told, offer.request_names)
        if not self._answer.has_started:
            notes = (*ask.notes, *dropped)
            if ask.memory is not None and ask.memory.before and not offer.tokens_api:
                notes += ("context is not supported by this engine",)
            self._answer.note(b"x-enginehouse-notes", notes)
        if not offer.tells_length:
            self._length = LengthTeller(body, server.plan.context_tokens)
        body["model"] = server.plan.model_name
        body["stream"] = ask.is_stream
        if ask.names_stop:
            body |= STOP_NAMED.get(offer.tokens_api, {})
        if ask.is_stream:
            body["stream_options"] = STREAM_OPTIONS
            if ask.begins_with_usage:
                body |= EARLY_USAGE.get(offer.tokens_api, {})
        sent = json.dumps(body, ensure_ascii=False).encode()
        async with proxy.seat(server, path, sent) as seated:
            upstream = await proxy.post(server, path, seated, ask.is_stream)
            if upstream.status != 200:
                upstream = await self._refused(offer, server, body, upstream)
            async with upstream:
                if isinstance(upstream, EngineStream):
                    await self._stream(offer, server, upstream)
                else:
                    await self._whole(offer, server, upstream)
        server.supervisor.note_served(path, sent)

    async def _remember(self, offer: Offer, server: Server, answer: str) -> None:
        """Give the conversation's tokens to who carries them; none where no engine tells them."""
        memory, api = self._ask.memory, offer.tokens_api
        if memory is None or not api:
            return
        prompt = self._prompt or await prompt_tokens(server, api, self._ask.body)
        memory.remember([*prompt, *await text_tokens(server, api, answer)])

    async def _refused(
        self, offer: Offer, server: Server, body: dict[str, Any], upstream: Upstream
    ) -> Upstream:
        """Ask again with another conversation where that helps, else say why not.

        Its system messages in front, where the template refused it; a shorter one, where it was
        too long.
        """
        async with upstream:
            said = await upstream.read()
        front = with_system_in_front(body.get("messages"))
        if front is not None and OF_ROLES.search(said):
            body["messages"] = front
            upstream = await self._post_again(server, body)
            if upstream.status == 200:
                if not self._answer.has_started:
                    self._answer.note(b"x-enginehouse-notes", (SYSTEM_MOVED,))
                return upstream
            async with upstream:
                said = await upstream.read()
        status = status_to_client(upstream.status, said)
        status = status if status < 500 else 502
        report = error_of_body(said, status)
        is_too_long = report.id == "context_length_exceeded"
        if is_too_long and self._proxy.rules.truncation != "error" and "messages" in body:
            shorter = await self._proxy.shorter(offer, server, body)
            if shorter is not None:
                self._proxy.note_shorter(shorter[1], self._answer, self._journey)
                again = await self._post_again(server, shorter[0])
                if again.status == 200:
                    return again
                async with again:
                    report = error_of_body(await again.read(), again.status)
        if self._ask.may_cut and offer.tokens_api:
            most = batch_told(report.what) or (server.plan.context_tokens if is_too_long else 0)
            if most:
                return await self._cut(offer, server, body, most)
        raise UpstreamError(report, status)

    async def _post_again(self, server: Server, body: Mapping[str, Any]) -> Upstream:
        sent = json.dumps(body, ensure_ascii=False).encode()
        return await self._proxy.post(server, self._ask.upstream_path, sent, self._ask.is_stream)

    async def _cut(self, offer: Offer, server: Server, body: dict[str, Any], most: int) -> Upstream:
        """Ask once more for the vectors of texts, with what is too long of them cut, and say so."""
        texts, told = await cut_texts(server, offer.tokens_api, body["input"], most)
        self._answer.note(b"x-enginehouse-truncated", (told,))
        self._journey.is_truncated = True
        again = await self._post_again(server, {**body, "input": texts})
        if again.status == 200:
            return again
        async with again:
            said = await again.read()
        raise UpstreamError(error_of_body(said, again.status), status_to_client(again.status, said))

    async def _whole(self, offer: Offer, server: Server, upstream: Upstream) -> None:
        data = await upstream.read()
        journey = self._journey
        if self._ask.upstream_path == EMBEDDINGS:
            vectors = read_embeddings(data)
            body = self._ask.voice.whole(vectors, self._moment())
        else:
            completion = read_completion(data)
            if self._length is not None:
                completion = self._length.whole(completion)
            journey.usage = completion.usage
            await self._remember(offer, server, completion.text)
            if self._reader is not None:
                completion = self._reader.whole(completion)
            body = self._ask.voice.whole(completion, self._moment())
        journey.first_byte_s = journey.total_s
        self._keep()
        await self._answer.whole(200, body)

    def _keep(self) -> None:
        """Keep an answer that has ended whole, just before the client can point to it."""
        if self._ask.kept is not None:
            self._proxy.kept.keep(self._journey.caller.key, self._ask.kept())

    async def _stream(self, offer: Offer, server: Server, upstream: EngineStream) -> None:
        journey, voice = self._journey, self._ask.voice
        await upstream.some(PROGRESS)
        journey.first_byte_s = journey.total_s
        pipe = Pipe(upstream, self._answer, journey)
        splitter = EventSplitter()
        progress = server.supervisor.progress
        await self._open()
        has_finished = False
        is_remembered = self._ask.memory is not None
        texts: list[str] = []

        def show(delta: Delta, moment: Moment) -> bytes:
            if self._reader is not None:
                delta = self._reader.take(delta)
            return self._begin() + voice.delta(delta, moment)

        def take(chunk: bytes) -> None:
            nonlocal has_finished
            journey.chunks += 1
            progress()
            moment = self._moment()
            shown = b""
            for event in splitter.feed(chunk):
                delta = read_delta(event)
                if delta is None:
                    has_finished = True
                    continue
                has_finished |= bool(delta.finish)
                journey.usage = delta.usage or journey.usage
                if is_remembered:
                    texts.append(delta.text)
                if self._length is not None:
                    delta = self._length.take(delta)
                shown += show(delta, moment)
            if shown:
                pipe.push(shown)

        await pipe.carry(take)
        rest = self._length.rest() if self._length is not None else None
        if rest is not None:
            pipe.push(show(rest, self._moment()))
        if not has_finished:
            raise broke_off(EOFError("its stream ended without a reason"), server.supervisor.reason)
        await self._remember(offer, server, "".join(texts))
        end = self._begin() + voice.end(self._moment())
        self._keep()
        await pipe.finish(end)


def name_for_engine(
    body: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a request with the engine's own names, and notes on what it does not take."""
    if not names:
        return dict(body), ()
    named: dict[str, Any] = {}
    dropped = []
    for name, value in body.items():
        own = names.get(name, name)
        if own:
            named[own] = value
        else:
            dropped.append(f"{name} is not supported by this engine")
    return named, tuple(dropped)
