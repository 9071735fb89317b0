"""Tool calls for models and engines that have none of their own.

A chat template that knows no tools drops them in silence, and so does the engine above it. Then the
tools are told in the system prompt, the answer's form is forced by a JSON schema (every engine here
has grammars), and what comes is read back into text and tool calls. Conversations with earlier
calls and results are told in words that any template passes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from enginehouse.core.body import invalid, missing, object_of, objects_of, text_of, unknown
from enginehouse.core.chat import Completion, Delta, ToolCall

CALL, CALLS, RESPONSE = "tool_call", "tool_calls", "response"
CHOICES = ("auto", "none", "required")
MOST_CALLS = 8
HEAD = re.compile(r'\s*\{\s*"(tool_calls?|response)"\s*:\s*')
ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?$|\\(u[0-9a-fA-F]{0,3})?$"
)
"""What may stand at the end of a piece of a JSON string and only makes sense with what follows."""


def has_tools(body: Mapping[str, Any]) -> bool:
    """Whether a request has tools, or a conversation in which some were used.

    Raises:
        UserError: `request.invalid`, for those that are none.
    """
    _check(body)
    return bool(body.get("tools")) or any(
        message.get("tool_calls") or message.get("role") == "tool"
        for message in body.get("messages", ())
    )


def _check(body: Mapping[str, Any]) -> None:
    """Refuse tools and messages of a form that cannot be read."""
    for position, tool in enumerate(objects_of(body, "tools")):
        if (kind := text_of(tool, "type", "function")) != "function":
            raise unknown(f"tools[{position}].type", kind, ("function",))
        function = object_of(tool, "function")
        text_of(function or tool, "name")
    for message in objects_of(body, "messages"):
        for call in objects_of(message, "tool_calls"):
            object_of(call, "function")
    shape = object_of(body, "response_format")
    if text_of(shape, "type") == "json_schema":
        object_of(object_of(shape, "json_schema"), "schema")
    if body.get("tools"):
        check_choice(body)


def check_choice(body: Mapping[str, Any]) -> None:
    """Refuse tools without a name, and a `tool_choice` that means none of them.

    Raises:
        UserError: `request.invalid`.
    """
    names = [str(_function(tool).get("name") or "") for tool in body["tools"]]
    if "" in names:
        raise missing(f"tools[{names.index('')}]: the function's name", "a name")
    choice = body.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in CHOICES:
            raise unknown("tool_choice", choice, CHOICES)
        return
    if not isinstance(choice, dict):
        raise invalid("tool_choice", "a string or an object", choice)
    for wanted in _allowed(choice)[1]:
        if wanted not in names:
            raise unknown("tool_choice: the tool", wanted, tuple(names))


def _allowed(choice: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return whether a choice in form of an object asks for a call, and of which tools."""
    kind = text_of(choice, "type", "function")
    if kind not in ("function", "allowed_tools"):
        raise unknown("tool_choice.type", kind, ("function", "allowed_tools"))
    if kind == "function":
        named = object_of(choice, "function") or choice
        return "required", (text_of(named, "name"),)
    given = object_of(choice, "allowed_tools") or choice
    tools = [object_of(tool, "function") or tool for tool in objects_of(given, "tools")]
    return text_of(given, "mode", "auto"), tuple(text_of(tool, "name") for tool in tools)


def narrow_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request whose `tool_choice` is a word: the tools are only those that it names.

    llama-server (b11549) reads an object there as `auto`, so it would call any tool or none, and
    few engines know `allowed_tools`.

    Raises:
        UserError: `request.invalid`, for a choice that names no tool of the request.
    """
    choice = body.get("tool_choice")
    if not isinstance(choice, dict):
        return dict(body)
    tools = objects_of(body, "tools")
    mode, wanted = _allowed(choice)
    if not tools:
        raise unknown("tool_choice: the tool", ", ".join(wanted), ("no tools are given",))
    check_choice(body)
    kept = [tool for tool in tools if _function(tool)["name"] in wanted]
    return {**body, "tools": kept, "tool_choice": mode if kept else "none"}


def tell_tools(body: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a request that tells its tools in words, and whether its answer is in our own form."""
    body = narrow_choice(body)
    told = {n: v for n, v in body.items()
            if n not in ("tools", "tool_choice", "parallel_tool_calls")}  # fmt: skip
    messages = [_in_words(message) for message in body["messages"]]
    choice = body.get("tool_choice") or "auto"
    tools = list(body.get("tools") or ())
    if not tools or choice == "none":
        return {**told, "messages": messages}, False
    is_parallel = body.get("parallel_tool_calls") is True
    answer = _answer_schema(body)
    may_answer = choice == "auto"
    schema = _schema(tools, answer if may_answer else None, is_parallel)
    told["messages"] = _with_system(messages, _instructions(tools, may_answer, is_parallel))
    told["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
    return told, True


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, dict) else tool


