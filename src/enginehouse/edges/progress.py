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


def within(done: int, total: int | None) -> int:
    """Return how much is done for showing: never more than there is, where that is known.

    A transfer that begins anew after a broken one counts its first part twice, and a server can
    promise fewer bytes than it sends.
    """
    return min(done, total) if total else done


class SilentProgress:
    """Tells nobody."""

    def begin(self, label: str, total: int | None, unit: str = "") -> None:
        """Take a start."""

    def advance_to(self, done: int) -> None:
        """Take an advance."""

    def end(self) -> None:
        """Take an end."""
