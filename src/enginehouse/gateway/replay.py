"""What to probe an idle engine with, so that the proof costs no user a prompt cache.

A probe with a prompt of its own would take the slot of the last conversation and throw its KV
cache away; the next turn would then wait for its whole prompt again. So the last answered request
is asked again, for one token: the engine finds that prompt in its cache and computes one token.
"""

from __future__ import annotations

import msgspec

CHAT_PATH = "/v1/chat/completions"
PATHS = (CHAT_PATH, "/v1/completions")
GREETING = b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}'
ONE_TOKEN = (
    b',"stream":false,"stream_options":null,"n":1,"max_tokens":1,"n_predict":1,'
    b'"max_completion_tokens":1}'
)
"""What a repeated request ends with: the last of two equal names counts. vLLM refuses options of a
stream without a stream.
"""
BODY_LIMIT_BYTES = 1 << 20
COMPUTED_TOKENS = 16
"""More than this computed for a repeated prompt: the engine cannot take a prompt up again."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


_ANSWER = msgspec.json.Decoder(_Answer)


class Replay:
    """The request to ask again; a greeting until there is one, or where repeating costs more."""

    def __init__(self) -> None:
        self._path = ""
        self._body = b""
        self._helps: bool | None = None

    @property
    def is_first(self) -> bool:
        """Whether the next probe repeats a request and is the first to show what that costs."""
        return bool(self._body) and self._helps is None

    def note(self, path: str, body: bytes) -> None:
        """Take an answered request; large ones and other routes are not repeated."""
        if path in PATHS and len(body) <= BODY_LIMIT_BYTES and self._helps is not False:
            self._path, self._body = path, body.strip()

    def probe(self) -> tuple[str, bytes]:
        """Return the path and the body of a request for one token."""
        if not self._body:
            return CHAT_PATH, GREETING
        return self._path, self._body[:-1] + ONE_TOKEN

    def judge(self, answer: str) -> None:
        """Take a probe's answer: an engine that computed the prompt anew is not asked so again."""
        if not self._body:
            return
        try:
            usage = _ANSWER.decode(answer.encode()).usage
        except (msgspec.MsgspecError, UnicodeEncodeError):
            return
        details = usage.prompt_tokens_details or _Details()
        self._helps = usage.prompt_tokens - (details.cached_tokens or 0) <= COMPUTED_TOKENS
        if not self._helps:
            self._path, self._body = "", b""
