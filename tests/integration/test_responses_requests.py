"""What OpenAI's Responses let a client say, as it reaches the engine."""

from __future__ import annotations

from typing import Any

from tests.integration.conftest import Serving

CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}


def thought(*texts: str) -> dict[str, Any]:
    """A reasoning item of an earlier answer."""
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content}


async def test_thoughts_go_with_the_answer_they_led_to(serving: Serving) -> None:
    """Of calls and of messages; thoughts of nothing are left out with a word."""
    items = [
        {"role": "user", "content": "Look."},
        thought("An oak,", "perhaps."), CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "an elm"},
        thought("An elm."), {"role": "assistant", "content": "It is an elm."},
        thought(), thought("Who asks?"), {"role": "user", "content": "Thanks."},
    ]  # fmt: skip
    async with serving() as served:
        body = {"model": "fake", "input": items}
        async with served.client.post("/responses", json=body) as answer:
            assert answer.status == 200
            notes = answer.headers["x-enginehouse-notes"]
        sent = (await served.engine_state())["bodies"][-1]["messages"]
    assert [message.get("reasoning_content") for message in sent] == [
        None, "An oak,\nperhaps.", None, "An elm.", None,
    ]  # fmt: skip
    assert notes == (
        "a reasoning item without text is left out; "
        "a reasoning item that no answer follows is left out"
    )


async def test_what_an_answer_shall_include_is_asked_for_or_told(serving: Serving) -> None:
    """Logprobs become the engine's; what is not known here is named, never passed over."""
    body = {
        "model": "fake", "input": "Hi.", "top_logprobs": 2,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content",
                    "file_search_call.results"],
    }  # fmt: skip
    async with serving() as served:
        async with served.client.post("/v1/responses", json=body) as answer:
            assert answer.status == 200
            notes = answer.headers["x-enginehouse-notes"]
        sent = (await served.engine_state())["bodies"][-1]
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 2)
    assert notes == "include: file_search_call.results is not supported"
