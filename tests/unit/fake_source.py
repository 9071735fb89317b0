"""A machine made of values: what probes would read, without a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from enginehouse.core.facts import Fact, Facts
from enginehouse.edges.seam import Answer, Reader


@dataclass(frozen=True)
class FakeSource:
    """Files, commands and answers as tables."""

    files: dict[str, str] = field(default_factory=dict)
    commands: dict[tuple[str, ...], Answer] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    taken_at: float = 1000.0

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def glob(self, pattern: str) -> tuple[str, ...]:
        found = (path for path in self.files if path.count("/") == pattern.count("/"))
        return tuple(sorted(path for path in found if fnmatchcase(path, pattern)))

    def run(self, *argv: str) -> Answer | None:
        return self.commands.get(argv)

    def ask(self, question: str) -> Any:
        return self.answers.get(question)


def facts_of(probe: Callable[[Reader], Iterator[Fact]], source: FakeSource) -> Facts:
    """Return the facts that one probe finds."""
    return Facts(tuple(probe(Reader(source))))


def known_facts(**values: Any) -> Facts:
    """Make facts; `__` in a name stands for the dot."""
    return Facts(
        tuple(Fact(name.replace("__", "."), value, "test") for name, value in values.items())
    )
