"""Send a workload to a live endpoint and time what comes back.

One streaming client a stream, over keep-alive-free connections, so that an engine that closes a
connection after a stream never costs a retry within a measurement.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from enginehouse.core.engine import Endpoint
from enginehouse.core.measurement import RequestSample
from enginehouse.core.workload import Prompt
from enginehouse.edges.http import open_session
from enginehouse.edges.slots import CHAT_PATH, SlotKeeper

COUNTED_WORDS = 300
WATCH_EVERY_S = 0.25
JSON = {"Content-Type": "application/json"}


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True)
class LoadShape:
    """How prompts become requests: tokens to make, and whether an end-of-text token may end them.

    Sizes are fixed (`ignore_eos`) so that two candidates do the same work; the seed and temperature
    make the text natural and the same for the same numerics.
    """

    model: str
    output_tokens: int
    ignore_eos: bool = True
    temperature: float = 0.7
    seed: int = 1
    cache_prompt: bool = True


def never_too_slow(elapsed_s: float, characters: int) -> str:
    """Let any load go on."""
    return ""


@dataclass(frozen=True)
class Window:
    """When a load ends before all is answered.

    After `ends_s` nothing new begins once every stream could have been answered: one request of a
    single stream, one wave of several; or, when it is given, once there are so many `answers`. Less
    would count prompts whose answers are still to come.
    `too_slow` takes the seconds since the start and the characters that came, and says why to give
    the load up, empty to go on.
    """

    ends_s: float = math.inf
    too_slow: Callable[[float, int], str] = never_too_slow
    answers: int = 0


WHOLE = Window()


class TooSlowError(Exception):
    """The load was given up; holds what came until then."""

    def __init__(self, reason: str, samples: tuple[RequestSample, ...]) -> None:
        super().__init__(reason)
        self.samples = samples


async def run_load(
    endpoint: Endpoint,
    shape: LoadShape,
    prompts: Sequence[Prompt],
    streams: int,
    keeper: SlotKeeper | None = None,
    window: Window = WHOLE,
) -> tuple[RequestSample, ...]:
    """Send all prompts with `streams` concurrent clients, each starting its next when done.

    `keeper` seats requests as the gateway does when this candidate is served. Where the window ends
    the load before all is answered, the requests under way are samples that were cut off; a single
    stream ends between two of its requests.

    Raises:
        TooSlowError: when the window's pace says so.
    """
    waiting = list(enumerate(prompts))[::-1]
    samples: dict[int, RequestSample] = {}
    live: dict[int, _Recorder] = {}
    began = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting and not (streams == 1 and is_over()):
            index, prompt = waiting.pop()
            live[index] = _Recorder()
            samples[index] = await ask(session, shape, prompt, keeper, live[index])

    def is_over() -> bool:
        enough = window.answers or streams
        return len(samples) >= enough and time.perf_counter() - began > window.ends_s

    def partial() -> tuple[RequestSample, ...]:
        now = time.perf_counter()
        cut = {i: r.sample(now, is_cut=True) for i, r in live.items() if i not in samples}
        merged = {**samples, **cut}
        return tuple(merged[index] for index in sorted(merged))

    async with open_session(endpoint, keep_alive=False) as session:
        clients = asyncio.gather(*(client(session) for _ in range(streams)))
        try:
            while not clients.done():
                await asyncio.wait({clients}, timeout=WATCH_EVERY_S)
                elapsed = time.perf_counter() - began
                behind = window.too_slow(elapsed, sum(len("".join(r.text)) for r in live.values()))
                if behind and not clients.done():
                    raise TooSlowError(behind, partial())
                if streams > 1 and is_over():
                    break
            if clients.done():
                await clients
            return partial()
        finally:
            clients.cancel()
            await asyncio.gather(clients, return_exceptions=True)


async def ask(
    session: aiohttp.ClientSession,
    shape: LoadShape,
    prompt: Prompt,
    keeper: SlotKeeper | None = None,
    recorder: _Recorder | None = None,
) -> RequestSample:
    """Send one streamed chat completion; a failure is a sample with its error, not an exception."""
    recorder = recorder or _Recorder()
    error = ""
    body = msgspec.json.encode(_body(shape, prompt))
    try:
        async with (
            keeper.seat(CHAT_PATH, body) if keeper else nullcontext(body) as seated,
            session.post(CHAT_PATH, data=seated, headers=JSON) as answer,
        ):
            if answer.status != 200:
                error = f"HTTP {answer.status}: {(await answer.text())[:300]}"
            else:
                async for line in answer.content:
                    recorder.take(line, time.perf_counter())
    except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    error = error or recorder.missing()
    return recorder.sample(time.perf_counter(), error)


class _Recorder:
    """Collects one stream's chunks."""

    def __init__(self) -> None:
        self.start_s = time.perf_counter()
        self.times: list[float] = []
        self.text: list[str] = []
        self.usage = _Usage()
        self.problem = ""

    def take(self, line: bytes, now: float) -> None:
        if not line.startswith(b"data:"):
            if line.startswith(b"error:"):
                self.problem = line.decode(errors="replace").strip()[:300]
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        chunk = _CHUNK.decode(data)
        if chunk.error is not None:
            self.problem = f"the engine said: {chunk.error}"[:300]
        for choice in chunk.choices:
            piece = choice.delta.content or choice.delta.reasoning_content
            if piece:
                self.times.append(now)
                self.text.append(piece)
        if chunk.usage is not None:
            self.usage = chunk.usage

    def sample(self, end_s: float, error: str = "", is_cut: bool = False) -> RequestSample:
        return RequestSample(
            start_s=self.start_s,
            end_s=end_s,
            chunk_times_s=tuple(self.times),
            prompt_tokens=self.usage.prompt_tokens,
            cached_tokens=(self.usage.prompt_tokens_details or _Details()).cached_tokens or 0,
            output_tokens=self.usage.completion_tokens,
            text="".join(self.text),
            error=error,
            is_cut=is_cut,
        )

    def missing(self) -> str:
        if self.problem:
            return self.problem
        if not self.usage.completion_tokens:
            return "the answer ended without the engine's token counts"
        return "" if self.times else "the answer held no text"


