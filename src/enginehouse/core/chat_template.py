"""What a chat template supports, as far as its text tells."""

from __future__ import annotations

import re

from enginehouse.core.model import Template

DIALECTS = (
    ("harmony", ("<|channel|>", "to=functions")),
    ("llama 3", ("<|python_tag|>",)),
    ("llama 3 json", ("<|start_header_id|>", '"parameters"')),
    ("mistral", ("[TOOL_CALLS]",)),
    ("qwen coder xml", ("<function=", "<parameter=")),
    ("hermes", ("<tool_call>",)),
    ("deepseek", ("<｜tool▁call",)),
    ("command-r", ("<|START_ACTION|>",)),
    ("functionary", (">>>all",)),
    ("granite", ("<|tool_call|>",)),
    ("phi", ("<|tool|>",)),
)
"""How a tool call looks on the wire, by what marks it in the template; the first that has all."""

_TOOLS = re.compile(r"\btools\b|\bToolCalls\b|\.Tools\b|\btool_calls\b")
_THINKING = re.compile(
    r"enable_thinking|reasoning_content|\bthinking\b|<think>|\.Thinking\b|<\|channel\|>"
)
_SYSTEM = re.compile(r"['\"]system['\"]|\.System\b|system_message|messages\[0\]\[?['\".]?\w*")


def template_of(text: str, origin: str, bytes_when_not_kept: int = 0) -> Template | None:
    """Return what a template's text tells, None when there is none.

    `origin` says where it stands; a template that was too long to keep has only its length.
    """
    if not text:
        return Template(bytes_when_not_kept, origin=origin) if bytes_when_not_kept else None
    has_tools = bool(_TOOLS.search(text))
    return Template(
        bytes=len(text.encode(errors="replace")),
        has_tools=has_tools,
        has_system=bool(_SYSTEM.search(text)),
        has_thinking=bool(_THINKING.search(text)),
        dialect=_dialect(text) if has_tools else "",
        origin=origin,
    )


def _dialect(text: str) -> str:
    return next((name for name, marks in DIALECTS if all(mark in text for mark in marks)), "")
