"""Where to look next, given everything that was measured (`core/surrogate.py`).

Nothing but the trials' records is kept: a search that goes on tells it all of them again.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from enginehouse.core.candidate import Candidate
from enginehouse.core.space import Dimension, Value, candidate_at, point_of
from enginehouse.core.surrogate import believe

MOST_POINTS = 8_000
"""A larger space is looked at in so many places, and around what was measured."""
LARGE = frozenset({"engine", "build", "quantization", "slots", "max_num_seqs", "enforce_eager"})
"""Features that were seen to change rates several times over; others change them by parts."""
OF_A_FAILURE = 0.5
"""What failed is taken to make this share of the slowest that was measured."""

Point = Mapping[str, Value]
Code = tuple[int, ...]
"""A point and its build by numbers, one a feature (see `core/surrogate.py`)."""


class Sampler:
    """The space of all builds, with what was measured in it."""

    def __init__(
        self,
        bases: Mapping[str, Candidate],
        dimensions: Mapping[str, tuple[Dimension, ...]],
        seed: int,
    ) -> None:
        """Take each build's base by digest, and each engine's dimensions by its name."""
        self._bases = dict(bases)
        self._dimensions = dict(dimensions)
        self._random = random.Random(seed)
        self._names = ("engine", "build", *dict.fromkeys(d.name for d in _all(dimensions)))
        self._numbers: dict[tuple[str, Value], int] = {}
        self._seen: set[str] = set()
        self._measured: list[tuple[Code, float]] = []
        self._is_whole = True
        self._pool: dict[str, tuple[Candidate, Code]] = {}
        for base in self._bases.values():
            self._add(base, self._points(self._dimensions[base.engine]))

    def learn(self, candidate: Candidate, rate: float) -> None:
        """Take what a candidate measured in tokens per second, 0 for one that failed."""
        self._seen.add(candidate.id)
        base = self._bases.get(candidate.build_digest)
        dimensions = self._dimensions.get(candidate.engine, ())
        point = point_of(candidate, dimensions)
        if base is None or point is None:
            return
        self._measured.append((self._code(base, point), rate))
        if not self._is_whole:
            self._add(base, _around(point, dimensions))

    def ask(self, is_allowed: Callable[[Candidate], bool]) -> Candidate | None:
        """Return the candidate that promises most of those that were not seen and are allowed.

        None when there is none. What is not allowed is not asked about again.
        """
        open_ = [(one, code) for one, code in self._pool.values() if one.id not in self._seen]
        self._random.shuffle(open_)  # so that equals have equal chances
        for number in self._by_promise([code for _, code in open_]):
            candidate = open_[number][0]
            self._seen.add(candidate.id)
            if is_allowed(candidate):
                return candidate
        return None

    def _by_promise(self, codes: Sequence[Code]) -> Sequence[int]:
        """Return the numbers of points, the one that promises most first."""
        rates = [rate for _, rate in self._measured if rate > 0]
        if not codes or not rates:
            return range(len(codes))
        least = OF_A_FAILURE * min(rates)
        logs = [math.log(max(rate, least)) for _, rate in self._measured]
        points = np.array([*(code for code, _ in self._measured), *codes], dtype=np.int16)
        large = [name in LARGE for name in self._names]
        belief = believe(points, points[: len(logs)], logs, large)
        promise = belief.improvements(float(belief.means[: len(logs)].max()))[len(logs) :]
        return [int(number) for number in np.argsort(-promise, kind="stable")]

    def _code(self, base: Candidate, point: Point) -> Code:
        """Return a point as numbers; what an engine has no setting for is left to its default."""
        features = {"engine": base.engine, "build": base.build_digest, **point}
        values = ((name, features.get(name)) for name in self._names)
        return tuple(self._numbers.setdefault(one, len(self._numbers)) for one in values)

    def _add(self, base: Candidate, points: Iterator[Point]) -> None:
        for point in points:
            candidate = candidate_at(base, point)
            self._pool.setdefault(candidate.id, (candidate, self._code(base, point)))

    def _points(self, dimensions: Sequence[Dimension]) -> Iterator[Point]:
        """Return all points of one build's space, or some of a large one."""
        names, values = [d.name for d in dimensions], [d.values for d in dimensions]
        if math.prod(map(len, values)) * len(self._bases) <= MOST_POINTS:
            yield from (dict(zip(names, one, strict=True)) for one in itertools.product(*values))
            return
        self._is_whole = False
        choices = tuple(zip(names, values, strict=True))
        for _ in range(MOST_POINTS // len(self._bases)):
            yield {name: self._random.choice(some) for name, some in choices}


def _all(dimensions: Mapping[str, Sequence[Dimension]]) -> Iterator[Dimension]:
    return itertools.chain.from_iterable(dimensions.values())


def _around(point: Point, dimensions: Sequence[Dimension]) -> Iterator[Point]:
    """Return what lies one change from a point."""
    for dimension in dimensions:
        for value in dimension.values:
            yield {**point, dimension.name: value}
