"""Render answers as OpenAI's Responses: one object of output items, or its stream of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "temperature": None, "top_p": None,
    "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "metadata": {},
    "text": {"format": {"type": "text"}}, "reasoning": {"effort": None, "summary": None},
    "truncation": "disabled", "user": None, "service_tier": "default", "top_logprobs": 0,
}  # fmt: skip
"""What of a request its response shows again, and the values for what was not given."""


@dataclass
class ResponseVoice:
    """The answer to `/v1/responses`; `final` is the whole response once it has ended."""

    model: str
    id: str
    request: Mapping[str, Any]
    created: float
    is_kept: bool = False
    final: dict[str, Any] | None = None
    stream_type: str = "text/event-stream"
    _collector: Collector = field(default_factory=Collector)
    _sequence: int = -1
    _open: str = ""
    _index: int = -1
    _text: list[str] = field(default_factory=list)
    _logprobs: list[dict[str, Any]] = field(default_factory=list)
    _done: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, moment: Moment) -> bytes:
        """Render `response.created` and `response.in_progress`."""
        response = self._response("in_progress", [], None, moment)
        return self._event("response.created", {"response": response}) + self._event(
            "response.in_progress", {"response": response}
        )

    def delta(self, delta: Delta, moment: Moment) -> bytes:
        """Render one piece."""
        self._collector.note(delta)
        shown = b""
        going_on = [call for call in delta.tool_calls if self._open == f"tool {call.index}"]
        for call in going_on:  # before a text beside it, which would end its item
            shown += self._call_piece(call)
        if delta.reasoning:
            shown += self._enter("reasoning", self._reasoning("", "in_progress"))
            shown += self._part("response.reasoning_text.delta", {"delta": delta.reasoning})
            self._text.append(delta.reasoning)
        if delta.text:
            shown += self._enter("text", self._message("", "in_progress"))
            fields = {"delta": delta.text, "logprobs": list(delta.logprobs)}
            shown += self._part("response.output_text.delta", fields)
            self._text.append(delta.text)
            self._logprobs += delta.logprobs
        for call in delta.tool_calls:
            if call not in going_on:
                shown += self._call_piece(call)
        return shown

    def end(self, moment: Moment) -> bytes:
        """Close the open item and render the whole response."""
        shown = b"" if self._index >= 0 else self._enter("text", self._message("", "in_progress"))
        shown += self._leave()
        answer = self._collector.completion()
        kind = "incomplete" if answer.finish == "length" else "completed"
        response = self.final = self._response(kind, self._done, answer.usage, moment)
        return shown + self._event(f"response.{kind}", {"response": response})

    def keep_alive(self, moment: Moment) -> bytes:
        """A comment, which every reader of events passes over."""
        return b": waiting\n\n"

    def whole(self, answer: Completion | Embeddings, moment: Moment) -> bytes:
        """Render a whole answer."""
        assert isinstance(answer, Completion)
        output = []
        if answer.reasoning:
            output.append(self._reasoning(answer.reasoning, "completed"))
        if answer.text or not answer.tool_calls:
            output.append(self._message(answer.text, "completed", answer.logprobs))
        output += [self._call(call, call.arguments, "completed") for call in answer.tool_calls]
        kind = "incomplete" if answer.finish == "length" else "completed"
        warnings = {"warnings": [moment.warning]} if moment.warning else {}
        self.final = self._response(kind, output, answer.usage, moment)
        return _ENCODE({**self.final, **warnings})

    def _response(
        self, status: str, output: list[dict[str, Any]], usage: Usage | None, moment: Moment
    ) -> dict[str, Any]:
        given = {n: self.request[n] for n in ECHOED if self.request.get(n) is not None}
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            **ECHOED,
            **given,
            "id": self.id,
            "object": "response",
            "created_at": int(self.created),
            "completed_at": None if status == "in_progress" else int(moment.at),
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": reason,
            "model": self.model,
            "output": list(output),
            "previous_response_id": self.request.get("previous_response_id") or None,
            "store": self.is_kept,
            "usage": _usage(usage) if usage else None,
        }

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        self._sequence += 1
        data = _ENCODE({"type": kind, "sequence_number": self._sequence, **fields})
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), one_line(data))

    def _part(self, kind: str, fields: dict[str, Any]) -> bytes:
        place: dict[str, Any] = {"item_id": self._item_id(), "output_index": self._index}
        if not self._open.startswith("tool"):
            place["content_index"] = 0
        return self._event(kind, {**place, **fields})

    def _item_id(self) -> str:
        prefix = {"text": "msg", "reasoning": "rs"}.get(self._open, "fc")
        return f"{prefix}_{self.id}_{max(0, self._index)}"

    def _enter(self, kind: str, item: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        left = self._leave() if self._index >= 0 else b""
        self._open = kind
        self._index += 1
        self._text, self._logprobs = [], []
        if kind in ("text", "reasoning"):
            item = {**item, "content": []}
        item["id"] = self._item_id()
        place = {"output_index": self._index, "item": item}
        shown = left + self._event("response.output_item.added", place)
        if kind == "text":
            shown += self._part("response.content_part.added", {"part": _text_part("")})
        return shown

    def _leave(self) -> bytes:
        text = "".join(self._text)
        if self._open == "text":
            item = self._message(text, "completed", self._logprobs)
            fields: dict[str, Any] = {"text": text, "logprobs": self._logprobs}
            shown = self._part("response.output_text.done", fields)
            shown += self._part("response.content_part.done", {"part": item["content"][0]})
        elif self._open == "reasoning":
            item = self._reasoning(text, "completed")
            shown = self._part("response.reasoning_text.done", {"text": text})
        else:
            index = int(self._open.removeprefix("tool "))
            call = next(c for c in self._collector.calls() if c.index == index)
            item = self._call(call, call.arguments, "completed")
            fields = {"arguments": call.arguments, "name": call.name}
            shown = self._part("response.function_call_arguments.done", fields)
        item["id"] = self._item_id()
        self._done.append(item)
        place = {"output_index": self._index, "item": item}
        self._open = ""
        return shown + self._event("response.output_item.done", place)

    def _call_piece(self, call: ToolCall) -> bytes:
        self._collector.take_call(call)
        shown = self._enter(f"tool {call.index}", self._call(call, "", "in_progress"))
        if call.arguments:
            fields = {"delta": call.arguments}
            shown += self._part("response.function_call_arguments.delta", fields)
        return shown

    def _message(
        self, text: str, status: str, logprobs: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self.id}_{max(0, self._index)}", "type": "message", "status": status,
            "role": "assistant", "content": [_text_part(text, logprobs)],
        }  # fmt: skip

    def _reasoning(self, text: str, status: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}]
        return {
            "id": f"rs_{self.id}_{max(0, self._index)}", "type": "reasoning", "summary": [],
            "content": content, "status": status,
        }  # fmt: skip

    def _call(self, call: ToolCall, arguments: str, status: str) -> dict[str, Any]:
        call_id = call.id or f"call_{self.id}_{call.index}"
        return {
            "id": f"fc_{self.id}_{call.index}", "type": "function_call", "status": status,
            "call_id": call_id, "name": call.name, "arguments": arguments,
        }  # fmt: skip


def _text_part(text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
