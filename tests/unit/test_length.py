"""Answers that ended at their limit, of an engine that says `stop` of every one."""

from __future__ import annotations

import pytest

from enginehouse.core.chat import Completion, Delta, Usage
from enginehouse.core.length import LengthTeller


@pytest.mark.parametrize(
    ("body", "usage", "finish", "expected"),
    [
        ({"max_tokens": 6}, Usage(37, 6), "stop", "length"),
        ({"max_tokens": 6}, Usage(37, 5), "stop", "stop"),
        ({"max_completion_tokens": 6, "max_tokens": 90}, Usage(37, 6), "stop", "length"),
        ({"max_tokens": 90}, Usage(37, 6), "stop", "stop"),
        ({}, Usage(1000, 24), "stop", "length"),
        ({}, Usage(37, 6), "stop", "stop"),
        ({"max_tokens": -1}, Usage(37, 6), "stop", "stop"),
        ({"max_tokens": 6}, Usage(37, 6), "tool_calls", "tool_calls"),
    ],
)
def test_the_count_of_tokens_tells(
    body: dict[str, int], usage: Usage, finish: str, expected: str
) -> None:
    """By the request's limit, and by the context where it is full; other reasons stand."""
    teller = LengthTeller(body, 1024)
    assert teller.whole(Completion("text", finish=finish, usage=usage)).finish == expected

    streamed = [Delta("text"), Delta(finish=finish), Delta(usage=usage)]
    shown = [LengthTeller(body, 1024)]
    pieces = [piece for delta in streamed for piece in (shown[0].take(delta),)]
    assert [piece.finish for piece in pieces if piece.finish] == [expected]
    assert "".join(piece.text for piece in pieces) == "text"
    assert shown[0].rest() is None


def test_the_reason_comes_once_with_what_else_its_piece_says() -> None:
    """The text before it is shown at once, and the stop sequence with it."""
    teller = LengthTeller({"max_tokens": 6}, 0)
    assert teller.take(Delta("a", usage=Usage(37, 1))) == Delta("a", usage=Usage(37, 1))
    assert teller.take(Delta("b", finish="stop", stopped_by=".")) == Delta("b", stopped_by=".")
    end = teller.take(Delta(usage=Usage(37, 2)))
    assert (end.finish, end.stopped_by) == ("stop", ".")


def test_a_stream_without_usage_ends_with_the_engines_reason() -> None:
    """What cannot be counted is not corrected."""
    teller = LengthTeller({"max_tokens": 1}, 0)
    assert teller.take(Delta(finish="stop")).finish == ""
    rest = teller.rest()
    assert rest is not None
    assert rest.finish == "stop"
    assert teller.rest() is None
