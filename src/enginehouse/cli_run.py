"""Run the command line: the outermost handler, which turns whatever was raised into words."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from enginehouse.cli_call import COMPLETION_VARIABLE, PROGRAM
from enginehouse.cli_progress import say
from enginehouse.cli_render import show_error
from enginehouse.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USER,
    EnginehouseError,
    ErrorReport,
    InternalError,
    MachineError,
)

REFUSALS = {
    errno.ENOSPC: ("disk.full", "there is no space left"),
    errno.EDQUOT: ("disk.full", "the quota of this user is used up"),
    errno.EROFS: ("disk.cannot_write", "the disk is mounted read-only"),
    errno.EACCES: ("disk.cannot_write", "a file or folder may not be used by this user"),
}


def run(cli: click.Group, arguments: Sequence[str]) -> int:
    """Run one command and return its documented exit code; nothing is raised."""
    as_json = "--json" in arguments
    _hear_ctrl_c()
    _end_as_by_ctrl_c(signal.SIGTERM)
    _end_as_by_ctrl_c(signal.SIGHUP)
    try:
        code = _run(cli, list(arguments), as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_OK
    return code


def _run(cli: click.Group, arguments: list[str], as_json: bool) -> int:
    try:
        return _invoke(cli, arguments)
    except click.ClickException as problem:
        return _show_usage_error(problem, as_json)
    except (KeyboardInterrupt, click.Abort):
        if as_json:
            show_error(ErrorReport("interrupted", "nothing was lost", turn="user"), as_json)
        say("interrupted; nothing was lost")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except EnginehouseError as problem:
        show_error(problem.report, as_json)
        return problem.exit_code
    except Exception as problem:  # noqa: BLE001  the outermost handler: no traceback for users
        fault = _machine_refused(problem) or _our_fault(problem)
        show_error(fault.report, as_json)
        return fault.exit_code


def _invoke(cli: click.Group, arguments: list[str]) -> int:
    if COMPLETION_VARIABLE in os.environ:
        cli.main(arguments, PROGRAM, complete_var=COMPLETION_VARIABLE, standalone_mode=False)
        return EXIT_OK
    try:
        with cli.make_context(PROGRAM, arguments) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return EXIT_OK


def _hear_ctrl_c() -> None:
    """Let SIGINT end a command that a shell script began in the background.

    Shells have such a command ignore it, and SIGTERM, which is passed on as SIGINT, with it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_as_by_ctrl_c(number: signal.Signals) -> None:
    """Let a signal end a command as Ctrl-C does, so that engines are ended; not under nohup."""

    def interrupt(_: int, __: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    if signal.getsignal(number) is signal.SIG_DFL:
        signal.signal(number, interrupt)


def _show_usage_error(problem: click.ClickException, as_json: bool) -> int:
    if not as_json:
        problem.show()
    else:
        context = getattr(problem, "ctx", None)
        path = context.command_path if context is not None else PROGRAM
        show_error(
            ErrorReport("usage", problem.format_message(), (), (f"{path} --help",), "user"),
            as_json,
        )
    return EXIT_USER


def _machine_refused(problem: Exception) -> EnginehouseError | None:
    """Build the error for a file that the machine would not let us write, wherever that was."""
    if not isinstance(problem, OSError) or problem.errno not in REFUSALS:
        return None
    id, what = REFUSALS[problem.errno]
    return MachineError(
        id,
        what,
        evidence=(str(problem),),
        remedies=(
            "free some space, or make the folder writable",
            "set ENGINEHOUSE_STATE_DIR or ENGINEHOUSE_CACHE_DIR to another folder",
        ),
    )


def _our_fault(problem: Exception) -> EnginehouseError:
    text = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__))
    path = _write_crash(text)
    where = f"the traceback is in {path}" if path else text.strip()
    return InternalError(
        "internal.unexpected",
        f"this is our fault: {type(problem).__name__}: {problem}",
        evidence=(where,),
        remedies=("please report it with that traceback", "run the command again"),
    )


def _write_crash(text: str) -> Path | None:
    """Write a traceback into the state folder, else a temporary one, else (None) nowhere."""
    from enginehouse.edges.paths import state_dir

    name = f"crash-{time.strftime('%Y%m%dT%H%M%S')}.log"
    folders = (state_dir, lambda: Path(tempfile.mkdtemp(prefix="enginehouse-")))
    for folder in folders:
        with suppress(OSError, EnginehouseError):
            path = folder() / name
            path.write_text(text)
            return path
    return None


def _forget_stdout() -> None:
    """Point stdout at nothing: its reader is gone, and the exit would try to flush it."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
