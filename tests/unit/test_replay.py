"""An idle engine is asked its last request again, unless that costs it a prompt."""

from __future__ import annotations

import json

from enginehouse.gateway.replay import GREETING, Replay

CHAT = "/v1/chat/completions"
BODY = b' {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9, "stream": true} '


def answer(prompt: int, cached: int) -> str:
    usage = {"prompt_tokens": prompt, "prompt_tokens_details": {"cached_tokens": cached}}
    return json.dumps({"choices": [], "usage": usage})


def test_the_last_request_is_asked_for_one_token() -> None:
    """The prompt is the same, the answer is one token and no stream."""
    replay = Replay()
    assert replay.probe() == (CHAT, GREETING)
    replay.note(CHAT, BODY)
    path, body = replay.probe()
    asked = json.loads(body)
    assert (path, asked["messages"]) == (CHAT, json.loads(BODY)["messages"])
    assert (asked["max_tokens"], asked["stream"]) == (1, False)


def test_the_first_repetition_shows_whether_it_is_cheap() -> None:
    """An engine that computes the prompt anew is greeted instead from then on."""
    cheap, dear = Replay(), Replay()
    for replay, cached in ((cheap, 899), (dear, 0)):
        replay.note(CHAT, BODY)
        assert replay.is_first
        replay.judge(answer(900, cached))
        assert not replay.is_first
        replay.note(CHAT, BODY)
    assert cheap.probe()[1] != GREETING
    assert dear.probe()[1] == GREETING


def test_other_routes_and_giant_requests_are_not_repeated() -> None:
    """Only chats and completions of a bounded size are repeated."""
    replay = Replay()
    replay.note("/v1/embeddings", b'{"input": "x"}')
    replay.note(CHAT, b"{" + b" " * (2 << 20) + b"}")
    assert replay.probe() == (CHAT, GREETING)
