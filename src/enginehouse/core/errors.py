"""Errors that say what happened, show the evidence, and say what to try.

```
EnginehouseError
├── UserError       (exit 2)   the user gave something that cannot be used
├── EngineError     (exit 3)   the engine failed, and every way round it that was tried
├── MachineError    (exit 4)   the machine refused: a port in use, no space, no memory
└── InternalError   (exit 1)   our own fault
```

A failed trial is not among them: it is a result, a `core.trial.Trial`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USER = 2
EXIT_ENGINE = 3
EXIT_MACHINE = 4
EXIT_INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    EXIT_OK: "it worked; for a server, it was stopped by Ctrl-C or SIGTERM",
    EXIT_INTERNAL: "a fault of Enginehouse itself; please report it",
    EXIT_USER: "the input cannot be used: an argument, a file, a model name, a setting",
    EXIT_ENGINE: "no engine could serve the model; every trial is recorded",
    EXIT_MACHINE: "the machine refused: a port in use, no space left, not enough memory",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C); nothing was lost",
}
"""Documented exit codes of every command."""

TURNS: dict[str, str] = {
    "user": "what was given cannot be used",
    "engine": "the engine failed",
    "machine": "the machine refused",
    "us": "a fault of Enginehouse itself",
}
"""Whose turn it is, in words."""


@dataclass(frozen=True)
class ErrorReport:
    """The parts of an error as data, for `--json`, the API dialects and the terminal.

    `what` is one sentence: `<what went wrong>: <why>`, the second part where there is one.
    """

    id: str
    what: str
    evidence: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    turn: str = "us"


class EnginehouseError(Exception):
    """Carry a stable id, what happened, the evidence and what to try."""

    turn: ClassVar[str] = "us"
    exit_code: ClassVar[int] = EXIT_INTERNAL

    def __init__(
        self,
        id: str,
        what: str,
        *,
        evidence: tuple[str, ...] = (),
        remedies: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what)
        self.report = ErrorReport(id, what, evidence, remedies, self.turn)


class UserError(EnginehouseError):
    """The user gave something that cannot be used."""

    turn = "user"
    exit_code = EXIT_USER


class EngineError(EnginehouseError):
    """The engine failed, and so did every way round it that was tried."""

    turn = "engine"
    exit_code = EXIT_ENGINE


class MachineError(EnginehouseError):
    """The machine refused what was asked of it."""

    turn = "machine"
    exit_code = EXIT_MACHINE


class InternalError(EnginehouseError):
    """Something that must not happen did: our own fault."""


LABEL_WIDTH = 15


def render_error(report: ErrorReport) -> str:
    """Render an error as the block of plain text that the terminal shows, without colour.

    Its head is what went wrong; below stand why (or whose turn it is), the evidence, what to try.
    """
    head, why = split_what(report.what)
    lines = [f"error[{report.id}]: {head}"]
    parts = (
        ("what happened", (why or TURNS.get(report.turn, ""),)),
        ("evidence", report.evidence),
        ("try", report.remedies),
    )
    for label, entries in parts:
        for position, entry in enumerate(filter(None, entries)):
            lines += _entry(label if position == 0 else "", entry)
    return "\n".join(lines)


def error_text(report: ErrorReport) -> str:
    """Return an error as the one line that an API client shows: what went wrong, the evidence."""
    evidence = "; ".join(filter(None, report.evidence))
    return f"{report.what} ({evidence})" if evidence else report.what


def split_what(what: str) -> tuple[str, str]:
    """Split `<what went wrong>: <why>` (or `…; <why>`) before any quotation; why may be empty."""
    match = re.fullmatch(r"([^'\"`]+?)[:;] (.+)", what, re.DOTALL)
    return (match[1], match[2]) if match else (what, "")


def _entry(label: str, entry: str) -> list[str]:
    """Lay out one entry; its further lines stand under its first. Nothing is wrapped or cut."""
    rest = [""] * entry.count("\n")
    return [
        f"  {head:<{LABEL_WIDTH}}{line}"
        for head, line in zip((label, *rest), entry.split("\n"), strict=True)
    ]