def _body(shape: LoadShape, prompt: Prompt) -> dict[str, object]:
    messages = [{"role": "user", "content": prompt.user}]
    if prompt.system:
        messages.insert(0, {"role": "system", "content": prompt.system})
    body: dict[str, object] = {
        "model": shape.model,
        "messages": messages,
        "max_tokens": shape.output_tokens,
        "temperature": shape.temperature,
        "seed": shape.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if shape.ignore_eos:
        body["ignore_eos"] = True
    if not shape.cache_prompt:
        body["cache_prompt"] = False
    return body


async def words_per_token(endpoint: Endpoint, model: str, text: str) -> float:
    """Ask the engine how many words of this text one token holds.

    Its tokenizer is asked where it has one (`/tokenize` as llama-server and vLLM take it), else a
    short and a longer prompt are sent and their counts compared, which leaves the template out.

    Raises:
        aiohttp.ClientError: when the engine does not answer.
        ValueError: when it gives no counts.
    """
    async with open_session(endpoint, keep_alive=False) as session:
        asked = {"content": text, "prompt": text, "model": model}
        async with session.post("/tokenize", json=asked) as answer:
            if answer.status == 200:
                return len(text.split()) / max(1, len((await answer.json())["tokens"]))
        shape = LoadShape(model, output_tokens=1, ignore_eos=False)
        words = text.split()[:COUNTED_WORDS]
        short = await ask(session, shape, Prompt("", words[0]))
        long = await ask(session, shape, Prompt("", " ".join(words)))
    tokens = long.prompt_tokens - short.prompt_tokens
    if tokens <= 0:
        raise ValueError(long.error or short.error or "the engine counts no prompt tokens")
    return (len(words) - 1) / tokens
