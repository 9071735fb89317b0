"""The shape of an answer: its JSON with every leaf replaced by its type."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

OPENAI = frozenset(
    {
        "id", "object", "created", "model", "choices", "index", "message", "role", "content",
        "refusal", "annotations", "tool_calls", "function", "name", "arguments", "type",
        "finish_reason", "logprobs", "token", "logprob", "bytes", "top_logprobs", "text",
        "text_offset", "token_logprobs", "tokens", "usage", "prompt_tokens", "completion_tokens",
        "total_tokens", "prompt_tokens_details", "cached_tokens", "delta", "error", "code", "param",
        "completion_tokens_details", "service_tier", "system_fingerprint",
    }
)  # fmt: skip
"""The fields of OpenAI's own API that an engine here may fill."""
FOREIGN = frozenset({"choices.logprobs.content.id", "choices.logprobs.content.top_logprobs.id"})
"""Not OpenAI's, though their names are."""
MAY_LACK = frozenset({"param", "system_fingerprint", "service_tier", "completion_tokens_details"})
"""What OpenAI's API leaves out or empties at will."""
FREE = frozenset({"arguments", "input", "schema"})
"""What holds a value that the model wrote."""


def shape_of(value: Any) -> Any:
    """Return the JSON with every leaf replaced by its type; equal neighbours of a list are one."""
    if isinstance(value, dict):
        return {n: shape_of(v) if n not in FREE else kind_of(v) for n, v in sorted(value.items())}
    if isinstance(value, list):
        return collapse([shape_of(item) for item in value])
    return kind_of(value)


def kind_of(value: Any) -> str:
    """Return a leaf's type as JSON calls it."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names = {str: "string", dict: "object", list: "array", type(None): "null"}
    return names[type(value)]


def collapse(shapes: Sequence[Any]) -> list[Any]:
    """Return the shapes without those that equal the one before."""
    return [s for i, s in enumerate(shapes) if not i or s != shapes[i - 1]]


def events_of(text: str) -> list[Any]:
    """Return a stream's events: JSON lines as they are, SSE with its names, `[DONE]` as text."""
    if not text.startswith(("data:", "event:")):
        return [json.loads(line) for line in text.splitlines() if line]
    events: list[Any] = []
    for block in filter(None, text.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        shown = data if data == "[DONE]" else json.loads(data)
        events.append({"event": fields["event"], "data": shown} if "event" in fields else shown)
    return events


def is_openai(path: str) -> bool:
    """Whether a field, told by its path, is one of OpenAI's API."""
    return path.rpartition(".")[2] in OPENAI and path not in FOREIGN


def pruned(value: Any, path: str = "") -> Any:
    """Return what OpenAI's own API has of an engine's answer; an empty field is an absent one."""
    if isinstance(value, list):
        return [pruned(item, path) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        name: pruned(field, at)
        for name, field, at in _fields(value, path)
        if is_openai(at) and name not in MAY_LACK
    }
    return {n: v for n, v in kept.items() if v is not None and v != []}


def additions(value: Any, path: str = "") -> set[str]:
    """Return the paths of an answer's fields that OpenAI's API has not."""
    if isinstance(value, list):
        return set().union(*(additions(item, path) for item in value))
    if not isinstance(value, dict):
        return set()
    fields = list(_fields(value, path))
    own = {at for _, _, at in fields if not is_openai(at)}
    return own.union(*(additions(field, at) for _, field, at in fields if is_openai(at)))


def _fields(value: dict[str, Any], path: str) -> list[tuple[str, Any, str]]:
    return [(name, field, f"{path}.{name}".lstrip(".")) for name, field in value.items()]


def spread(events: list[Any]) -> list[Any]:
    """Return OpenAI's chunks with one thing in each: engines put the role, the text and the reason
    together as they like, and some tell the usage unasked.
    """
    shown: list[Any] = []
    for event in events:
        if not isinstance(event, dict) or not event.get("choices"):
            shown.append(event)
            continue
        head = {n: v for n, v in event.items() if n not in ("choices", "usage")}
        for choice in event["choices"]:
            rest = {n: v for n, v in choice.items() if n not in ("delta", "text", "finish_reason")}
            pieces = [{"delta": {n: v}} for n, v in choice.get("delta", {}).items() if v]
            pieces += [{"text": choice["text"]}] if choice.get("text") else []
            if choice.get("finish_reason"):
                pieces.append({"finish_reason": choice["finish_reason"]})
            shown += [{**head, "choices": [{**rest, **piece}]} for piece in pieces]
    return shown
