"""Render answers as Anthropic's messages and stream events."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from enginehouse.core.chat import (
    Collector,
    Completion,
    Delta,
    Embeddings,
    Moment,
    ToolCall,
    Usage,
)
from enginehouse.core.sse import one_line

_ENCODE = msgspec.json.Encoder().encode
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def event(kind: str, fields: dict[str, Any]) -> bytes:
    """Return one event of a stream."""
    data = one_line(_ENCODE({"type": kind, **fields}))
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)


@dataclass
class MessageVoice:
    """The answer to `/v1/messages`; a block ends where another kind of text begins."""

    model: str
    id: str
    stream_type: str = "text/event-stream"
    _collector: Collector = field(default_factory=Collector)
    _open: str = ""
    _index: int = -1

    def begin(self, moment: Moment) -> bytes:
        """Render `message_start`; the prompt's tokens are only known at the end."""
        message = self._message([], None, Usage())
        return event("message_start", {"message": message})

    def delta(self, delta: Delta, moment: Moment) -> bytes:
        """Render one piece."""
        self._collector.note(delta)
        shown = b""
        if delta.reasoning:
            shown += self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            shown += self._piece({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            shown += self._enter("text", {"type": "text", "text": ""})
            shown += self._piece({"type": "text_delta", "text": delta.text})
        for call in delta.tool_calls:
            shown += self._call(call)
        return shown

    def end(self, moment: Moment) -> bytes:
        """Close the open block and say how the message ended."""
        answer = self._collector.completion()
        delta = {"stop_reason": _reason(answer), "stop_sequence": _stop(answer)}
        return (
            (self._leave() if self._index >= 0 else self._empty())
            + event("message_delta", {"delta": delta, "usage": _usage(answer.usage)})
            + event("message_stop", {})
        )

    def keep_alive(self, moment: Moment) -> bytes:
        """A ping, which every client reads past."""
        return event("ping", {})

    def whole(self, answer: Completion | Embeddings, moment: Moment) -> bytes:
        """Render a whole answer."""
        assert isinstance(answer, Completion)
        blocks: list[dict[str, Any]] = []
        if answer.reasoning:
            blocks.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text or not answer.tool_calls:
            blocks.append({"type": "text", "text": answer.text})
        blocks += [
            {"type": "tool_use", "id": _call_id(call, self.id), "name": call.name,
             "input": _input(call)}
            for call in answer.tool_calls
        ]  # fmt: skip
        message = self._message(blocks, _reason(answer), answer.usage)
        return _ENCODE({**message, "stop_sequence": _stop(answer)})

    def _message(
        self, blocks: list[dict[str, Any]], reason: str | None, usage: Usage
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _empty(self) -> bytes:
        return self._enter("text", {"type": "text", "text": ""}) + self._leave()

    def _enter(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        left = self._leave() if self._index >= 0 else b""
        self._open = kind
        self._index += 1
        return left + event("content_block_start", {"index": self._index, "content_block": block})

    def _leave(self) -> bytes:
        self._open = ""
        return event("content_block_stop", {"index": self._index})

    def _piece(self, delta: dict[str, Any]) -> bytes:
        return event("content_block_delta", {"index": self._index, "delta": delta})

    def _call(self, call: ToolCall) -> bytes:
        self._collector.take_call(call)
        block = {
            "type": "tool_use", "id": _call_id(call, self.id), "name": call.name, "input": {}
        }  # fmt: skip
        shown = self._enter(f"tool {call.index}", block)
        if call.arguments:
            shown += self._piece({"type": "input_json_delta", "partial_json": call.arguments})
        return shown


def _call_id(call: ToolCall, message_id: str) -> str:
    return call.id or f"toolu_{message_id}_{call.index}"


def _input(call: ToolCall) -> object:
    try:
        return json.loads(call.arguments) if call.arguments else {}
    except ValueError:
        return call.arguments  # the model wrote no JSON: shown as it is, not dropped


def _reason(answer: Completion) -> str:
    if answer.tool_calls and answer.finish in ("stop", "tool_calls"):
        return "tool_use"
    if _stop(answer):
        return "stop_sequence"
    return REASONS.get(answer.finish, answer.finish)


def _stop(answer: Completion) -> str | None:
    """Return which of the request's own texts ended the answer, where the engine tells."""
    return answer.stop_text if answer.finish == "stop" and answer.stop_text else None


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the counts: `input_tokens` are those that no cache held."""
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }
