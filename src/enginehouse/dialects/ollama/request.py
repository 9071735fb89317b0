"""Read Ollama's chat, generate and embed requests into internal ones.

Field names and defaults are Ollama's (api/types.go, 2026).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from enginehouse.core.body import (
    INVALID,
    bool_of,
    invalid,
    list_of,
    missing,
    number_of,
    object_of,
    objects_of,
    text_of,
)
from enginehouse.core.errors import UserError

SAMPLING = {
    "seed": "seed", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p",
    "min_p": "min_p", "typical_p": "typical_p", "repeat_last_n": "repeat_last_n",
    "repeat_penalty": "repeat_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta", "num_keep": "n_keep",
}  # fmt: skip
"""Options and their names in the internal request."""
DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.0}
"""Ollama's own defaults, said so that every engine answers alike."""
FIXED = (
    "num_batch", "num_gpu", "main_gpu", "use_mmap", "use_mlock", "num_thread", "low_vram",
    "numa", "vocab_only", "f16_kv", "draft_num_predict",
)  # fmt: skip
"""Options that an engine takes when it starts; the search has chosen them."""
CHAT_ONLY = frozenset({"messages", "chat_template_kwargs", "reasoning_effort"})
CHAT_FIELDS = frozenset(
    {"model", "messages", "stream", "format", "keep_alive", "tools", "options", "think",
     "logprobs", "top_logprobs", "truncate", "shift"}
)  # fmt: skip
GENERATE_FIELDS = frozenset(
    {"model", "prompt", "suffix", "system", "template", "stream", "raw", "format", "keep_alive",
     "images", "options", "think", "logprobs", "top_logprobs", "truncate", "shift", "context"}
)  # fmt: skip
THINK_LEVELS = ("low", "medium", "high", "max")
MOST_TOP_LOGPROBS = 20
IMAGE_KINDS = (
    (b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"), (b"BM", "image/bmp"),
)  # fmt: skip


def read_options(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], int | None]:
    """Return the internal request's sampling fields, notes, and `num_ctx`."""
    options = object_of(fields, "options")
    body: dict[str, Any] = dict(DEFAULTS)
    notes = []
    for name, value in options.items():
        if value is None:
            continue
        if name in SAMPLING:
            body[SAMPLING[name]] = number_of(options, name)
        elif name == "stop":
            body["stop"] = [value] if isinstance(value, str) else list_of(options, name)
            if not all(isinstance(word, str) for word in body["stop"]):
                raise invalid("options.stop", "an array of strings", value)
        elif name == "num_predict":
            most = number_of(options, name) or -1
            if most > 0:
                body["max_tokens"] = int(most)
        elif name in FIXED:
            notes.append(f"options.{name} is chosen by the search")
        elif name != "num_ctx":
            notes.append(f"options.{name} is unknown")
    context = number_of(options, "num_ctx")
    return body, notes, int(context) if context and context > 0 else None


def read_shape(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `format`, `think`, `logprobs` mean in the internal request."""
    body: dict[str, Any] = {}
    shape = fields.get("format")
    if isinstance(shape, dict):
        schema = {"name": "answer", "schema": shape, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif shape == "json":
        body["response_format"] = {"type": "json_object"}
    elif shape not in (None, ""):
        raise UserError(
            INVALID, "invalid format: send \"json\" or a JSON schema",
            evidence=(f"format: {json.dumps(shape)[:60]}",),
            remedies=('send the word "json" or a JSON schema',),
        )  # fmt: skip
    if bool_of(fields, "logprobs", False):
        body["logprobs"] = True
        body["top_logprobs"] = max(1, read_top_logprobs(fields))  # for 0 llama-server tells none
    think = fields.get("think")
    if isinstance(think, bool):
        body["chat_template_kwargs"] = {"enable_thinking": think}
    elif isinstance(think, str) and think:
        if think not in THINK_LEVELS:
            raise UserError(
                INVALID, f"invalid think value: {json.dumps(think[:60])}",
                evidence=(f"think is a boolean or one of {', '.join(THINK_LEVELS)}",),
                remedies=(f"send true, false or one of {', '.join(THINK_LEVELS)}",),
            )  # fmt: skip
        body["chat_template_kwargs"] = {"enable_thinking": True}
        body["reasoning_effort"] = think
    elif think is not None and think != "":
        raise invalid("think", "a boolean or low, medium, high", think)
    return body


def read_top_logprobs(fields: Mapping[str, Any]) -> int:
    """Return how many alternatives are wanted for each token."""
    wanted = number_of(fields, "top_logprobs") or 0
    if not 0 <= wanted <= MOST_TOP_LOGPROBS:
        raise UserError(
            INVALID, f"top_logprobs must be between 0 and {MOST_TOP_LOGPROBS}",
            evidence=(f"top_logprobs: {wanted}",), remedies=("ask for fewer",),
        )  # fmt: skip
    return int(wanted)


def read_context(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens of the conversation so far, as an earlier answer gave them."""
    tokens = list_of(fields, "context")
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise invalid("context", "an array of tokens", tokens)
    return tuple(tokens)


def for_completions(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request for a finished prompt, in the names of that route."""
    made = {name: value for name, value in body.items() if name not in CHAT_ONLY}
    shape = made.get("response_format")
    if shape is not None:  # vLLM reads it here too; llama-server only its schema
        made["json_schema"] = shape.get("json_schema", {}).get("schema", {})
    if "top_logprobs" in made:
        made["logprobs"] = made.pop("top_logprobs")
    return made


def unknown_fields(fields: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    """Return notes for fields that mean nothing here."""
    notes = [f"{name} is not supported" for name in fields if name not in known]
    if fields.get("truncate") is True or fields.get("shift") is True:
        notes.append("truncate and shift follow the server's own policy")
    return notes


def read_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages in OpenAI's form; a tool's result is tied to the call it answers."""
    messages = []
    open_calls: list[tuple[str, str]] = []
    made = 0
    for position, message in enumerate(objects_of(fields, "messages")):
        role = text_of(message, "role")
        if not role:
            raise missing(f"messages[{position}].role", "user, assistant, system or tool")
        shown: dict[str, Any] = {"role": role, "content": text_of(message, "content")}
        images = message.get("images") or []
        if images:
            shown["content"] = content_with_images(shown["content"], images)
        if thinking := text_of(message, "thinking"):
            shown["reasoning_content"] = thinking
        calls = []
        for call in objects_of(message, "tool_calls"):
            function = object_of(call, "function")
            name = text_of(function, "name")
            id = text_of(call, "id") or f"call_{made}"
            made += 1
            open_calls.append((id, name))
            arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
            calls.append(
                {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            )
        if calls:
            shown["tool_calls"] = calls
        if role == "tool":
            shown |= _tie(message, open_calls)
        messages.append(shown)
    return messages


def _tie(message: Mapping[str, Any], open_calls: list[tuple[str, str]]) -> dict[str, Any]:
    """Say which call a tool's result answers: the named one, else the oldest open one."""
    name = text_of(message, "tool_name") or text_of(message, "name")
    id = text_of(message, "tool_call_id")
    if not id:
        id = next((i for i, n in open_calls if n == name), open_calls[0][0] if open_calls else "")
    open_calls[:] = [call for call in open_calls if call[0] != id]
    tie = {"tool_call_id": id} if id else {}
    return {**tie, "name": name} if name else tie


def content_with_images(text: str, images: object) -> list[dict[str, Any]]:
    """Return a message's content as parts: the text, then each base64 image as a data URL."""
    if not isinstance(images, list):
        raise invalid("images", "an array of base64 strings", images)
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for image in images:
        if not isinstance(image, str):
            raise invalid("images", "an array of base64 strings", image)
        data = image.rpartition("base64,")[2] if image.startswith("data:") else image
        try:
            head = base64.b64decode(data[:16], validate=True)
        except (binascii.Error, ValueError) as problem:
            raise UserError(
                INVALID, "an image is no base64",
                evidence=(str(problem),), remedies=("send the file's bytes in base64",),
            ) from problem  # fmt: skip
        kind = next((kind for magic, kind in IMAGE_KINDS if head.startswith(magic)), "image/png")
        url = f"data:{kind};base64,{data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts
