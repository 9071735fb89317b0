"""Who is told how a long transfer goes."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Takes the progress of one piece of work after another."""

    def begin(self, label: str, total: int | None) -> None:
        """Take the start of a piece of work and its size in bytes, None when unknown."""

    def advance_to(self, done: int) -> None:
        """Take the number of bytes done."""

    def end(self) -> None:
        """Take the end."""


class SilentProgress:
    """Tells nobody."""

    def begin(self, label: str, total: int | None) -> None:
        """Take a start."""

    def advance_to(self, done: int) -> None:
        """Take an advance."""

    def end(self) -> None:
        """Take an end."""
