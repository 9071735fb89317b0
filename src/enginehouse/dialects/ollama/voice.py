"""Render answers as Ollama does: one JSON object a line, times in whole nanoseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

import msgspec

from enginehouse.core.chat import Collector, Completion, Delta, Embeddings, Moment, ToolCall
from enginehouse.core.dialect import Rendered
from enginehouse.core.errors import ErrorReport, error_text
from enginehouse.core.sse import one_line

NDJSON = "application/x-ndjson"
_ENCODE = msgspec.json.Encoder().encode
REASONS = {"stop": "stop", "length": "length", "tool_calls": "stop", "content_filter": "stop"}


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


def stamp(at: float) -> str:
    """Return Unix seconds as Ollama writes a time, in UTC."""
    whole = int(at)
    return f"{_second(whole)}.{int((at - whole) * 1e6):06d}Z"


def line(value: object) -> bytes:
    """Return one line of a stream."""
    return one_line(_ENCODE(value)) + b"\n"


def error_fields(report: ErrorReport) -> dict[str, str | tuple[str, ...]]:
    """Return an error as Ollama's clients read it, with a code and whose turn it is besides."""
    shown: dict[str, str | tuple[str, ...]] = {"error": error_text(report), "code": report.id}
    shown["from"] = report.turn
    return {**shown, "remedies": report.remedies} if report.remedies else shown


def nanoseconds(seconds: float) -> int:
    """Return seconds as whole nanoseconds, never negative."""
    return max(0, int(seconds * 1e9))


@dataclass
class ChatVoice:
    """The answer to `/api/chat`, or with `is_chat` off to `/api/generate`."""

    model: str
    is_chat: bool = True
    is_thinking_shown: bool = True
    stream_type: str = NDJSON
    top_logprobs: int = 0
    _collector: Collector = field(default_factory=Collector)
    _context: list[int] = field(default_factory=list)

    def begin(self, moment: Moment) -> bytes:
        """A stream begins with its first piece."""
        return b""

    def delta(self, delta: Delta, moment: Moment) -> bytes:
        """Render one piece; tool calls are shown once they are whole."""
        self._collector.note(delta)
        for call in delta.tool_calls:
            self._collector.take_call(call)
        thinking = delta.reasoning if self.is_thinking_shown else ""
        if not (delta.text or thinking or delta.logprobs):
            return b""
        return line(self._piece(delta.text, thinking, (), moment, delta.logprobs))

    def end(self, moment: Moment) -> bytes:
        """Render the tool calls, then the last line with its counts and durations."""
        calls = self._collector.calls()
        shown = line(self._piece("", "", calls, moment)) if calls else b""
        last = self._piece("", "", (), moment)
        return shown + line({**last, **self._closing(self._collector.completion(), moment)})

    def keep_alive(self, moment: Moment) -> bytes:
        """An empty piece: clients parse every line, so a blank one would break them."""
        return line(self._piece("", "", (), moment))

    def whole(self, answer: Completion | Embeddings, moment: Moment) -> bytes:
        """Render a whole answer."""
        assert isinstance(answer, Completion)
        thinking = answer.reasoning if self.is_thinking_shown else ""
        piece = self._piece(answer.text, thinking, answer.tool_calls, moment, answer.logprobs)
        return _ENCODE({**piece, **self._closing(answer, moment)})

    def remember(self, tokens: list[int]) -> None:
        """Take the conversation's tokens, which the client may send with its next prompt."""
        self._context = tokens

    def loaded(self, is_unload: bool, is_stream: bool, moment: Moment) -> Rendered:
        """Answer a request without a prompt, which only loads or unloads."""
        piece = self._piece("", "", (), moment)
        body = {**piece, "done": True, "done_reason": "unload" if is_unload else "load"}
        return Rendered(200, line(body), NDJSON if is_stream else "application/json")

    def _piece(
        self, text: str, thinking: str, calls: tuple[ToolCall, ...], moment: Moment,
        logprobs: tuple[Mapping[str, Any], ...] = (),
    ) -> dict[str, Any]:  # fmt: skip
        head: dict[str, Any] = {"model": self.model, "created_at": stamp(moment.at)}
        if self.is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if thinking:
                message["thinking"] = thinking
            if calls:
                message["tool_calls"] = [_call(call) for call in calls]
            head["message"] = message
        else:
            head["response"] = text
            if thinking:
                head["thinking"] = thinking
        head["done"] = False
        if logprobs:
            head["logprobs"] = [_logprob(entry, self.top_logprobs) for entry in logprobs]
        return head

    def _closing(self, answer: Completion, moment: Moment) -> dict[str, Any]:
        """Return the counts and durations of an answer; the parts never exceed the total."""
        timings = answer.timings
        prompt_s = timings.prompt_s if timings else max(0.0, moment.first_token_s - moment.load_s)
        decode_s = timings.decode_s if timings else moment.total_s - moment.load_s - prompt_s
        left_s = max(0.0, moment.total_s - moment.load_s)
        prompt_s = min(max(0.0, prompt_s), left_s)
        decode_s = min(max(0.0, decode_s), left_s - prompt_s)
        return {
            "done": True,
            "done_reason": REASONS.get(answer.finish, answer.finish),
            **({"context": self._context} if self._context else {}),
            "total_duration": nanoseconds(moment.total_s),
            "load_duration": nanoseconds(moment.load_s),
            "prompt_eval_count": answer.usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(prompt_s),
            "eval_count": answer.usage.output_tokens,
            "eval_duration": nanoseconds(decode_s),
            **({"warning": moment.warning} if moment.warning else {}),
        }


