"""Which slot a request takes: where most of its prompt is, and a shared prefix is computed once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.prefix import (
    SHARED_BYTES,
    Action,
    Prompt,
    Seat,
    Slot,
    choose_seat,
    describe_prompt,
)

SYSTEM = ("system", b"s" * SHARED_BYTES)
SHARED = describe_prompt(b"", [SYSTEM, ("user", b"one")])
PREFIX = SHARED.prefix
EMPTY = Slot()
BUSY = Slot(is_busy=True)


@pytest.mark.parametrize(
    ("slots", "saved", "priming", "expected"),
    [
        ([EMPTY, EMPTY], (), (), Seat(0, Action.PRIME)),
        ([BUSY, EMPTY], (), (PREFIX,), Seat(-1, Action.WAIT)),
        ([BUSY, EMPTY], (PREFIX,), (), Seat(1, Action.RESTORE)),
        ([BUSY, BUSY], (PREFIX,), (), Seat(-1, Action.WAIT)),
        ([EMPTY, Slot((PREFIX, "x"), False, 3)], (PREFIX,), (), Seat(1, Action.KEEP)),
        ([Slot((PREFIX,), False, 3), Slot(SHARED.chain, False, 2)], (), (), Seat(1, Action.KEEP)),
        ([Slot(("y",), False, 5), Slot(("z",), False, 4)], (), (), Seat(1, Action.PRIME)),
    ],
)
def test_a_shared_prompt_is_seated(
    slots: list[Slot], saved: tuple[str, ...], priming: tuple[str, ...], expected: Seat
) -> None:
    """The longest common chain wins; then a copy; a prefix under way is waited for."""
    assert choose_seat(SHARED, slots, saved, priming) == expected


def test_a_prompt_with_nothing_to_share_takes_the_least_recently_used() -> None:
    """A short system prompt, or none, is never copied and never waits while a slot is idle."""
    prompt = describe_prompt(b"", [("system", b"short"), ("user", b"one")])
    assert not prompt.is_shareable
    assert not describe_prompt(b"", [("user", b"u" * 9000), ("user", b"v")]).is_shareable
    assert not describe_prompt(b"", [SYSTEM]).is_shareable
    slots = [Slot(("a",), False, 9), Slot(("b",), False, 2), BUSY]
    assert choose_seat(prompt, slots, (), ()) == Seat(1, Action.KEEP)
    assert choose_seat(Prompt(), slots, (), ()) == Seat(1, Action.KEEP)


def test_tools_are_part_of_the_prefix() -> None:
    """Two prompts with other tools share nothing, though their messages are the same."""
    with_tools = describe_prompt(b"[tools]", [SYSTEM, ("user", b"one")])
    assert with_tools.is_shareable
    assert not set(with_tools.chain) & set(SHARED.chain)


TEXTS = st.lists(st.sampled_from([b"a", b"b", b"ab", b"aa"]), min_size=1, max_size=4)


@given(TEXTS, TEXTS)
def test_chains_have_as_much_in_common_as_prompts(one: list[bytes], two: list[bytes]) -> None:
    """Entry i of two chains is equal exactly when the first i + 1 messages are equal."""
    chains = [
        describe_prompt(b"", [("user", text) for text in texts]).chain for texts in (one, two)
    ]
    for index, (mine, other) in enumerate(zip(*chains, strict=False)):
        assert (mine == other) == (one[: index + 1] == two[: index + 1])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_a_seat_is_an_idle_slot_or_a_wait_that_ends(
    shape: list[tuple[bool, int]], is_saved: bool, is_priming: bool
) -> None:
    """A busy slot is never given away; only a full house or a prefix under way makes one wait."""
    slots = [Slot((), is_busy, used) for is_busy, used in shape]
    saved, priming = ({PREFIX} if on else set() for on in (is_saved, is_priming))
    seat = choose_seat(SHARED, slots, saved, priming)
    if seat.action is Action.WAIT:
        assert all(slot.is_busy for slot in slots) or (is_priming and not is_saved)
    else:
        assert not slots[seat.slot].is_busy
