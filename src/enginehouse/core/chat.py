"""What the gateway carries between a dialect and an engine: one internal form of an answer.

The internal request is the JSON object of OpenAI's chat completions with llama-server's names for
sampling (`top_k`, `min_p`, `repeat_penalty` …), since every engine here speaks it or nearly so;
what an engine names otherwise, its descriptor renames (`Engine.request_names`). The internal
answer is below; dialects render it, none of them reads an engine's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A tool call, or in a stream a part of one; `arguments` is (a part of) a JSON text."""

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens of a request; `cached_tokens` are those of the prompt that were not computed anew."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """How long the engine itself says that prefill and decode took."""

    prompt_s: float
    decode_s: float


@dataclass(frozen=True)
class Delta:
    """One piece of a streamed answer. `finish` is OpenAI's finish reason, given once.

    `usage` is what is known so far: in a piece before the first token, of the prompt alone.
    `stopped_by` is the stop sequence that ended it, where the engine tells.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = ""
    usage: Usage | None = None
    timings: Timings | None = None
    logprobs: tuple[dict[str, Any], ...] = ()
    stopped_by: str = ""


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    usage: Usage = Usage()
    timings: Timings | None = None
    logprobs: tuple[dict[str, Any], ...] = ()
    stopped_by: str = ""


@dataclass(frozen=True)
class Embeddings:
    """Vectors, one for each input, in order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Moment:
    """When something happens: Unix seconds, and what of the request's time went where.

    `first_token_s` is from arrival to the first piece of the answer, 0 before it. `warning` is what
    the client shall read in the answer itself, where its dialect has a place for it. `usage` is
    what is known of the tokens so far.
    """

    at: float
    total_s: float = 0.0
    load_s: float = 0.0
    first_token_s: float = 0.0
    warning: str = ""
    usage: Usage | None = None


def text_or_parts(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return parts as one text where they are texts only: older templates know nothing else."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def with_system_in_front(messages: object) -> list[dict[str, Any]] | None:
    """Return a conversation whose system messages are one in front; None where they are already.

    Templates of several models refuse a system message anywhere else (Qwen 3.5, Mistral).
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return None
    places = [n for n, message in enumerate(messages) if message.get("role") == "system"]
    texts = [messages[n].get("content") for n in places]
    if places in ([], [0]) or not all(isinstance(text, str) for text in texts):
        return None
    rest = [message for message in messages if message.get("role") != "system"]
    return [{"role": "system", "content": "\n\n".join(map(str, texts))}, *rest]


class Collector:
    """Puts the deltas of a stream together to a whole answer."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self._logprobs: list[dict[str, Any]] = []
        self.finish = ""
        self.stopped_by = ""
        self.usage: Usage | None = None
        self.timings: Timings | None = None

    def take(self, delta: Delta) -> None:
        """Take the next piece."""
        if delta.text:
            self._text.append(delta.text)
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
        for call in delta.tool_calls:
            self.take_call(call)
        self._logprobs += delta.logprobs
        self.note(delta)

    def take_call(self, call: ToolCall) -> None:
        """Take a part of a tool call."""
        held = self._calls.setdefault(call.index, ["", "", ""])
        held[0] = held[0] or call.id
        held[1] = held[1] or call.name
        held[2] += call.arguments

    def note(self, delta: Delta) -> None:
        """Take only how the answer ends and what it cost."""
        self.finish = delta.finish or self.finish
        self.stopped_by = delta.stopped_by or self.stopped_by
        self.usage = delta.usage or self.usage
        self.timings = delta.timings or self.timings

    def calls(self) -> tuple[ToolCall, ...]:
        """Return the tool calls so far, whole as far as they have come."""
        return tuple(ToolCall(index, *self._calls[index]) for index in sorted(self._calls))

    def completion(self) -> Completion:
        """Return the answer so far as a whole one."""
        return Completion(
            "".join(self._text), "".join(self._reasoning), self.calls(), self.finish or "stop",
            self.usage or Usage(), self.timings, tuple(self._logprobs), self.stopped_by,
        )  # fmt: skip
