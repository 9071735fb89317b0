"""What is kept of answers: within its limits, each caller's own, and counted right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.body import INVALID
from enginehouse.core.errors import UserError
from enginehouse.core.kept import NOTHING, Item, Kept, bytes_of_answer, bytes_of_item
from enginehouse.dialects.openai.responses_kept import keep_response, whole_request
from enginehouse.gateway.kept import KeepLimits, KeptAnswers

AGE_S = 10.0
SAID = {"type": "message", "id": "msg_resp_1_0", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "An elm."}]}  # fmt: skip


class Clock:
    """A clock that is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def answer(id: str, *before: Item, size: int = 10) -> Kept:
    """An answer with an item of its own after those before it."""
    return Kept(id, b"{}", before, (Item(f"msg_{id}", b"x" * size),))


KEEPS = st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(0, 3000), st.booleans())
STEPS = st.lists(
    st.one_of(KEEPS, st.tuples(st.sampled_from("ab"), st.integers(0, 6)), st.floats(0, AGE_S)),
    max_size=30,
)


@given(STEPS)
def test_the_limits_hold_whatever_happens(steps: list[object]) -> None:
    """Count, bytes and age, after every step; shared items are counted once, and are all there."""
    clock = Clock()
    store = KeptAnswers(KeepLimits(4, 6000, AGE_S), clock)
    born: dict[tuple[str, str], float] = {}
    for number, step in enumerate(steps):
        if isinstance(step, float):
            clock.now += step
        elif isinstance(step, tuple) and len(step) == 2:
            store.forget(step[0], f"{step[1]}")
            born.pop((step[0], f"{step[1]}"), None)
        elif isinstance(step, tuple):
            caller, name, size, is_chained = step
            newest = [id for who, id in born if who == caller][-1:]
            known = store.shelf(caller).answer(newest[0]) if newest and is_chained else None
            before = known.input + known.output if known else ()
            kept = Kept(f"{name}", b"{}", before, (Item(f"{number}", b"x" * size),))
            store.keep(caller, kept)
            born.pop((caller, f"{name}"), None)
            born[caller, f"{name}"] = clock.now
        store.expire()
        held = [(who, store.shelf(who).answer(id), at) for (who, id), at in born.items()]
        there = [(who, kept, at) for who, kept, at in held if kept is not None]
        assert len(there) == len(store) <= 4
        assert all(clock.now - at < AGE_S for _, _, at in there)
        items = {(who, item.id): item for who, kept, _ in there for item in kept.items}
        assert all(store.shelf(who).item(id) == item for (who, id), item in items.items())
        counted = sum(bytes_of_answer(kept) for _, kept, _ in there)
        counted += sum(map(bytes_of_item, items.values()))
        assert counted == store.bytes <= 6000


def test_who_holds_most_makes_room() -> None:
    """One caller's many answers push out its own, not another's."""
    store = KeptAnswers(KeepLimits(3, 1 << 20, 0.0))
    store.keep("quiet", answer("q"))
    for number in range(5):
        store.keep("loud", answer(f"l{number}"))
    assert store.shelf("quiet").answer("q") is not None
    assert [store.shelf("loud").answer(f"l{n}") is not None for n in range(5)] == [
        False, False, False, True, True,
    ]  # fmt: skip
    store.keep("loud", answer("huge", size=2 << 20))
    assert (len(store), store.shelf("quiet").answer("q") is not None) == (1, True)


def test_items_stay_as_long_as_any_answer_has_them() -> None:
    """What an answer shares with a later one outlives it."""
    store = KeptAnswers(KeepLimits())
    first = answer("1")
    store.keep("", first)
    store.keep("", answer("2", *first.output))
    store.forget("", "1")
    assert store.shelf("").answer("1") is None
    assert store.shelf("").item("msg_1") == first.output[0]
    store.forget("", "2")
    assert (store.shelf("").item("msg_1"), store.bytes, len(store)) == (None, 0, 0)


def test_what_is_sent_again_is_kept_once() -> None:
    """An answer's item that comes back unchanged is the one that is kept, a changed one is new."""
    store = KeptAnswers(KeepLimits())
    told = whole_request({"input": "Which?"}, store.shelf(""))
    store.keep("", keep_response(told, {"id": "resp_1", "output": [SAID]}))
    changed = {**SAID, "content": [{"type": "output_text", "text": "An oak."}]}
    for sent, ids in ((SAID, "msg_resp_1_0"), (changed, "msg_resp_2_in_1")):
        question = {"role": "user", "content": "Hm."}
        told = whole_request({"input": [question, sent]}, store.shelf(""))
        kept = keep_response(told, {"id": "resp_2", "output": []})
        assert [item.id for item in kept.input] == ["msg_resp_2_in_0", ids]
    with pytest.raises(UserError, match="there already") as twice:
        whole_request(
            {"previous_response_id": "resp_1", "input": [{"id": "msg_resp_1_0"}]}, store.shelf("")
        )
    assert twice.value.report.id == INVALID


def test_nothing_is_kept_where_that_is_off_or_not_wanted() -> None:
    """By the setting, and by `store: false`."""
    off = KeptAnswers(KeepLimits(answers=0))
    off.keep("", answer("1"))
    assert (len(off), off.shelf("").is_on) == (0, False)
    assert not whole_request({"input": "Hi.", "store": True}, off.shelf("")).is_kept
    assert not whole_request({"input": "Hi.", "store": True}, NOTHING).is_kept
    on = KeptAnswers(KeepLimits()).shelf("")
    assert not whole_request({"input": "Hi.", "store": False}, on).is_kept
    assert whole_request({"input": "Hi.", "store": None}, on).is_kept
    with pytest.raises(UserError, match="not found") as refused:
        whole_request({"input": [{"type": "item_reference", "id": "fc_1"}]}, off.shelf(""))
    assert "responses_kept is 0" in refused.value.report.evidence[1]
