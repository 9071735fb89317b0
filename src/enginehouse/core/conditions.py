"""Conditions on facts, as data: what reviewed knowledge says about when something is a problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from enginehouse.core.facts import Fact, Facts, Value, show_value


@dataclass(frozen=True)
class Condition:
    """`fact` compared by `operator` with `value`, which is multiplied by the fact `of` if given.

    A condition on a fact that is not known never holds (except `known = false`): what is unknown
    is no evidence.
    """

    fact: str
    operator: str
    value: Value
    of: str = ""


def parts_of(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, so that `36.4.10` comes after `36.4.9`."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _number(value: Value) -> float:
    if isinstance(value, (str, tuple)):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


OPERATORS: Mapping[str, Callable[[Value, Value], bool]] = {
    "is": lambda fact, value: fact == value,
    "is_not": lambda fact, value: fact != value,
    "one_of": lambda fact, value: isinstance(value, tuple) and fact in value,
    "contains": lambda fact, value: isinstance(fact, (str, tuple)) and str(value) in fact,
    "lacks": lambda fact, value: isinstance(fact, (str, tuple)) and str(value) not in fact,
    "below": lambda fact, value: _number(fact) < _number(value),
    "above": lambda fact, value: _number(fact) > _number(value),
    "version_below": lambda fact, value: parts_of(str(fact)) < parts_of(str(value)),
    "version_from": lambda fact, value: parts_of(str(fact)) >= parts_of(str(value)),
}
"""Every operator by its name in a condition; `known` stands apart."""


def holds(condition: Condition, facts: Facts) -> bool:
    """Whether a condition holds."""
    value = facts.get(condition.fact)
    if condition.operator == "known":
        return (value is not None) == condition.value
    if value is None:
        return False
    against = condition.value
    if condition.of:
        other = facts.number(condition.of)
        if other is None:
            return False
        against = _number(against) * other
    try:
        return OPERATORS[condition.operator](value, against)
    except TypeError:
        return False


PLACE = re.compile(r"\{([A-Za-z0-9_.*]+)(?::(\w+))?\}")
"""A place in a text that a fact fills: `{memory.free_bytes:size}`."""


def _size(fact: Fact) -> str:
    return show_size(fact.value) if isinstance(fact.value, (int, float)) else str(fact.value)


FORMS: Mapping[str, Callable[[Fact], str]] = {
    "": lambda fact: show_value(fact.value),
    "size": _size,
    "mhz": lambda fact: f"{float(str(fact.value)) / 1e6:.0f} MHz",
}
"""How a fact is written into a text."""


def fill(text: str, facts: Facts) -> str:
    """Fill a text's places with facts; what is not known is written as `unknown`."""

    def write(match: re.Match[str]) -> str:
        fact = facts.fact(match[1])
        return (FORMS[match[2] or ""](fact) or "none") if fact else "unknown"

    return PLACE.sub(write, text)


def show_size(size: float) -> str:
    """Show bytes in the largest unit that leaves a number of at least 1.

    >>> show_size(13 << 30), show_size(300 << 20)
    ('13.0 GiB', '300 MiB')
    """
    if size >= 1 << 40:
        return f"{size / 2**40:.1f} TiB"
    if size >= 1 << 30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB"
