"""The answers that are kept in memory for later requests: each caller's own, and bounded.

The oldest go first, and where there is no room those of the caller that holds most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from enginehouse.core.kept import Item, Kept, Shelf, bytes_of_answer, bytes_of_item


@dataclass(frozen=True)
class KeepLimits:
    """How much is kept; an `age_s` of 0 is for ever, an `answers` of 0 keeps nothing."""

    answers: int = 1000
    bytes: int = 64 << 20
    age_s: float = 3600.0


@dataclass
class _Held:
    """One caller's answers, oldest first, and the items they share, with how many share each."""

    answers: dict[str, tuple[Kept, float]] = field(default_factory=dict)
    items: dict[str, tuple[Item, int]] = field(default_factory=dict)
    bytes: int = 0

    def put(self, kept: Kept, now: float) -> None:
        self.drop(kept.id)
        self.answers[kept.id] = kept, now
        self.bytes += bytes_of_answer(kept)
        for item in kept.items:
            known, count = self.items.get(item.id, (item, 0))
            self.items[item.id] = known, count + 1
            self.bytes += 0 if count else bytes_of_item(known)

    def drop(self, id: str) -> None:
        kept, _ = self.answers.pop(id, (None, 0.0))
        if kept is None:
            return
        self.bytes -= bytes_of_answer(kept)
        for item in kept.items:
            known, count = self.items[item.id]
            if count > 1:
                self.items[item.id] = known, count - 1
            else:
                del self.items[item.id]
                self.bytes -= bytes_of_item(known)

    def drop_oldest(self) -> None:
        self.drop(next(iter(self.answers)))


class KeptAnswers:
    """All answers that are kept, by caller."""

    def __init__(self, limits: KeepLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._by_caller: dict[str, _Held] = {}

    @property
    def bytes(self) -> int:
        """The bytes that all of them take."""
        return sum(held.bytes for held in self._by_caller.values())

    def __len__(self) -> int:
        return sum(len(held.answers) for held in self._by_caller.values())

    def shelf(self, caller: str) -> Shelf:
        """Return what a caller may point to."""
        self.expire()
        return _CallersShelf(self._by_caller.get(caller) or _Held(), self.limits)

    def keep(self, caller: str, kept: Kept) -> None:
        """Keep an answer, and let others go that there is no room for beside it."""
        if self.limits.answers <= 0:
            return
        self.expire()
        self._by_caller.setdefault(caller, _Held()).put(kept, self._clock())
        while len(self) > self.limits.answers:
            most = max(self._by_caller, key=lambda name: len(self._by_caller[name].answers))
            self._drop_oldest(most)
        while self.bytes > self.limits.bytes:
            self._drop_oldest(max(self._by_caller, key=lambda name: self._by_caller[name].bytes))

    def forget(self, caller: str, id: str) -> None:
        """Let an answer go; items that others share stay."""
        held = self._by_caller.get(caller)
        if held is not None:
            held.drop(id)
            self._tidy(caller)

    def expire(self) -> None:
        """Let go what is too old."""
        if not self.limits.age_s:
            return
        eldest = self._clock() - self.limits.age_s
        for caller, held in list(self._by_caller.items()):
            while held.answers and next(iter(held.answers.values()))[1] <= eldest:
                held.drop_oldest()
            self._tidy(caller)

    def _drop_oldest(self, caller: str) -> None:
        self._by_caller[caller].drop_oldest()
        self._tidy(caller)

    def _tidy(self, caller: str) -> None:
        if not self._by_caller[caller].answers:
            del self._by_caller[caller]


@dataclass(frozen=True)
class _CallersShelf:
    """What one caller may point to."""

    held: _Held
    limits: KeepLimits

    @property
    def is_on(self) -> bool:
        """Whether answers are kept at all."""
        return self.limits.answers > 0

    @property
    def told(self) -> str:
        """How many are kept and how long, in words."""
        if not self.is_on:
            return "no answers are kept (gateway.responses_kept is 0)"
        age = f" for {self.limits.age_s:g} s" if self.limits.age_s else ""
        size = f"{self.limits.bytes / (1 << 20):,.0f} MiB"
        return f"at most {self.limits.answers:,} answers and {size} are kept{age}, in memory"

    def answer(self, id: str) -> Kept | None:
        """Return an answer."""
        return self.held.answers.get(id, (None, 0.0))[0]

    def item(self, id: str) -> Item | None:
        """Return an item."""
        return self.held.items.get(id, (None, 0))[0]
