"""Read OpenAI's Responses requests, with their whole input, into the internal request."""

from __future__ import annotations

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
from enginehouse.core.errors import UserError
from enginehouse.core.tools import check_choice, narrow_choice

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty",
            "frequency_penalty", "repeat_penalty", "chat_template_kwargs")  # fmt: skip
READ_FIELDS = frozenset(
    {"model", "input", "instructions", "max_output_tokens", "tools", "tool_choice", "stream",
     "parallel_tool_calls", "text", "reasoning", "metadata", "user", "stream_options",
     "top_logprobs", "prompt_cache_key", "safety_identifier", "service_tier", "store",
     "previous_response_id", *SAMPLING}
)  # fmt: skip


ITEMS = ("message", "function_call", "function_call_output", "reasoning")
PARTS = ("input_text", "output_text", "refusal", "input_image")


def read_request(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the internal request and notes on what is not honoured."""
    if fields.get("conversation"):
        raise UserError(
            "request.stateful", "conversations are not kept",
            evidence=("conversation means nothing here",),
            remedies=("send previous_response_id", "send the whole conversation as input"),
        )  # fmt: skip
    if bool_of(fields, "background", False):
        raise UserError(
            "request.stateful", "background responses are not supported",
            evidence=("background: true",), remedies=("ask for a stream",),
        )  # fmt: skip
    notes: list[str] = []
    instructions = text_of(fields, "instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    body: dict[str, Any] = {"messages": messages + _read_input(fields, notes)}
    most = number_of(fields, "max_output_tokens")
    if most is not None:
        if most < 1:
            raise invalid("max_output_tokens", "a whole number from 1", most)
        body["max_tokens"] = int(most)
    body |= {name: fields[name] for name in SAMPLING if fields.get(name) is not None}
    _read_logprobs(fields, body, notes)
    _read_tools(fields, body, notes)
    _read_format(object_of(fields, "text"), body)
    reasoning = object_of(fields, "reasoning")
    if effort := text_of(reasoning, "effort"):
        body["reasoning_effort"] = effort
        body.setdefault("chat_template_kwargs", {"enable_thinking": effort != "none"})
    if text_of(fields, "truncation") == "auto":
        notes.append("truncation follows the server's own policy")
    known = READ_FIELDS | {"truncation", "background", "include", "keep_alive", "num_ctx"}
    notes += [f"{name} is not supported" for name in fields if name not in known]
    return body, notes


LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
"""What agents ask for by habit; thoughts come in the open here, so nothing is missing."""


def _read_logprobs(fields: Mapping[str, Any], body: dict[str, Any], notes: list[str]) -> None:
    """Read what else the answer shall include: of that, the tokens' probabilities are known."""
    included = list_of(fields, "include")
    most = number_of(fields, "top_logprobs")
    if LOGPROBS in included or most:
        body["logprobs"] = True
        body["top_logprobs"] = int(most or 0)
    others = [name for name in included if name not in (LOGPROBS, ENCRYPTED)]
    notes += [f"include: {name} is not supported" for name in others]


def _read_input(fields: Mapping[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    given = fields.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input", "a string or an array of items", given)
    messages: list[dict[str, Any]] = []
    thoughts = ""
    for position, item in enumerate(objects_of(fields, "input")):
        kind = text_of(item, "type", "message")
        if kind == "message":
            role = text_of(item, "role")
            role = "system" if role == "developer" else role
            messages.append({"role": role, "content": _content(item, position)})
        elif kind == "function_call":
            _add_call(messages, item)
        elif kind == "function_call_output":
            messages.append(_output(item, position))
        elif kind == "reasoning":
            thoughts = _thoughts(item)
            if not thoughts:
                notes.append("a reasoning item without text is left out")
            continue
        else:
            raise unknown(f"input[{position}]: an item of type", kind, ITEMS)
        if thoughts and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("reasoning_content", thoughts)
        elif thoughts:
            notes.append("a reasoning item that no answer follows is left out")
        thoughts = ""
    return messages


def _thoughts(item: Mapping[str, Any]) -> str:
    """Return what an earlier turn thought, which belongs to the answer or call after it."""
    parts = objects_of(item, "content") or objects_of(item, "summary")
    return "\n".join(text_of(part, "text") for part in parts)


def _content(item: Mapping[str, Any], position: int) -> object:
    content = item.get("content")
    if isinstance(content, str):
        return content
    return _parts(objects_of(item, "content"), f"input[{position}]")


def _parts(given: list[dict[str, Any]], place: str) -> object:
    """Return an item's parts in the form of chat completions."""
    parts: list[dict[str, Any]] = []
    for part in given:
        kind = text_of(part, "type")
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": text_of(part, "text")})
        elif kind == "refusal":
            parts.append({"type": "text", "text": text_of(part, "refusal")})
        elif kind == "input_image":
            url = text_of(part, "image_url")
            if not url.startswith("data:"):
                raise image_url("a data URL")
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            raise unknown(f"{place}: a part of type", kind, PARTS)
    return text_or_parts(parts)


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """Add a tool call to the assistant's turn that it belongs to."""
    function = {"name": text_of(item, "name"), "arguments": text_of(item, "arguments", "{}")}
    call = {"id": text_of(item, "call_id"), "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})


def _output(item: Mapping[str, Any], position: int) -> dict[str, Any]:
    output = item.get("output")
    content: object = output
    if isinstance(output, list):
        content = _parts(objects_of(item, "output"), f"input[{position}].output")
    elif not isinstance(output, str):
        raise invalid(f"input[{position}].output", "a string or an array", output)
    return {"role": "tool", "tool_call_id": text_of(item, "call_id"), "content": content}


def _read_tools(fields: Mapping[str, Any], body: dict[str, Any], notes: list[str]) -> None:
    tools = []
    for tool in objects_of(fields, "tools"):
        kind = text_of(tool, "type")
        if kind != "function":
            notes.append(f"the tool {kind} runs at OpenAI and is not offered")
            continue
        names = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        tools.append({"type": "function", "function": function})
    if not tools:
        return
    body["tools"] = tools
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        kind = text_of(choice, "type")
        if kind == "function":
            named = {"name": text_of(choice, "name")}
            choice = {"type": "function", "function": named}
        elif kind != "allowed_tools":
            notes.append(f"tool_choice {kind} is not supported")
            choice = None
    if choice is not None:
        body["tool_choice"] = choice
    check_choice(body)
    body.update(narrow_choice(body))
    if isinstance(fields.get("parallel_tool_calls"), bool):
        body["parallel_tool_calls"] = fields["parallel_tool_calls"]


def _read_format(text: Mapping[str, Any], body: dict[str, Any]) -> None:
    shape = object_of(text, "format")
    kind = text_of(shape, "type", "text")
    if kind == "json_schema":
        names = ("name", "schema", "strict", "description")
        schema = {name: shape[name] for name in names if shape.get(name) is not None}
        if not object_of(shape, "schema"):
            raise missing("text.format.schema", "a JSON schema")
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif kind != "text":
        raise unknown("text.format.type", kind, ("text", "json_object", "json_schema"))
