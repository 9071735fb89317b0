"""Where a log comes from: a file, the standard input, or a command that is run and watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.errors import UserError

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a followed command ended; exactly one of the two is set."""

    exit_code: int | None
    signal: str

    @property
    def status(self) -> int:
        """The exit status that a shell would show: 128 and the number for a signal."""
        return 128 + signal.Signals[self.signal] if self.signal else self.exit_code or 0


def read_log(path: str) -> Iterator[bytes]:
    """Yield a log's bytes, a block at a time; `-` is the standard input.

    Raises:
        UserError: `log.unreadable`.
    """
    try:
        if path == "-":
            handle = sys.stdin.fileno()
            yield from iter(lambda: os.read(handle, BLOCK_BYTES), b"")
            return
        with Path(path).open("rb") as file:
            yield from iter(lambda: file.read(BLOCK_BYTES), b"")
    except OSError as problem:
        raise UserError(
            "log.unreadable",
            f"the log {path} cannot be read",
            evidence=(str(problem),),
            remedies=("give a file, `-` for the standard input, or the number of a trial",),
        ) from problem


def follow(command: Sequence[str], on_bytes: Callable[[bytes], None]) -> Ended:
    """Run a command, hand on what it writes, and return how it ended.

    Ctrl-C reaches the command, which shares the terminal; what it still writes is read.

    Raises:
        UserError: `log.no_command`.
    """
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as problem:
        raise UserError(
            "log.no_command",
            f"the command {command[0]} cannot be started",
            evidence=(str(problem),),
            remedies=("give the command with its arguments after --follow",),
        ) from problem
    assert process.stdout is not None
    handle = process.stdout.fileno()
    while True:
        try:
            data = os.read(handle, BLOCK_BYTES)
        except KeyboardInterrupt:
            continue
        if not data:
            break
        on_bytes(data)
    return _ended(_wait(process))


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _ended(code: int) -> Ended:
    if code < 0:
        return Ended(None, signal.Signals(-code).name)
    return Ended(code, "")
