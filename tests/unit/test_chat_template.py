"""What a template's text tells."""

from __future__ import annotations

import pytest

from enginehouse.core.chat_template import template_of


@pytest.mark.parametrize(
    ("text", "has_tools", "dialect"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False, ""),
        ("{% if tools %}<tool_call>{% endif %}", True, "hermes"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", True, "mistral"),
        ("{{ tools }}<|python_tag|>", True, "llama 3"),
        ("{{ tools }}<|channel|>to=functions", True, "harmony"),
        ("{{ if .Tools }}{{ .Messages }}{{ end }}", True, ""),
        ("{{ toolset }}", False, ""),
    ],
)
def test_tools_are_found(text: str, has_tools: bool, dialect: str) -> None:
    """A template that uses `tools` supports them, in the form that its marks tell."""
    found = template_of(text, "the file")
    assert found is not None
    assert (found.has_tools, found.dialect, found.bytes) == (has_tools, dialect, len(text))


def test_none_and_one_that_is_too_long() -> None:
    """No template is None; one that was not kept has its length only."""
    assert template_of("", "the file") is None
    long = template_of("", "the file", 5_000_000)
    assert long is not None
    assert (long.bytes, long.has_tools) == (5_000_000, False)