def _answer_schema(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an answer that is no tool call: what the request asks for, or text."""
    shape = body.get("response_format") or {}
    if shape.get("type") == "json_schema":
        return dict((shape.get("json_schema") or {}).get("schema") or {"type": "object"})
    return {"type": "object"} if shape.get("type") == "json_object" else {"type": "string"}


def _schema(tools: list[Any], answer: dict[str, Any] | None, is_parallel: bool) -> dict[str, Any]:
    roots: dict[str, Any] = {}
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": _function(tool)["name"]},
                "arguments": _rooted(
                    _function(tool).get("parameters") or {"type": "object"}, f"tool_{place}", roots
                ),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for place, tool in enumerate(tools)
    ]
    call: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if is_parallel:
        name, value = CALLS, {
            "type": "array", "items": call, "minItems": 1, "maxItems": MOST_CALLS
        }  # fmt: skip
    else:
        name, value = CALL, call
    shapes = [_only(name, value)]
    if answer is not None:
        shapes.append(_only(RESPONSE, _rooted(answer, RESPONSE, roots)))
    whole = shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
    return {**whole, "$defs": roots} if roots else whole


def _rooted(schema: Any, name: str, roots: dict[str, Any]) -> Any:
    """Return a schema fit to stand within ours: what refers to its own root is kept in `roots`.

    `#/$defs/Tree` is read from the root of the whole, which is ours; `#/$defs/<name>/$defs/Tree`
    is where the same stands then.
    """
    moved = _moved(schema, f"#/$defs/{name}")
    if moved == schema:
        return schema
    roots[name] = moved
    return {"$ref": f"#/$defs/{name}"}


def _moved(node: Any, root: str) -> Any:
    """Return a schema whose references to its root, `#` or `#/…`, point to another place."""
    if isinstance(node, list):
        return [_moved(child, root) for child in node]
    if not isinstance(node, dict):
        return node
    shown = {name: _moved(child, root) for name, child in node.items()}
    to = shown.get("$ref")
    if isinstance(to, str) and (to == "#" or to.startswith("#/")):
        shown["$ref"] = root + to[1:]
    return shown


def _only(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: value},
        "required": [name],
        "additionalProperties": False,
    }


def _instructions(tools: list[Any], may_answer: bool, is_parallel: bool) -> str:
    shown = [
        json.dumps(
            {n: _function(tool)[n] for n in ("name", "description", "parameters")
             if _function(tool).get(n)},
            ensure_ascii=False,
        )
        for tool in tools
    ]  # fmt: skip
    one = '{"name": "<tool>", "arguments": {…}}'
    form = f'{{"{CALLS}": [{one}, …]}}' if is_parallel else f'{{"{CALL}": {one}}}'
    text = "You can use these tools:\n" + "\n".join(shown)
    text += f"\nTo use a tool, write only JSON of this form: {form}"
    if may_answer:
        text += f'\nTo answer without a tool, write only: {{"{RESPONSE}": "<your answer>"}}'
    return text


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0].get("role") in ("system", "developer"):
        first = messages[0]
        content = first.get("content")
        if isinstance(content, list):
            content = "\n".join(str(part.get("text", "")) for part in content)
        return [{**first, "content": f"{content or ''}\n\n{text}".strip()}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _in_words(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without what a template without tools would drop."""
    if message.get("tool_calls"):
        calls = [
            {"name": function.get("name"), "arguments": _parsed(function.get("arguments"))}
            for function in map(_function, message["tool_calls"])
        ]
        written = {CALL: calls[0]} if len(calls) == 1 else {CALLS: calls}
        text = json.dumps(written, ensure_ascii=False)
        said = message.get("content")
        content = f"{said}\n{text}" if isinstance(said, str) and said else text
        return {"role": "assistant", "content": content}
    if message.get("role") == "tool":
        name = message.get("name")
        of = f" of {name}" if name else ""
        return {"role": "user", "content": _result(f"Result{of}:", message.get("content"))}
    shown = dict(message)
    shown.pop("tool_calls", None)
    return shown


def _result(title: str, content: object) -> str | list[dict[str, Any]]:
    """Return a tool's result under its title; images stay parts."""
    parts = content if isinstance(content, list) else []
    if any(isinstance(part, dict) and part.get("type") == "image_url" for part in parts):
        return [{"type": "text", "text": title}, *parts]
    return f"{title} {_text(content)}"


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(p.get("text", p)) if isinstance(p, dict) else str(p) for p in content)
    return "" if content is None else str(content)


