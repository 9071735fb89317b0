"""Facts about a machine: a value under a dotted name, where it comes from and how old it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Value = str | int | float | bool | tuple[str, ...]
"""What a fact may hold; what is not known has no fact at all."""


@dataclass(frozen=True)
class Fact:
    """One thing that is known, such as `memory.available_bytes`.

    `origin` names its source as a person would look it up: `file /proc/meminfo`,
    `command nvpmodel -q`, `library NVML`, `knowledge modules.toml`, `from memory.total_bytes`.
    `read_at` is Unix time.
    """

    id: str
    value: Value
    origin: str
    read_at: float = 0.0


@dataclass(frozen=True)
class Facts:
    """All facts of one look at a machine; later facts of the same name replace earlier ones."""

    all: tuple[Fact, ...] = ()
    _by_id: dict[str, Fact] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {fact.id: fact for fact in self.all})

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._by_id.values())

    def __contains__(self, id: str) -> bool:
        return id in self._by_id

    def plus(self, more: Iterable[Fact]) -> Facts:
        """Return these facts and more."""
        return Facts((*self.all, *more))

    def fact(self, id: str) -> Fact | None:
        """Return a fact, None when it is not known."""
        return self._by_id.get(id)

    def get(self, id: str) -> Value | None:
        """Return a fact's value, None when it is not known."""
        fact = self._by_id.get(id)
        return None if fact is None else fact.value

    def text(self, id: str) -> str:
        """Return a fact as a text, empty when it is not known."""
        value = self.get(id)
        return "" if value is None else show_value(value)

    def number(self, id: str) -> float | None:
        """Return a fact that is a number, None when it is none or not known."""
        value = self.get(id)
        return float(value) if isinstance(value, (int, float)) else None

    def whole(self, id: str) -> int | None:
        """Return a fact that is a number as a whole one, None when it is none or not known."""
        value = self.get(id)
        return int(value) if isinstance(value, (int, float)) else None

    def texts(self, id: str) -> tuple[str, ...]:
        """Return a fact that is a list of texts, empty when it is not known."""
        value = self.get(id)
        return value if isinstance(value, tuple) else ()

    def holds(self, id: str) -> bool:
        """Whether a fact is known and true."""
        return self.get(id) is True

    def under(self, prefix: str) -> tuple[Fact, ...]:
        """Return the facts whose names begin with `prefix.`, in the order they were found."""
        return tuple(fact for fact in self if fact.id.startswith(f"{prefix}."))

    def members(self, group: str) -> tuple[str, ...]:
        """Return the names of a group's members: `gpu.0`, `gpu.1` for `gpu`."""
        depth = group.count(".") + 2
        names = (".".join(fact.id.split(".")[:depth]) for fact in self.under(group))
        return tuple(dict.fromkeys(names))


def show_value(value: Value) -> str:
    """Show a fact's value as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
