"""How pieces of an answer become blocks and items."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.chat import Delta, Moment, ToolCall
from enginehouse.core.dialect import Voice
from enginehouse.dialects.anthropic.voice import MessageVoice
from enginehouse.dialects.openai.responses_voice import ResponseVoice

PIECES = (
    Delta(text="See: "),
    Delta(tool_calls=(ToolCall(0, "c1", "look", '{"at":'),)),
    Delta(text="Done.", tool_calls=(ToolCall(0, arguments='"oak"}'),)),
    Delta(finish="tool_calls"),
)
"""An engine that guesses ahead sends a call's end and what follows it in one piece."""


def events_of(voice: Voice) -> list[dict[str, Any]]:
    """Render the pieces and read the events back."""
    shown = voice.begin(Moment(0))
    for piece in PIECES:
        shown += voice.delta(piece, Moment(0))
    shown += voice.end(Moment(0))
    lines = [line for line in shown.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line[6:]) for line in lines]


def test_a_text_beside_a_calls_end_leaves_the_call_whole() -> None:
    """Anthropic's blocks: the text's comes after the call's, which has all its arguments."""
    events = events_of(MessageVoice("m", "msg_1"))
    begun = [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"]
    assert begun == ["text", "tool_use", "text"]
    written = [e["delta"].get("partial_json", "") for e in events if e.get("index") == 1 and
               e["type"] == "content_block_delta"]  # fmt: skip
    assert json.loads("".join(written)) == {"at": "oak"}


def test_items_of_a_response_stay_whole_too() -> None:
    """OpenAI's items, one call between two texts."""
    final = events_of(ResponseVoice("m", "resp_1", {}, 0.0))[-1]["response"]
    kinds = [item["type"] for item in final["output"]]
    assert kinds == ["message", "function_call", "message"]
    assert json.loads(final["output"][1]["arguments"]) == {"at": "oak"}


@pytest.mark.parametrize("stopped_by", ["END", ""])
def test_thoughts_are_signed_before_their_block_ends(stopped_by: str) -> None:
    """Clients wait for a signature; a stop sequence is named where the engine names it."""
    voice = MessageVoice("m", "msg_1")
    shown = voice.begin(Moment(0)) + voice.delta(Delta(reasoning="Hm."), Moment(0))
    shown += voice.delta(Delta(text="An oak", finish="stop", stopped_by=stopped_by), Moment(0))
    shown += voice.end(Moment(0))
    events = [json.loads(x[6:]) for x in shown.decode().splitlines() if x.startswith("data: ")]
    kinds = [e["delta"]["type"] for e in events if e["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta", "signature_delta", "text_delta"]
    end = next(e for e in events if e["type"] == "message_delta")["delta"]
    wanted = ("stop_sequence", "END") if stopped_by else ("end_turn", None)
    assert (end["stop_reason"], end["stop_sequence"]) == wanted
