"""Which tools a request lets the model call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import UserError
from enginehouse.core.tools import check_choice, has_tools, narrow_choice, tell_tools
from enginehouse.dialects.anthropic.request import read_request as read_messages
from enginehouse.dialects.openai.responses import read_request as read_responses


def tool(name: str) -> dict[str, Any]:
    """A tool in the form of chat completions."""
    return {"type": "function", "function": {"name": name}}


def asking(choice: object, *names: str) -> dict[str, Any]:
    """A chat request with these tools and this choice."""
    tools = [tool(name) for name in names or ("oak", "elm")]
    message = {"role": "user", "content": "hi"}
    return {"messages": [message], "tools": tools, "tool_choice": choice}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    """A choice that allows some of the tools."""
    tools = [tool(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(
    "body",
    [
        asking("perhaps"), asking(5), asking({"type": "function", "function": {"name": "ash"}}),
        asking({"type": "function"}), asking({}), asking("auto", ""),
        asking(allowed("auto", "oak", "ash")),
    ],
    ids=["no such word", "a number", "no such tool", "no name", "nothing", "nameless tool",
         "one not there"],
)  # fmt: skip
def test_a_choice_of_nothing_is_refused(body: dict[str, Any]) -> None:
    """It never becomes a choice of everything instead."""
    with pytest.raises(UserError) as refused:
        has_tools(body)
    assert refused.value.report.id == "request.invalid"


def forms(body: dict[str, Any]) -> tuple[set[str], bool]:
    """Return the tools that the forced form has, and whether it lets the model answer."""
    told, _ = tell_tools(body)
    shape = json.dumps(told.get("response_format"))
    return {name for name in ("oak", "elm") if f'"const": "{name}"' in shape}, '"response"' in shape


@pytest.mark.parametrize(
    ("choice", "tools", "may_answer"),
    [
        (None, {"oak", "elm"}, True),
        ("auto", {"oak", "elm"}, True),
        ("required", {"oak", "elm"}, False),
        ({"type": "function", "function": {"name": "elm"}}, {"elm"}, False),
        (allowed("auto", "elm"), {"elm"}, True),
        (allowed("required", "elm", "oak"), {"oak", "elm"}, False),
        ("none", set(), False),
    ],
)
def test_a_choice_narrows_the_form(choice: object, tools: set[str], may_answer: bool) -> None:
    """The form has just the tools that may be called, and text only where that may be."""
    assert has_tools(asking(choice))
    assert forms(asking(choice)) == (tools, may_answer)


def test_a_list_of_allowed_tools_is_made_plain_for_engines() -> None:
    """What is left is what any engine reads: fewer tools and a word."""
    body = asking(allowed("required", "elm"))
    check_choice(body)
    body = narrow_choice(body)
    assert (body["tools"], body["tool_choice"]) == ([tool("elm")], "required")


def test_every_dialect_refuses_a_tool_that_is_not_offered() -> None:
    """Responses and messages name it as chat completions do."""
    named = {"name": "ash"}
    with pytest.raises(UserError, match="ash"):
        read_responses(
            {"input": "hi", "tools": [{"type": "function", "name": "oak"}],
             "tool_choice": {"type": "function", **named}}
        )  # fmt: skip
    with pytest.raises(UserError, match="ash"):
        read_messages(
            {"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "oak"}],
             "tool_choice": {"type": "tool", **named}}
        )  # fmt: skip
    body, _ = read_responses(
        {"input": "hi",
         "tools": [{"type": "function", "name": "oak"}, {"type": "function", "name": "elm"}],
         "tool_choice": {"type": "allowed_tools", "mode": "auto",
                         "tools": [{"type": "function", "name": "oak"}]}}
    )  # fmt: skip
    assert ([t["function"]["name"] for t in body["tools"]], body["tool_choice"]) == (
        ["oak"],
        "auto",
    )
