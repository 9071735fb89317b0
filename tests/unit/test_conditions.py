"""Conditions on facts, and problems made of them."""

from __future__ import annotations

import pytest

from enginehouse.core.conditions import Condition, fill, holds
from enginehouse.core.doctor import Rule, find_problems
from enginehouse.core.facts import Fact, Facts, Value

FACTS = Facts(
    (
        Fact("jetson.l4t", "36.4.10", "test"),
        Fact("memory.total_bytes", 16 << 30, "test"),
        Fact("memory.free_bytes", 1 << 30, "test"),
        Fact("cpu.isa", ("avx2", "avx512f"), "test"),
        Fact("gpu.0.name", "one", "test"),
        Fact("gpu.0.free", 1, "test"),
        Fact("gpu.1.name", "two", "test"),
        Fact("gpu.1.free", 9, "test"),
    )
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Condition("jetson.l4t", "is", "36.4.10"), True),
        (Condition("jetson.l4t", "is_not", "36.4.7"), True),
        (Condition("jetson.l4t", "one_of", ("36.4.7", "36.4.10")), True),
        (Condition("jetson.l4t", "version_below", "36.4.9"), False),
        (Condition("jetson.l4t", "version_from", "36.4.9"), True),
        (Condition("cpu.isa", "contains", "avx2"), True),
        (Condition("cpu.isa", "contains", "avx"), False),
        (Condition("cpu.isa", "lacks", "asimd"), True),
        (Condition("memory.free_bytes", "below", 2 << 30), True),
        (Condition("memory.free_bytes", "above", 0.1, "memory.total_bytes"), False),
        (Condition("memory.free_bytes", "below", 0.1, "memory.total_bytes"), True),
        (Condition("memory.free_bytes", "below", 0.1, "memory.unheard_of"), False),
        (Condition("jetson.l4t", "below", 40), False),
        (Condition("jetson.l4t", "known", True), True),
        (Condition("memory.unheard_of", "known", False), True),
    ],
)
def test_conditions(condition: Condition, expected: bool) -> None:
    """Each operator says what its name says; versions are compared by their numbers."""
    assert holds(condition, FACTS) is expected


@pytest.mark.parametrize(
    "operator", ["is", "is_not", "one_of", "contains", "lacks", "below", "above", "version_below"]
)
def test_what_is_unknown_is_no_evidence(operator: str) -> None:
    """No condition holds on a fact that is not known, not even a negative one."""
    value: Value = 1 if operator in ("below", "above") else "x"
    assert not holds(Condition("nobody.knows", operator, value), FACTS)


def test_fill_writes_facts_into_texts() -> None:
    """A place becomes its fact, in its form; what is not known is said to be unknown."""
    text = "{memory.free_bytes:size} of {memory.total_bytes:size}, {cpu.isa}, {nobody.knows}"
    assert fill(text, FACTS) == "1.0 GiB of 16.0 GiB, avx2, avx512f, unknown"


def rule(**changes: object) -> Rule:
    """A rule about GPUs."""
    fields: dict[str, object] = {
        "id": "gpu.short", "cost": 2, "what": "{gpu.*.name} is short", "costs": "all",
        "evidence": "{gpu.*.free}", "remedies": ("{gpu.*.name}: less",),
        "when": (Condition("gpu.*.free", "below", 5),), "sources": (), "status": "observed",
        "checked": "2026-11-25", "each": "gpu",
    }  # fmt: skip
    return Rule(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_rule_is_asked_for_each_member_of_its_group() -> None:
    """`each` makes one problem for every member that it holds for, and names that one."""
    found = find_problems(FACTS, [rule()])
    assert [(p.what, p.evidence, p.remedies) for p in found] == [
        ("one is short", "1", ("one: less",))
    ]


def test_unless_takes_a_problem_away() -> None:
    """A problem whose exception holds is none."""
    assert not find_problems(FACTS, [rule(unless=(Condition("jetson.l4t", "known", True),))])


def test_problems_are_ranked_by_cost() -> None:
    """The most costly comes first; equal ones keep their order."""
    rules = [rule(id="a", cost=1), rule(id="b", cost=3), rule(id="c", cost=1)]
    assert [problem.id for problem in find_problems(FACTS, rules)] == ["b", "a", "c"]
