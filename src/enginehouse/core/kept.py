"""Answers that later requests may point to: what is kept of one, and how a dialect looks it up.

An answer and the items around it are kept as JSON, so that their size is known and nobody changes
them. The items of a conversation are shared by all its answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

OVERHEAD_BYTES = 400
"""What Python spends on an answer or an item beside its JSON, and on their names."""
PER_ITEM_BYTES = 16
"""What an answer spends on pointing to an item."""


@dataclass(frozen=True)
class Item:
    """One item of a conversation, as JSON; one id always means the same item."""

    id: str
    data: bytes


@dataclass(frozen=True)
class Kept:
    """One answer: its own JSON without the output, and the items before and in it."""

    id: str
    head: bytes
    input: tuple[Item, ...]
    output: tuple[Item, ...]

    @property
    def items(self) -> Iterator[Item]:
        """All of its items."""
        yield from self.input
        yield from self.output


def bytes_of_answer(kept: Kept) -> int:
    """Return what an answer takes beside its items."""
    items = len(kept.input) + len(kept.output)
    return len(kept.head) + OVERHEAD_BYTES + PER_ITEM_BYTES * items


def bytes_of_item(item: Item) -> int:
    """Return what an item takes, once for all answers that it is part of."""
    return len(item.data) + OVERHEAD_BYTES


class Shelf(Protocol):
    """The answers that one caller may point to."""

    @property
    def is_on(self) -> bool:
        """Whether answers are kept at all."""

    @property
    def told(self) -> str:
        """How many are kept and how long, in words."""

    def answer(self, id: str) -> Kept | None:
        """Return an answer, None where it is unknown, too old, or somebody else's."""

    def item(self, id: str) -> Item | None:
        """Return an item of an answer or of what came before it."""


class Bare:
    """Keeps nothing."""

    is_on = False
    told = "no answers are kept (gateway.responses_kept)"

    def answer(self, id: str) -> Kept | None:
        """Return none."""
        return None

    def item(self, id: str) -> Item | None:
        """Return none."""
        return None


NOTHING: Shelf = Bare()
