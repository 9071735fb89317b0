"""The space that a search samples: what each engine's builds may be set to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from enginehouse.core.candidate import Candidate, Setting
from enginehouse.core.engine import Lever

Value = Setting | None
"""A setting's value; None leaves it to the engine's default."""


@dataclass(frozen=True)
class Dimension:
    """One tunable and the values worth trying; the base's own value comes first."""

    name: str
    values: tuple[Value, ...]


def dimensions_of(bases: Sequence[Candidate], levers: Iterable[Lever]) -> tuple[Dimension, ...]:
    """Return the space that levers span around the bases of one engine's builds."""
    values: dict[str, dict[Value, None]] = {}
    for lever in levers:
        for step in (*lever.steps, *lever.spare, *lever.more):
            for name, value in step:
                known = values.setdefault(name, {base.get(name): None for base in bases})
                known[value] = None
    return tuple(Dimension(name, tuple(known)) for name, known in values.items())


def candidate_at(base: Candidate, point: Mapping[str, Value]) -> Candidate:
    """Return the candidate of the base's build at a point of the space."""
    return base.with_settings(**dict(point))


def point_of(candidate: Candidate, dimensions: Sequence[Dimension]) -> dict[str, Value] | None:
    """Return where in the space a candidate is, None when a value of it is not in the space."""
    point = {dimension.name: candidate.get(dimension.name) for dimension in dimensions}
    inside = all(point[d.name] in d.values for d in dimensions)
    return point if inside else None
