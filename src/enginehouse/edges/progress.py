"""Who is told how a long transfer or other work goes."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Takes the progress of one piece of work after another."""

    def begin(self, label: str, total: int | None, unit: str = "") -> None:
        """Take the start of a piece of work and its size, None when unknown; bytes by default."""

    def advance_to(self, done: int) -> None:
        """Take how much is done."""

    def end(self) -> None:
        """Take the end."""


class SilentProgress:
    """Tells nobody."""

    def begin(self, label: str, total: int | None, unit: str = "") -> None:
        """Take a start."""

    def advance_to(self, done: int) -> None:
        """Take an advance."""

    def end(self) -> None:
        """Take an end."""
