"""Render answers as OpenAI's chat completions, where an engine's own cannot be passed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from enginehouse.core.chat import Completion, Delta, Embeddings, Moment, ToolCall, Usage
from enginehouse.core.sse import one_line

_ENCODE = msgspec.json.Encoder().encode


@dataclass
class CompletionVoice:
    """The answer to `/v1/chat/completions`."""

    model: str
    id: str
    created: int
    shows_usage: bool = False
    stream_type: str = "text/event-stream"
    _usage: Usage | None = None

    def begin(self, moment: Moment) -> bytes:
        """A stream begins with the role."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta(self, delta: Delta, moment: Moment) -> bytes:
        """Render one piece."""
        self._usage = delta.usage or self._usage
        fields: dict[str, Any] = {}
        if delta.text:
            fields["content"] = delta.text
        if delta.reasoning:
            fields["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            fields["tool_calls"] = [
                {"index": call.index, **_call(call)} for call in delta.tool_calls
            ]
        if not fields and not delta.finish:
            return b""
        if fields and delta.finish:
            return self._chunk(fields, None) + self._chunk({}, delta.finish)
        return self._chunk(fields, delta.finish or None)

    def end(self, moment: Moment) -> bytes:
        """Render the usage where it is asked for, and the end."""
        shown = b""
        if self.shows_usage and self._usage is not None:
            body = {**self._head("chat.completion.chunk"), "choices": [],
                    "usage": _usage(self._usage)}  # fmt: skip
            shown = b"data: " + one_line(_ENCODE(body)) + b"\n\n"
        return shown + b"data: [DONE]\n\n"

    def keep_alive(self, moment: Moment) -> bytes:
        """A comment, which every reader of events passes over."""
        return b": waiting\n\n"

    def whole(self, answer: Completion | Embeddings, moment: Moment) -> bytes:
        """Render a whole answer."""
        assert isinstance(answer, Completion)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
        if not answer.tool_calls:
            message["content"] = answer.text
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [_call(call) for call in answer.tool_calls]
        logprobs = {"content": list(answer.logprobs)} if answer.logprobs else None
        choice = {
            "index": 0, "message": message, "finish_reason": answer.finish, "logprobs": logprobs
        }  # fmt: skip
        head = self._head("chat.completion")
        warnings = {"warnings": [moment.warning]} if moment.warning else {}
        return _ENCODE({**head, "choices": [choice], "usage": _usage(answer.usage), **warnings})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        body = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return b"data: " + one_line(_ENCODE(body)) + b"\n\n"


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
