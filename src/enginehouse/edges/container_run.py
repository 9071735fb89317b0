"""One container of ours while it runs: where its processes are, its end, and that it is removed.

The container program that we start is only a client: killing it leaves the container, whose
processes are children of containerd or conmon. So the first process is asked for by name, checked
by the mark that it carries, and then watched and signalled directly; and a small shell of its own
waits on a pipe that only we hold, so that the container is removed when we end, however we end.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass

import psutil

from enginehouse.core.container import (
    Container,
    ContainerState,
    parse_state,
    remove_argv,
    state_argv,
    stop_argv,
)
from enginehouse.edges.leases import MARKER, Lease, started_at
from enginehouse.edges.oom_kills import OomKills, read_limit

ASK_LIMIT_S = 10.0
REMOVE_LIMIT_S = 30.0
SEEK_EVERY_S, SEEK_AT_MOST_S = 0.1, 1.0
LOOK_EVERY_S = 0.02
"""A cgroup goes with its container: podman took 0.17 s to remove one whose engine was killed for
its limit, and afterwards nobody can read there that it was."""
REAPER = 'read -r word || { "$@"; sleep 1; }; exec "$@"'
"""Our end without a word may fall into the container's creation, so it is removed twice then."""


@dataclass(frozen=True)
class ContainerEnd:
    """How a container ended: its exit code where that is known, and what tells of the killer.

    `is_at_limit` says that it was its own limit for which the kernel's memory killer struck.
    """

    exit_code: int | None = None
    oom_says: str = ""
    is_at_limit: bool = False

    @property
    def signal(self) -> str:
        """The signal that ended the engine, by the code 128 + n that `--init` ends with then."""
        number = (self.exit_code or 0) - 128
        return signal.Signals(number).name if number in set(signal.Signals) else ""

    def describe(self) -> str:
        """Say in words what an exit code alone does not tell, empty when it is all there is."""
        if not (self.signal or self.oom_says):
            return ""
        killer = f"; {self.oom_says}" if self.oom_says else ""
        return f"its container ended with exit code {self.exit_code}{killer}"


class ContainerRun:
    """The container of one launch; what blocks says so, and is called in a thread."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._mark = b""
        self._first: psutil.Process | None = None
        self._started = -1.0
        self._oom_kills = OomKills()
        self._oom_says = ""
        self._is_limited = False
        self._over = threading.Event()
        self._seeker: threading.Thread | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._killer: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The program and the name, by which the container can be removed."""
        return self._container.program, self._container.name

    def begin(self, lease: Lease) -> None:
        """Be ready to remove the container and begin to look for it; before it is started.

        Raises:
            OSError: when there is no shell.
        """
        self._mark = f"{MARKER}={lease.id}".encode()
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", REAPER, "reaper", *remove_argv(*self.key)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._seeker = threading.Thread(target=self._follow, name="container", daemon=True)
        self._seeker.start()

    @property
    def pid(self) -> int | None:
        """The first process in the container as the machine numbers it, None while not known."""
        return self._first.pid if self._first is not None and self._is_there() else None

    @property
    def is_limited(self) -> bool:
        """Whether the kernel holds the container to its memory limit, as seen in its cgroup.

        Podman ignores it where it may not make cgroups: without root on cgroup v1.
        """
        return self._is_limited

    def family(self) -> list[psutil.Process]:
        """Return the container's processes, none while they are not known or no longer there."""
        first = self._first
        if first is None or not self._is_there():
            return []
        try:
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill the container's processes at once, or have it done by its program."""
        pid = self.pid
        try:
            if pid is not None:
                os.kill(pid, signal.SIGKILL)  # the first one, with which the kernel ends all others
                return
        except ProcessLookupError:
            return
        except PermissionError:
            pass
        with suppress(OSError):
            self._killer = subprocess.Popen(
                [self._container.program, "kill", self._container.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def stop(self, grace_s: float) -> bool:
        """Ask for the end, after `grace_s` insist; False when there is none to stop. Blocks."""
        argv = stop_argv(*self.key, max(1, math.ceil(grace_s)))
        return _ask(argv, grace_s + ASK_LIMIT_S) is not None

    def end(self) -> ContainerEnd:
        """Say how the container ended, and remove it. Blocks."""
        state = self._state()
        self._over.set()
        if self._seeker is not None:
            self._seeker.join(ASK_LIMIT_S)
        self._remove(state is not None or self._first is not None)
        if self._killer is not None:
            self._killer.kill()
            self._killer.wait()
        if state is None:
            return ContainerEnd(None, self._oom_says, bool(self._oom_says) and self._is_limited)
        told = f"State.OOMKilled of {self._container.name} is true" if state.is_oom_killed else ""
        struck = self._oom_says or told
        has_limit = self._is_limited or (state.is_oom_killed and self._container.memory_bytes > 0)
        return ContainerEnd(state.exit_code, struck, bool(struck) and has_limit)

    def _remove(self, was_there: bool) -> None:
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            word = b"end\n" if was_there else b""  # its start was broken off: it may come yet
            with suppress(subprocess.TimeoutExpired, OSError):
                reaper.communicate(word, REMOVE_LIMIT_S)

    def _state(self) -> ContainerState | None:
        return parse_state(_ask(state_argv(*self.key), ASK_LIMIT_S) or "")

    def _is_there(self) -> bool:
        return self._first is not None and started_at(self._first.pid) == self._started

    def _follow(self) -> None:
        """Look for the first process, then see whether the kernel's memory killer strikes."""
        wait_s = SEEK_EVERY_S
        while self._first is None:
            if self._over.wait(wait_s):
                return
            state = self._state()
            if state is not None and state.pid:
                self._take(state.pid)
            wait_s = min(wait_s * 1.2, SEEK_AT_MOST_S)
        while not self._over.wait(LOOK_EVERY_S):
            self._oom_says = self._oom_kills.describe() or self._oom_says

    def _take(self, pid: int) -> None:
        """Take a process for ours if it carries our mark: its number may mean another machine's."""
        started = started_at(pid)
        with suppress(OSError, psutil.NoSuchProcess):
            with open(f"/proc/{pid}/environ", "rb") as file:
                is_ours = self._mark in file.read().split(b"\0")
            if is_ours:
                self._oom_kills.look(pid)
                limit = read_limit(pid)
                self._is_limited = limit is not None and limit <= self._container.memory_bytes
                self._started, self._first = started, psutil.Process(pid)


def _ask(argv: tuple[str, ...], limit_s: float) -> str | None:
    """Run a command of the container program and return what it printed, None when it failed."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=limit_s, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
