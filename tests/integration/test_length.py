"""An engine that says `stop` of every answer, behind the gateway: clients hear what is true."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.conftest import Serving

HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
CHAT, OLLAMA, MESSAGES = "/v1/chat/completions", "/api/chat", "/v1/messages"


def asked(path: str, tokens: int, is_stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "fake", "messages": HI, "stream": is_stream}
    if path == OLLAMA:
        return {**body, "options": {"num_predict": tokens}}
    return {**body, "max_tokens": tokens}


def reasons_in(text: str) -> list[str]:
    """The reasons that an answer, or the events of a stream, give."""
    found = []
    for line in text.splitlines():
        data = line.removeprefix("data: ")
        if not data.startswith("{"):
            continue
        told = json.loads(data)
        choice = (told.get("choices") or [{}])[0]
        found += [
            reason
            for reason in (
                choice.get("finish_reason"), told.get("done_reason"), told.get("stop_reason"),
                told.get("delta", {}).get("stop_reason"),
            )
            if reason
        ]  # fmt: skip
    return found


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("path", "expected"), [(CHAT, "length"), (OLLAMA, "length"), (MESSAGES, "max_tokens")]
)
async def test_an_answer_that_met_its_limit_says_so(
    serving: Serving, path: str, expected: str, is_stream: bool
) -> None:
    """In every dialect, once, whole and streamed; the text is all there."""
    async with (
        serving("--reason", "stop", tells_length=False) as gateway,
        gateway.client.post(path, json=asked(path, 5, is_stream)) as answer,
    ):
        assert answer.status == 200
        text = await answer.text()
    assert reasons_in(text) == [expected]
    assert text.count("data: [DONE]") == (1 if path == CHAT and is_stream else 0)


async def test_an_engine_that_tells_is_passed_on(serving: Serving) -> None:
    """Its own reason stands, whatever the count says."""
    async with (
        serving("--reason", "stop") as gateway,
        gateway.client.post(CHAT, json=asked(CHAT, 5, True)) as answer,
    ):
        assert reasons_in(await answer.text()) == ["stop"]


async def test_what_only_the_engine_can_answer_is_passed_on(serving: Serving) -> None:
    """Log-probabilities are in its own answer alone, with its own reason."""
    body = {**asked(CHAT, 5, False), "logprobs": True}
    async with (
        serving("--reason", "stop", tells_length=False) as gateway,
        gateway.client.post(CHAT, json=body) as answer,
    ):
        assert reasons_in(await answer.text()) == ["stop"]
