"""Read Anthropic's messages into the internal request.

Field names are Anthropic's (Messages API, version 2023-06-01).
"""

from __future__ import annotations

import json
import re
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
from enginehouse.core.chat import text_or_parts
from enginehouse.core.tools import check_choice

SAMPLING = ("temperature", "top_p", "top_k")
READ_FIELDS = frozenset(
    {"model", "messages", "max_tokens", "system", "stream", "stop_sequences", "tools",
     "tool_choice", "thinking", "metadata", "output_config", "output_format", *SAMPLING}
)  # fmt: skip


def read_request(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the internal request and notes on what is not honoured."""
    notes: list[str] = []
    system = _read_system(fields, notes)
    body: dict[str, Any] = {"messages": _with_system(system, _read_messages(fields))}
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
    notes += _read_tools(fields, body)
    thinking = object_of(fields, "thinking")
    if thinking:
        is_on = text_of(thinking, "type") in ("enabled", "adaptive")
        body["chat_template_kwargs"] = {"enable_thinking": is_on}
        if "budget_tokens" in thinking:
            notes.append("thinking.budget_tokens is not limited")
    _read_output(fields, body, notes)
    notes += [f"{name} is not supported" for name in fields if name not in READ_FIELDS]
    return body, notes


def _read_output(fields: Mapping[str, Any], body: dict[str, Any], notes: list[str]) -> None:
    """Read the form and the effort of the answer; `output_format` is the older name of the form."""
    config = object_of(fields, "output_config")
    shape = object_of(config, "format") or object_of(fields, "output_format")
    if shape:
        kind = text_of(shape, "type")
        if kind != "json_schema":
            raise unknown("output_config.format.type", kind, ("json_schema",))
        schema = object_of(shape, "schema")
        if not schema:
            raise missing("output_config.format.schema", "a JSON schema")
        named = {"name": "answer", "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    if effort := text_of(config, "effort"):
        body["reasoning_effort"] = effort
    notes += [
        f"output_config.{name} is not supported"
        for name in config
        if name not in ("format", "effort")
    ]


BILLING = re.compile(r"x-anthropic-billing-header:(\s*\w+=[^;\s]*;)*\s*")
"""What Claude Code puts before its system prompt; it differs each time, so no cache would hold."""


def _read_system(fields: Mapping[str, Any], notes: list[str]) -> list[str]:
    """Return the texts of the system prompt, without what is meant for Anthropic's accounts."""
    system = fields.get("system")
    if isinstance(system, str):
        texts = [system]
    else:
        texts = [text_of(block, "text") for block in objects_of(fields, "system")]
    if texts and (bill := BILLING.match(texts[0])):
        texts[0] = texts[0][bill.end() :]
        notes.append("the billing header in system is left out")
    return texts if any(texts) else []


def _with_system(texts: list[str], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation with one system message in front: templates take no second one there.

    Some clients send theirs as a first message instead of, or besides, `system`.
    """
    rest = list(messages)
    while rest and rest[0]["role"] == "system" and isinstance(rest[0]["content"], str):
        texts = [*texts, rest.pop(0)["content"]]
    told = "\n\n".join(text for text in texts if text)
    return [{"role": "system", "content": told}, *rest] if told else rest


BLOCKS = ("text", "image", "document", "search_result", "tool_use", "tool_result", "thinking",
          "redacted_thinking")  # fmt: skip


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
    for number, block in enumerate(blocks):
        kind = text_of(block, "type")
        _check_block(kind, block, f"messages[{position}].content[{number}]")
        if kind in SEEN:
            parts += _seen(block)
        elif kind == "tool_use":
            arguments = json.dumps(object_of(block, "input"), ensure_ascii=False)
            function = {"name": text_of(block, "name"), "arguments": arguments}
            calls.append({"id": text_of(block, "id"), "type": "function", "function": function})
        elif kind == "tool_result":
            result, pictures = _result(block)
            results.append(result)
            parts += pictures
        elif kind == "thinking":
            thoughts.append(text_of(block, "thinking"))
        elif kind != "redacted_thinking":
            raise unknown(f"messages[{position}]: a block of type", kind, BLOCKS)
    if not (parts or calls or thoughts):
        return results
    message: dict[str, Any] = {"role": role, "content": text_or_parts(parts)}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return [*results, message]


NEEDED = {
    "text": ("text",), "image": ("source",), "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",), "thinking": ("thinking",),
}  # fmt: skip
"""The fields without which a block of this type says nothing."""


def _check_block(kind: str, block: Mapping[str, Any], place: str) -> None:
    for name in NEEDED.get(kind, ()):
        if block.get(name) is None or (name in ("id", "name", "tool_use_id") and not block[name]):
            raise missing(f"{place}.{name}", f"{name} of the {kind} block")


def _image(block: Mapping[str, Any]) -> dict[str, Any]:
    source = object_of(block, "source")
    url = text_of(source, "url")
    if text_of(source, "type") == "base64":
        url = f"data:{text_of(source, 'media_type')};base64,{text_of(source, 'data')}"
    if not url.startswith("data:"):
        raise image_url("base64")
    return {"type": "image_url", "image_url": {"url": url}}


SEEN = ("text", "image", "document", "search_result")


def _seen(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of what the model shall read or look at."""
    kind = text_of(block, "type")
    if kind == "image":
        return [_image(block)]
    if kind == "text":
        return [_text(text_of(block, "text"))]
    title = [_text(text_of(block, "title"))] if block.get("title") else []
    if kind == "search_result":
        texts = [_text(text_of(part, "text")) for part in objects_of(block, "content")]
        return [*title, *texts]
    source = object_of(block, "source")
    given = text_of(source, "type")
    if given == "text":
        return [*title, _text(text_of(source, "data"))]
    if given == "content" and isinstance(source.get("content"), str):
        return [*title, _text(text_of(source, "content"))]
    if given == "content":
        return [*title, *(p for inner in objects_of(source, "content") for p in _seen(inner))]
    raise unknown("a document's source.type", given, ("text", "content"))


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _result(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a tool's result, and the pictures in it: only a user's turn has a place for these."""
    content = block.get("content")
    pictures: list[dict[str, Any]] = []
    if isinstance(content, list):
        texts = []
        for part in objects_of(block, "content"):
            if text_of(part, "type") not in SEEN:
                texts.append(json.dumps(part, ensure_ascii=False))
                continue
            for seen in _seen(part):
                if seen["type"] == "text":
                    texts.append(seen["text"])
                else:
                    pictures.append(seen)
        content = "\n".join(texts)
    text = content if isinstance(content, str) else ""
    if bool_of(block, "is_error", False):
        text = f"error: {text}"
    id = text_of(block, "tool_use_id")
    return {"role": "tool", "tool_call_id": id, "content": text}, pictures


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
    check_choice(body)
    return notes