def _logprob(entry: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return one token's entry with no more alternatives than were asked for."""
    shown = {name: value for name, value in entry.items() if name != "top_logprobs"}
    if most and entry.get("top_logprobs"):
        shown["top_logprobs"] = entry["top_logprobs"][:most]
    return shown


def _call(call: ToolCall) -> dict[str, Any]:
    """Return a tool call with its arguments as an object."""
    try:
        arguments = json.loads(call.arguments) if call.arguments else {}
    except ValueError:
        arguments = call.arguments  # the model wrote no JSON: shown as it is, not dropped
    if not isinstance(arguments, dict):
        arguments = {"value": arguments}
    shown: dict[str, Any] = {"id": call.id} if call.id else {}
    shown["function"] = {"index": call.index, "name": call.name, "arguments": arguments}
    return shown


@dataclass(frozen=True)
class EmbedVoice:
    """The answer to `/api/embed`, or as `is_legacy` to `/api/embeddings`."""

    model: str
    is_legacy: bool = False
    dimensions: int = 0
    stream_type: str = NDJSON

    def begin(self, moment: Moment) -> bytes:
        """Embeddings are not streamed."""
        return b""

    def delta(self, delta: Delta, moment: Moment) -> bytes:
        """Embeddings are not streamed."""
        return b""

    def end(self, moment: Moment) -> bytes:
        """Embeddings are not streamed."""
        return b""

    def keep_alive(self, moment: Moment) -> bytes:
        """Embeddings are not streamed."""
        return b""

    def whole(self, answer: Completion | Embeddings, moment: Moment) -> bytes:
        """Render the vectors; with fewer dimensions than they have, cut and scaled to length 1."""
        assert isinstance(answer, Embeddings)
        vectors = [self._cut(vector) for vector in answer.vectors]
        if self.is_legacy:
            return _ENCODE({"embedding": vectors[0] if vectors else []})
        return _ENCODE(
            {
                "model": self.model,
                "embeddings": vectors,
                "total_duration": nanoseconds(moment.total_s),
                "load_duration": nanoseconds(moment.load_s),
                "prompt_eval_count": answer.prompt_tokens,
            }
        )

    def loaded(self, is_unload: bool, is_stream: bool, moment: Moment) -> Rendered:
        """Answer a request without a text, which only loads or unloads."""
        shown = {"embedding": []} if self.is_legacy else {"model": self.model, "embeddings": []}
        return Rendered(200, _ENCODE(shown))

    def _cut(self, vector: tuple[float, ...]) -> tuple[float, ...]:
        if not 0 < self.dimensions < len(vector):
            return vector
        short = vector[: self.dimensions]
        length = sum(x * x for x in short) ** 0.5
        return tuple(x / length for x in short) if length else short


@dataclass(frozen=True)
class PullLines:
    """The progress of `/api/pull`."""

    stream_type: str = NDJSON

    def progress(self, status: str, digest: str, total: int, completed: int) -> bytes:
        """Render one line; sizes only where they are known."""
        shown: dict[str, Any] = {"status": status}
        if digest:
            shown["digest"] = digest
        if total:
            shown |= {"total": total, "completed": completed}
        return line(shown)

    def done(self) -> bytes:
        """Render the success."""
        return line({"status": "success"})

    def failed(self, report: ErrorReport) -> bytes:
        """Render a failure after lines were sent."""
        return line(error_fields(report))
