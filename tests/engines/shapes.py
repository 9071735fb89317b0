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
        "total_tokens", "prompt_tokens_details", "cached_tokens", "delta", "error", "code",
        "param", "data",
    }
)  # fmt: skip
"""The fields of OpenAI's own API that an engine here may fill."""
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


def pruned(value: Any) -> Any:
    """Return what OpenAI's own API has of an engine's answer; an empty field is an absent one."""
    if isinstance(value, dict):
        kept = {n: pruned(v) for n, v in value.items() if n in OPENAI}
        return {n: v for n, v in kept.items() if v is not None and v != []}
    if isinstance(value, list):
        return [pruned(item) for item in value]
    return value


def additions(value: Any, path: str = "") -> set[str]:
    """Return the paths of an answer's fields that OpenAI's API has not."""
    if isinstance(value, list):
        return set().union(*(additions(item, path) for item in value))
    if not isinstance(value, dict):
        return set()
    own = {f"{path}.{name}".lstrip(".") for name in value if name not in OPENAI}
    return own.union(
        *(additions(v, f"{path}.{n}".lstrip(".")) for n, v in value.items() if n in OPENAI)
    )
