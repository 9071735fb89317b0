"""Read Anthropic's messages into the internal request.

Field names are Anthropic's (Messages API, version 2023-06-01).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from enginehouse.core.body import (
    bool_of,
    image_url,
    invalid,
    list_of,
    missing,
    number_of,
    object_of,
    objects_of,
    text_of,
    unknown,
)

SAMPLING = ("temperature", "top_p", "top_k")
READ_FIELDS = frozenset(
    {"model", "messages", "max_tokens", "system", "stream", "stop_sequences", "tools",
     "tool_choice", "thinking", "metadata", "output_config", "output_format", *SAMPLING}
)  # fmt: skip


def read_request(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the internal request and notes on what is not honoured."""
    body: dict[str, Any] = {"messages": _read_system(fields) + _read_messages(fields)}
    most = number_of(fields, "max_tokens")
    if most is not None:
        if most < 1:
            raise invalid("max_tokens", "a whole number from 1", most)
        body["max_tokens"] = int(most)
    for name in SAMPLING:
        if (value := number_of(fields, name)) is not None:
            body[name] = value
    if stops := list_of(fields, "stop_sequences"):
        body["stop"] = stops
    notes = _read_tools(fields, body)
    _read_output(fields, body)
    thinking = object_of(fields, "thinking")
    if thinking:
        is_on = text_of(thinking, "type") in ("enabled", "adaptive")
        body["chat_template_kwargs"] = {"enable_thinking": is_on}
        if "budget_tokens" in thinking:
            notes.append("thinking.budget_tokens is not limited")
    notes += [f"{name} is not supported" for name in fields if name not in READ_FIELDS]
    return body, notes


def _read_system(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    system = fields.get("system")
    if system in (None, "", []):
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    texts = [text_of(block, "text") for block in objects_of(fields, "system")]
    return [{"role": "system", "content": "\n\n".join(texts)}]


BLOCKS = ("text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking")


def _read_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = objects_of(fields, "messages")
    if not messages:
        raise missing("messages", "at least one message")
    shown: list[dict[str, Any]] = []
    for position, message in enumerate(messages):
        role = text_of(message, "role")
        if role not in ("user", "assistant", "system"):
            raise unknown(f"messages[{position}].role", role, ("user", "assistant"))
        content = message.get("content")
        if isinstance(content, str):
            shown.append({"role": role, "content": content})
        elif isinstance(content, list):
            shown += _read_blocks(role, objects_of(message, "content"), position)
        else:
            raise invalid(f"messages[{position}].content", "a string or an array", content)
    return shown


def _read_blocks(role: str, blocks: list[dict[str, Any]], position: int) -> list[dict[str, Any]]:
    """Return the messages that one message's blocks make: tools' results come first."""
    results, parts, calls, thoughts = [], [], [], []
    for block in blocks:
        kind = text_of(block, "type")
        if kind == "text":
            parts.append({"type": "text", "text": text_of(block, "text")})
        elif kind == "image":
            parts.append(_image(block))
        elif kind == "tool_use":
            arguments = json.dumps(object_of(block, "input"), ensure_ascii=False)
            function = {"name": text_of(block, "name"), "arguments": arguments}
            calls.append({"id": text_of(block, "id"), "type": "function", "function": function})
        elif kind == "tool_result":
            results.append(_result(block))
        elif kind == "thinking":
            thoughts.append(text_of(block, "thinking"))
        elif kind != "redacted_thinking":
            raise unknown(f"messages[{position}]: a block of type", kind, BLOCKS)
    if not (parts or calls or thoughts):
        return results
    message: dict[str, Any] = {"role": role, "content": _joined(parts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [*results, message]


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return parts as one text where they are texts only: older templates know nothing else."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _image(block: Mapping[str, Any]) -> dict[str, Any]:
    source = object_of(block, "source")
    url = text_of(source, "url")
    if text_of(source, "type") == "base64":
        url = f"data:{text_of(source, 'media_type')};base64,{text_of(source, 'data')}"
    if not url.startswith("data:"):
        raise image_url("base64")
    return {"type": "image_url", "image_url": {"url": url}}


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list):
        content = "\n".join(
            text_of(part, "text") if part.get("type") == "text" else json.dumps(part)
            for part in objects_of(block, "content")
        )
    text = content if isinstance(content, str) else ""
    if bool_of(block, "is_error", False):
        text = f"error: {text}"
    return {"role": "tool", "tool_call_id": text_of(block, "tool_use_id"), "content": text}


def _read_output(fields: Mapping[str, Any], body: dict[str, Any]) -> None:
    """Read the form of the answer and the effort; `output_format` is the beta's older name."""
    config = object_of(fields, "output_config")
    name = "output_config.format" if config.get("format") else "output_format"
    shape = object_of(config, "format") or object_of(fields, "output_format")
    if shape:
        if (kind := text_of(shape, "type")) != "json_schema":
            raise unknown(f"{name}.type", kind, ("json_schema",))
        schema = object_of(shape, "schema")
        if not schema:
            raise missing(f"{name}.schema", "a JSON schema")
        wanted = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    if effort := text_of(config, "effort"):
        body["reasoning_effort"] = effort


def _read_tools(fields: Mapping[str, Any], body: dict[str, Any]) -> list[str]:
    """Put the tools into the internal request; return notes on those that cannot be offered."""
    notes, tools = [], []
    for tool in objects_of(fields, "tools"):
        kind = text_of(tool, "type", "custom")
        if kind != "custom":
            notes.append(f"the tool {kind} runs at Anthropic and is not offered")
            continue
        function = {
            "name": text_of(tool, "name"),
            "description": text_of(tool, "description"),
            "parameters": object_of(tool, "input_schema") or {"type": "object"},
        }
        tools.append({"type": "function", "function": function})
    if not tools:
        return notes
    body["tools"] = tools
    choice = object_of(fields, "tool_choice")
    kind = text_of(choice, "type", "auto")
    if kind == "tool":
        body["tool_choice"] = {"type": "function", "function": {"name": text_of(choice, "name")}}
    elif kind in ("auto", "any", "none"):
        body["tool_choice"] = {"any": "required"}.get(kind, kind)
    else:
        raise unknown("tool_choice.type", kind, ("auto", "any", "tool", "none"))
    if bool_of(choice, "disable_parallel_tool_use", False):
        body["parallel_tool_calls"] = False
    return notes