def _parsed(arguments: object) -> object:
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except ValueError:
            return arguments
    return arguments or {}


class ToolReader:
    """Reads an answer in our own form back into text and tool calls, piece by piece."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._raw = ""
        self._kind = ""
        self._pending = ""
        self._is_text = False
        self._has_ended = False

    def take(self, delta: Delta) -> Delta:
        """Return what a piece says: an answer's text as it comes, tool calls at the end."""
        text = self._take_text(delta.text) if delta.text else ""
        calls: tuple[ToolCall, ...] = ()
        finish = delta.finish
        if finish:
            calls, rest = self._end()
            text += rest
            if calls and finish == "stop":
                finish = "tool_calls"
        return replace(delta, text=text, tool_calls=calls, finish=finish, logprobs=())

    def whole(self, completion: Completion) -> Completion:
        """Return a whole answer, read."""
        delta = self.take(Delta(text=completion.text, finish=completion.finish))
        return replace(
            completion, text=delta.text, tool_calls=delta.tool_calls, finish=delta.finish,
            logprobs=(),
        )  # fmt: skip

    def _take_text(self, piece: str) -> str:
        self._raw += piece
        if not self._kind:
            head = HEAD.match(self._raw)
            if head is None:
                return ""
            rest = self._raw[head.end() :]
            if head[1] == RESPONSE and not rest:
                return ""
            self._kind = head[1]
            self._is_text = self._kind == RESPONSE and rest.startswith('"')
            if not self._is_text:
                return ""
            piece = rest[1:]
        return self._decode(piece) if self._is_text else ""

    def _decode(self, piece: str) -> str:
        """Return the characters of a JSON string that are complete."""
        if self._has_ended:
            return ""
        self._pending += piece
        end = _closing_quote(self._pending)
        if end >= 0:
            self._has_ended = True
            safe, self._pending = self._pending[:end], ""
        else:
            half = ESCAPE.search(self._pending)
            cut = half.start() if half and not _is_escaped(self._pending, half.start()) else None
            safe = self._pending[:cut]
            self._pending = "" if cut is None else self._pending[cut:]
        return _unescaped(safe)

    def _end(self) -> tuple[tuple[ToolCall, ...], str]:
        if self._is_text:
            return (), _unescaped(self._pending) if self._pending else ""
        try:
            said = json.loads(self._raw)
        except ValueError:
            return (), self._raw  # cut off, or no JSON: shown as it is, not dropped
        if not isinstance(said, dict):
            return (), self._raw
        if RESPONSE in said:
            return (), json.dumps(said[RESPONSE], ensure_ascii=False)
        calls = said.get(CALLS) or ([said[CALL]] if CALL in said else [])
        return tuple(
            ToolCall(
                index,
                f"call_{self._id}_{index}",
                str(call.get("name")),
                json.dumps(call.get("arguments") or {}, ensure_ascii=False),
            )
            for index, call in enumerate(calls)
        ), ""


def _closing_quote(text: str) -> int:
    position = text.find('"')
    while position >= 0 and _is_escaped(text, position):
        position = text.find('"', position + 1)
    return position


def _is_escaped(text: str, position: int) -> bool:
    """Whether an odd number of backslashes stands before a position."""
    before = position
    while before > 0 and text[before - 1] == "\\":
        before -= 1
    return (position - before) % 2 == 1


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text
