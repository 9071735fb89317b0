"""What the gateway looks at in a request that goes to the engine as it is."""

from __future__ import annotations

import msgspec

from enginehouse.core.body import DEEPEST, not_json, read_object


class Peek(msgspec.Struct):
    """The few fields that the gateway itself looks at in a forwarded request."""

    model: str | None = None
    stream: bool | None = None
    num_ctx: int | None = None
    keep_alive: float | str | None = None
    n: int | None = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    tool_choice: msgspec.Raw = msgspec.Raw(b"")

    @property
    def has_no_messages(self) -> bool:
        """Whether the conversation is an empty array, which some engines answer all the same."""
        few = bytes(self.messages) if len(self.messages) < 64 else b"..."
        return few.translate(None, b" \t\r\n") == b"[]"


_PEEK = msgspec.json.Decoder(Peek)


def peek_at(body: bytes) -> Peek:
    """Read what the gateway looks at; the rest must be text, and no deeper than may be read.

    Raises:
        UserError: `request.not_json`.
    """
    try:
        peek = _PEEK.decode(body)
        if not body.isascii():
            body.decode("utf-8")
    except RecursionError as problem:
        raise not_json("it is nested too deeply") from problem
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise not_json(str(problem)) from problem
    if body.count(b"[") + body.count(b"{") > DEEPEST:
        read_object(body)
    return peek
