"""What is wrong with a machine for serving models, ranked by how much it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from enginehouse.core.conditions import Condition, fill, holds
from enginehouse.core.facts import Facts

COSTS = {
    3: "stops serving, or can take the machine down",
    2: "costs much of the memory or the speed",
    1: "costs some, or will cost later",
}
"""What the ranks of a problem's cost mean."""


@dataclass(frozen=True)
class Rule:
    """When something is a problem, what it costs, and what to do: one entry of `knowledge/machine`.

    It is one when all of `when` hold and none of `unless` does. `each` names a group (`gpu`,
    `engine`, `image`): the rule is then asked for every member, whose name stands for `group.*`.
    Texts hold places for facts. `status` is observed, reported or inferred.
    """

    id: str
    cost: int
    what: str
    costs: str
    evidence: str
    remedies: tuple[str, ...]
    when: tuple[Condition, ...]
    sources: tuple[str, ...]
    status: str
    checked: str
    unless: tuple[Condition, ...] = ()
    each: str = ""


@dataclass(frozen=True)
class Problem:
    """One problem of this machine: its rank (3 the worst), what it is and costs, what to do."""

    id: str
    cost: int
    what: str
    costs: str
    evidence: str
    remedies: tuple[str, ...]
    sources: tuple[str, ...] = ()
    status: str = ""
    checked: str = ""


def find_problems(facts: Facts, rules: Iterable[Rule]) -> tuple[Problem, ...]:
    """Return the problems that the facts show, the most costly first."""
    found = [
        _problem(meant, facts)
        for rule in rules
        for meant in _for_each(rule, facts)
        if all(holds(condition, facts) for condition in meant.when)
        and not any(holds(condition, facts) for condition in meant.unless)
    ]
    return tuple(sorted(found, key=lambda problem: -problem.cost))


def _problem(rule: Rule, facts: Facts) -> Problem:
    return Problem(
        rule.id,
        rule.cost,
        fill(rule.what, facts),
        fill(rule.costs, facts),
        fill(rule.evidence, facts),
        tuple(fill(remedy, facts) for remedy in rule.remedies),
        rule.sources,
        rule.status,
        rule.checked,
    )


def _for_each(rule: Rule, facts: Facts) -> Sequence[Rule]:
    """Return the rule once, or once for each member of its group."""
    if not rule.each:
        return (rule,)
    return [_meaning(rule, f"{rule.each}.*", member) for member in facts.members(rule.each)]


def _meaning(rule: Rule, star: str, member: str) -> Rule:
    def name(text: str) -> str:
        return text.replace(star, member)

    def conditions(kept: tuple[Condition, ...]) -> tuple[Condition, ...]:
        return tuple(replace(c, fact=name(c.fact), of=name(c.of)) for c in kept)

    return replace(
        rule,
        what=name(rule.what),
        costs=name(rule.costs),
        evidence=name(rule.evidence),
        remedies=tuple(map(name, rule.remedies)),
        when=conditions(rule.when),
        unless=conditions(rule.unless),
    )
