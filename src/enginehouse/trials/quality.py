"""Ask a live endpoint, under its exact settings, what the quality gate judges.

Over `/v1/completions` with `logprobs`, one token at a time on a fixed text: the text is cut behind
words, so every engine sees the same places whatever its tokenizer, and none is told token numbers.
Each request extends the last one's text, so an engine with a prefix cache computes about one token
for each. Before that walk each text is asked for as a whole, since whole prompts are computed by
other kernels. Answers come over `/v1/chat/completions`, as users get them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import aiohttp
import msgspec

from enginehouse.core.engine import Endpoint
from enginehouse.core.quality import (
    TOP_TOKENS,
    Answer,
    DraftCheck,
    Position,
    QualityTrace,
    check_draft,
    divergence,
    doubles_tail,
    single_tail,
    word_ends,
)
from enginehouse.edges.http import open_session
from enginehouse.knowledge.exam import Exam, ExamText, load_exam

T = TypeVar("T")

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
ANSWER_TOKENS = 96
DRAFTED_TOKENS = 96
TAIL_PLACES = 8
"""Places that are looked at for how an engine counts the tokens that it does not tell."""


class QualityError(Exception):
    """The endpoint failed while it was examined; the text says how."""


class BrokenLogitsError(Exception):
    """The model computes what is no number; llama-server then writes null for a logarithm."""


@dataclass(frozen=True)
class Examined:
    """The endpoint that is examined: the model's name there, and how many it serves at once.

    `fields` go with each request for what is likely next (`core.engine.Quirks`).
    """

    endpoint: Endpoint
    model: str
    streams: int = 1
    drafts: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)


async def measure_quality(examined: Examined, exam: Exam | None = None) -> QualityTrace:
    """Put the exam to a live endpoint and return what it said.

    Raises:
        QualityError: a request failed. An engine that tells no log-probabilities is no failure.
    """
    exam = exam or load_exam()
    began = time.perf_counter()
    async with open_session(examined.endpoint, keep_alive=False) as session:
        desk = _Desk(session, examined)
        answers = await _in_turn(
            [partial(desk.answer, q) for q in exam.questions], examined.streams
        )
        problem, is_broken, draft = "", False, None
        positions: list[tuple[str, Position]] = []
        differ: list[float] = []
        try:
            problem = await desk.can_tell(exam.texts[0].text)
            if not problem:
                walks = [partial(desk.walk, text, exam.places) for text in exam.texts]
                for whole, found in await _in_turn(walks, examined.streams):
                    positions += found
                    differ.append(divergence(found[-1][1], whole))
                draft = await desk.check_draft(exam.drafted) if examined.drafts else None
        except BrokenLogitsError as broken:
            problem, is_broken = str(broken), True
    return QualityTrace(
        edition=exam.edition,
        positions=tuple(positions),
        answers=tuple(answers),
        draft=draft,
        whole_kl=fmean(differ) if differ else None,
        seconds=time.perf_counter() - began,
        problem=problem,
        is_broken=is_broken,
    )


async def _in_turn(work: Iterable[Callable[[], Awaitable[T]]], streams: int) -> list[T]:
    """Do all, at most `streams` at once, and return the results in order."""
    gate = asyncio.Semaphore(max(1, streams))

    async def one(job: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await job()

    tasks = [asyncio.ensure_future(one(job)) for job in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Desk:
    """Asks one endpoint."""

    def __init__(self, session: aiohttp.ClientSession, examined: Examined) -> None:
        self._session = session
        self._model = examined.model
        self._fields = examined.fields
        self._doubles_tail = False

    async def can_tell(self, text: str) -> str:
        """Say why the endpoint tells no log-probabilities, "" when it does.

        And learn whether it counts what it does not tell twice, at the first places that show it.
        """
        for end in word_ends(text, TAIL_PLACES):
            try:
                position = await self.position(text[:end])
                first = await self.position(text[:end], tokens=1)
            except QualityError as problem:
                return str(problem)
            if not position.tokens:
                return "the engine's answers hold no logprobs"
            doubles = doubles_tail(position, first)
            if doubles is not None:
                self._doubles_tail = doubles
                break
        return ""

    async def walk(
        self, exam: ExamText, places: int
    ) -> tuple[Position, list[tuple[str, Position]]]:
        """Return what is likely at each place of one text, before it at the last for itself."""
        ends = word_ends(exam.text, places)
        whole = await self.position(exam.text[: ends[-1]])
        told = [(f"{exam.domain}/{end}", await self.position(exam.text[:end])) for end in ends]
        return whole, told

    async def position(self, prompt: str, tokens: int = TOP_TOKENS) -> Position:
        """Return the most likely tokens behind a text."""
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0,
            "logprobs": tokens, **self._fields,
        }  # fmt: skip
        position = parse_position(await self._post(COMPLETIONS, body))
        return single_tail(position) if self._doubles_tail else position

    async def answer(self, question: str) -> Answer:
        """Return a greedy answer to a question."""
        body = {
            "model": self._model, "messages": [{"role": "user", "content": question}],
            "max_tokens": ANSWER_TOKENS, "temperature": 0,
        }  # fmt: skip
        return parse_answer(await self._post(CHAT, body))

    async def check_draft(self, prompt: str) -> DraftCheck:
        """Let the endpoint write a text at once, then ask for it word by word."""
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": DRAFTED_TOKENS, "temperature": 0,
        }  # fmt: skip
        text = parse_answer(await self._post(COMPLETIONS, body)).text
        ends = word_ends(text, DRAFTED_TOKENS, least=1)
        told = {end: await self.position(prompt + text[:end]) for end in ends}
        return check_draft(text, ends, told.__getitem__)

    async def _post(self, path: str, body: object) -> Any:
        try:
            async with self._session.post(
                path, data=msgspec.json.encode(body), headers=JSON
            ) as answer:
                data = await answer.read()
                if answer.status != 200:
                    said = data.decode(errors="replace")[:200]
                    raise QualityError(f"HTTP {answer.status} to {path}: {said}")
                return msgspec.json.decode(data)
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as problem:
            raise QualityError(f"{path}: {type(problem).__name__}: {problem}") from problem


def parse_position(answer: Any) -> Position:
    """Read the most likely tokens of a one-token completion, in either form that is in use.

    The older form of the API maps token texts to log-probabilities (vLLM); llama-server gives the
    chat form, a list with each token's bytes. Without any, the position is empty.

    Raises:
        BrokenLogitsError: a log-probability is no number.
    """
    pairs: list[tuple[str, float | None]]
    try:
        logprobs = answer["choices"][0]["logprobs"] or {}
        if "content" in logprobs:
            tops = logprobs["content"][0]["top_logprobs"]
            pairs = [(_text_of(top), top["logprob"]) for top in tops]
        else:
            tops = logprobs["top_logprobs"][0]
            pairs = [(str(token), logprob) for token, logprob in tops.items()]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Position(())
    told = [(token, float(lp)) for token, lp in pairs if lp is not None and math.isfinite(lp)]
    if pairs and not told:
        raise BrokenLogitsError("the model's logits are not numbers")
    return Position(tuple(sorted(told, key=lambda pair: -pair[1])))


def _text_of(top: Any) -> str:
    """Return a token's text; its bytes, where told, keep what is no whole character apart."""
    data = bytes(top.get("bytes") or ())
    try:
        return data.decode() or str(top["token"])
    except UnicodeDecodeError:
        return f"bytes {data.hex()}"


def parse_answer(answer: Any) -> Answer:
    """Read a whole answer of either API."""
    try:
        choice = answer["choices"][0]
        message = choice.get("message") or {}
        text = choice.get("text") or message.get("content") or message.get("reasoning_content")
        has_stopped = choice.get("finish_reason") == "stop"
        if (answer.get("usage") or {}).get("completion_tokens", 0) >= ANSWER_TOKENS:
            has_stopped = False  # ik_llama.cpp says "stop" of every answer
        return Answer(str(text or ""), has_stopped)
    except (KeyError, IndexError, TypeError, AttributeError) as problem:
        raise QualityError(f"an answer without choices: {problem}") from problem
