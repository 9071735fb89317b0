"""The one seam through which every probe reads: files, commands, library answers.

`LiveSource` reads this machine, `RecordedSource` (`edges/recording.py`) a folder.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from enginehouse.core.facts import Fact, Value

COMMAND_LIMIT_S = 1.5
FILE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """What a command printed (stdout, stderr) and its exit code, None when it took too long."""

    exit_code: int | None
    output: str

    @property
    def worked(self) -> bool:
        """Whether it ended by itself, and well."""
        return self.exit_code == 0


class Source(Protocol):
    """Everything a probe may ask; paths are absolute or begin with `~`."""

    @property
    def taken_at(self) -> float:
        """When the facts are from, as Unix time."""

    def read(self, path: str) -> str | None:
        """Return a file's text without NULs at its ends, None when missing or unreadable."""

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Return the paths that match a shell pattern, sorted."""

    def run(self, *argv: str) -> Answer | None:
        """Return what a command says, None when there is no such program."""

    def ask(self, question: str) -> Any:
        """Return a library's answer as JSON-like data, None when there is none."""


@dataclass(frozen=True)
class LiveSource:
    """This machine, now. `answers` holds the questions that libraries answer."""

    answers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    root: Path = Path("/")
    home: Path = field(default_factory=Path.home)
    taken_at: float = field(default_factory=time.time)

    def read(self, path: str) -> str | None:
        """Return a file's text, at most 1 MiB of it."""
        try:
            with self._real(path).open("rb") as file:
                return clean(file.read(FILE_LIMIT_BYTES).decode(errors="replace"))
        except (OSError, ValueError):
            return None

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Return the paths that match a shell pattern, in the form they were asked for."""
        found = glob.glob(str(self._real(pattern)))
        return tuple(sorted(self._asked(path, pattern) for path in found))

    def run(self, *argv: str) -> Answer | None:
        """Run a command without input, in the C locale, for at most 1.5 seconds."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_LIMIT_S,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            return Answer(None, "")
        except OSError:
            return None
        text = (done.stdout + done.stderr).decode(errors="replace")
        return Answer(done.returncode, clean(text))

    def ask(self, question: str) -> Any:
        """Ask a library."""
        answer = self.answers.get(question)
        return answer() if answer else None

    def _real(self, path: str) -> Path:
        if path.startswith("~"):
            return self.home / path.lstrip("~/")
        return self.root / path.lstrip("/")

    def _asked(self, real: str, pattern: str) -> str:
        if pattern.startswith("~"):
            return "~/" + os.path.relpath(real, self.home)
        return "/" + os.path.relpath(real, self.root)


def clean(text: str) -> str:
    """Drop white space and NULs at the ends; NULs between words (device tree) become spaces."""
    return text.strip("\0 \n\t").replace("\0", " ")


def whole_of(text: str) -> int | None:
    """Return a text's whole number of at most 18 digits, None when it is none.

    >>> whole_of("42"), whole_of("max"), whole_of("²")
    (42, None, None)
    """
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


@dataclass(frozen=True)
class Reader:
    """A source with what probes need again and again: facts with their origin, parsed files."""

    source: Source

    def text(self, path: str) -> str:
        """Return a file's text, empty when missing or unreadable."""
        return self.source.read(path) or ""

    def whole(self, path: str) -> int | None:
        """Return a file's whole number, None when it holds none (`max`, say)."""
        return whole_of(self.text(path))

    def fact(self, id: str, value: Value, origin: str) -> Fact:
        """Make a fact that is as old as the source."""
        return Fact(id, value, origin, self.source.taken_at)

    def from_file(self, id: str, value: Value, path: str) -> Fact:
        """Make a fact that was read from a file."""
        return self.fact(id, value, f"file {path}")

    def from_command(self, id: str, value: Value, *argv: str) -> Fact:
        """Make a fact that a command said."""
        return self.fact(id, value, f"command {' '.join(argv)}")

    def from_library(self, id: str, value: Value, name: str) -> Fact:
        """Make a fact that a library said."""
        return self.fact(id, value, f"library {name}")
