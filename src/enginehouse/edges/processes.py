"""One engine process: started in a group of its own, watched, ended whole."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal as signals
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from enginehouse.core.container import Container
from enginehouse.core.errors import EngineError, MachineError
from enginehouse.edges.container_run import ContainerEnd, ContainerRun
from enginehouse.edges.group_memory import GroupMemory
from enginehouse.edges.leases import MARKER, Lease, LeaseBook, find_marked, kill_all
from enginehouse.edges.scratch import SHARED_MEMORY

TAIL_BYTES = 16_384
SEARCH_PATHS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
REST_S, REST_POLL_S = 2.0, 0.05
"""How long those that outlive an engine's first process may take to end by themselves."""
TRACKER = b"multiprocessing.resource_tracker"
"""Python's process that removes shared memory and semaphores once all others have ended. Killed
with them it leaves them until the machine starts anew: several a run of vLLM, up to 250 MB."""
OPENMP_FILE = "__KMP_REGISTERED_LIB_{pid}_{user}"
"""What Intel's and LLVM's OpenMP keep in shared memory while they run, and after a signal."""


@dataclass(frozen=True)
class Ended:
    """How a process ended; exactly one of the first two is set.

    `contained` is how its container ended, where it had one. What ended in a container by a signal
    ended by that signal, whatever its client made of it.
    """

    exit_code: int | None
    signal: str | None
    contained: ContainerEnd | None = None

    @staticmethod
    def of(code: int, contained: ContainerEnd | None = None) -> Ended:
        """Return it for an exit code as subprocess has it: a signal's number is negative."""
        if contained is not None and contained.signal:
            return Ended(None, contained.signal, contained)
        if code < 0:
            return Ended(None, signals.Signals(-code).name, contained)
        return Ended(code, None, contained)

    @property
    def oom_says(self) -> str:
        """What tells that the kernel's memory killer struck in its container, empty if nothing."""
        return self.contained.oom_says if self.contained is not None else ""

    def describe(self) -> str:
        """Say it in words: `exit code 1`, `signal SIGKILL`."""
        said = f"signal {self.signal}" if self.signal else f"exit code {self.exit_code}"
        more = self.contained.describe() if self.contained is not None else ""
        return f"{said} ({more})" if more else said


class EngineProcess:
    """A child in its own session and process group, its output in a log file.

    It runs in that file's folder: engines leave logs and dumps where they are started, which tell
    of a failure beside the log, and Python imports modules from there.

    On Linux the kernel ends it when Enginehouse dies (`setpriv --pdeathsig`, where util-linux is
    there); the lease covers the rest, at the next start. `prefix` is what becomes the engine's
    program by exec, such as a shell that enters a cgroup. `files` are removed with it, and so is
    `scratch`, a folder that is made for it. With a `container` the child is only the client that
    runs it: what is measured and killed is what runs in there, and it is removed at the end.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: Path,
        leases: LeaseBook,
        files: Sequence[Path] = (),
        scratch: Path | None = None,
        stop_signal: str = "SIGTERM",
        prefix: Sequence[str] = (),
        container: Container | None = None,
    ) -> None:
        self._container = ContainerRun(container) if container is not None else None
        self._container_end: asyncio.Future[ContainerEnd] | None = None
        self._prefix = tuple(prefix)
        self._stop_signal = signals.Signals[stop_signal]
        self._argv = tuple(argv)
        self._env = dict(env)
        self._log_path = log_path
        self._leases = leases
        self._files = (*files, scratch) if scratch else tuple(files)
        self._scratch = scratch
        self._lease: Lease | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ended: Ended | None = None
        self._memory = GroupMemory(self.family)
        self._pids: set[int] = set()
        self._is_killed = False

    async def start(self) -> None:
        """Start the child.

        Raises:
            EngineError: `engine.cannot_start`, when the program cannot be executed.
            MachineError: `disk.cannot_write`, when its log cannot be written.
        """
        if shutil.which(self._argv[0]) is None:
            raise self._cannot_start("is not a program that can be executed")
        lease = self._open_lease()
        try:
            with self._open_log() as log:
                if self._container is not None:
                    self._container.begin(lease)
                self._process = await asyncio.create_subprocess_exec(
                    *die_with_parent(),
                    *self._prefix,
                    *self._argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **_whole_search_paths(), **self._env, MARKER: lease.id},
                    cwd=self._log_path.parent,
                    start_new_session=True,
                )
        except OSError as problem:
            self._end_marked(lease)
            raise self._cannot_start(f"cannot be started: {problem.strerror}") from problem
        except BaseException:  # Ctrl-C while it starts
            self._end_marked(lease)
            raise
        self._lease = lease

    def _open_lease(self) -> Lease:
        label = f"the engine `{Path(self._argv[0]).name}`"
        if self._container is None:
            return self._leases.open(label, self._files)
        return self._leases.open(f"{label} in a container", self._files, self._container.key)

    def _open_log(self) -> BinaryIO:
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            if self._scratch is not None:
                self._scratch.mkdir(mode=0o700, exist_ok=True)
            return self._log_path.open("ab")
        except OSError as problem:
            raise MachineError(
                "disk.cannot_write",
                f"the engine's log cannot be written: {problem.strerror}",
                evidence=(str(problem),),
                remedies=("free some space, or set ENGINEHOUSE_STATE_DIR to a folder with room",),
            ) from problem

    def _cannot_start(self, why: str) -> EngineError:
        return EngineError(
            "engine.cannot_start",
            f"{self._argv[0]} {why}",
            evidence=(" ".join(self._argv),),
            remedies=("check that the program exists and may be executed",),
        )

    @property
    def pid(self) -> int:
        """The child's process id, which is its group's id too."""
        if self._process is None:
            raise RuntimeError("the process was not started")
        return self._process.pid

    @property
    def engine_pid(self) -> int | None:
        """The process id of the engine itself: in a container that of its first process."""
        return self.pid if self._container is None else self._container.pid

    @property
    def is_limited(self) -> bool:
        """Whether its container was seen to have its memory limit; without one it is False."""
        return self._container is not None and self._container.is_limited

    @property
    def has_started(self) -> bool:
        """Whether the child was started, ended or not."""
        return self._process is not None

    @property
    def is_running(self) -> bool:
        """Whether the child was started and has not ended yet."""
        return self._process is not None and self._process.returncode is None

    async def wait(self) -> Ended:
        """Wait for the child's end; what is left of its group is ended and its files removed."""
        if self._process is None:
            raise RuntimeError("the process was not started")
        code = await self._process.wait()
        contained = await self._end_container() if self._container is not None else None
        await self._let_rest_end()
        if self._ended is None:
            self._ended = Ended.of(code, contained)
            self._clear_rest()
        return self._ended

    async def _let_rest_end(self) -> None:
        """Wait for what outlives the first process; what does not end is killed, trackers last."""
        if self._ended is not None or self._lease is None or self._container is not None:
            return
        for may_go_on in (not self._is_killed, False):
            ends_at = time.monotonic() + REST_S
            while rest := find_marked((self._lease.id,)):
                others = [pid for pid in rest if not _is_tracker(pid)]
                if not may_go_on:
                    kill_all(others)
                if time.monotonic() > ends_at:
                    break
                await asyncio.sleep(REST_POLL_S)

    async def _end_container(self) -> ContainerEnd:
        """Have the container removed, once; whoever waits may be cancelled without ending that."""
        if self._container_end is None:
            assert self._container is not None
            loop = asyncio.get_running_loop()
            self._container_end = loop.run_in_executor(None, self._container.end)
        return await asyncio.shield(self._container_end)

    async def stop(self, grace_s: float = 5.0) -> Ended:
        """End the whole group: SIGTERM, then after `grace_s` seconds SIGKILL; may be repeated."""
        if self.is_running:
            self.family()  # so that all of its processes are known
            await self._ask_to_end(grace_s)
            # Not wait_for: with its work done, it would swallow a cancellation at that moment.
            ended, _ = await asyncio.wait({asyncio.ensure_future(self.wait())}, timeout=grace_s)
            if not ended:
                self.kill()
        return await self.wait()

    async def _ask_to_end(self, grace_s: float) -> None:
        if self._container is None:
            self._signal_group(self._stop_signal)
        elif not await asyncio.to_thread(self._container.stop, grace_s):
            self.kill()  # it is not there yet, or its program does not answer

    def kill(self) -> None:
        """Send SIGKILL to the whole group, at once; first to what is in its container.

        Python's resource trackers are left to clean up, and ended after that.
        """
        if not self.is_running:
            return
        self._is_killed = True
        if self._container is not None:
            self._container.kill()
        family = [] if self._container is not None else [one.pid for one in self.family()]
        others = [pid for pid in family if not _is_tracker(pid)]
        if len(others) < len(family):
            kill_all(others)
        else:
            self._signal_group(signals.SIGKILL)

    def memory(self) -> tuple[int, int | None]:
        """Return the resident and the proportional set size of the whole group, in bytes.

        PSS is None where the system does not give it. See `GroupMemory` for how fresh it is.
        """
        return self._memory.read() if self.is_running else (0, None)

    def log_tail(self, lines: int = 20) -> tuple[str, ...]:
        """Return the last lines of the log."""
        return read_tail(self._log_path, lines)

    def family(self) -> list[psutil.Process]:
        """Return the child and its descendants, nothing when it has ended.

        With a container it is what runs in there, nothing while that is not known.
        """
        if not self.is_running:
            return []
        if self._container is not None:
            return self._container.family()
        try:
            leader = psutil.Process(self.pid)
            found = [leader, *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self._pids.update(one.pid for one in found)
        return found

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _clear_rest(self) -> None:
        """End descendants that outlived the leader, also those that left its group."""
        if self._lease is None:
            return
        self._signal_group(signals.SIGKILL)
        self._end_marked(self._lease)

    def _end_marked(self, lease: Lease) -> None:
        if self._container is not None and self._container_end is None:
            self._container.end()  # it was not even started, or that was interrupted
        kill_all(find_marked((lease.id,)))
        for pid in self._pids:
            file = SHARED_MEMORY / OPENMP_FILE.format(pid=pid, user=os.getuid())
            with suppress(OSError):
                file.unlink(missing_ok=True)
        self._leases.close(lease)


def _is_tracker(pid: int) -> bool:
    try:
        return TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def read_tail(path: Path, lines: int) -> tuple[str, ...]:
    """Return a text file's last lines (of its last 16 KiB), empty when there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(deque(text.splitlines(), maxlen=lines))


def _whole_search_paths() -> dict[str, str]:
    """Return the lists of folders in our environment so that they mean the same in any folder."""
    found = {name: os.environ.get(name, "").split(os.pathsep) for name in SEARCH_PATHS}
    return {
        name: os.pathsep.join(os.path.abspath(part) for part in parts)
        for name, parts in found.items()
        if any(parts)
    }


def die_with_parent() -> tuple[str, ...]:
    """Return the head of an argv whose program the kernel ends with us; empty where it cannot."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
