"""One launch of an engine: its own places, and its command, contained where the build is an image.

With a container the engine's socket lies in the launch's own folder, which is all that it may write
to, and the memory limit is the container's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.container import Confines, Container, contain, gpu_access, socket_in
from enginehouse.core.engine import Endpoint, Engine, Launch
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.edges.containers import own_user
from enginehouse.edges.leases import MARKER
from enginehouse.edges.scratch import names_folder, new_endpoint, new_scratch

KIND = "container"


@dataclass(frozen=True)
class Prepared:
    """A launch with the command that carries it out; `container` is None without one."""

    launch: Launch
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    container: Container | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where the engine will listen."""
        return self.launch.endpoint

    @property
    def scratch(self) -> Path | None:
        """The folder that must be made for it, None where it is told of none."""
        folder = Path(self.launch.scratch)
        return folder if names_folder(folder, self.argv, self.env) else None

    @property
    def files(self) -> tuple[Path, ...]:
        """What it makes and leaves: its socket."""
        return (Path(self.endpoint.socket_path),) if self.endpoint.socket_path else ()


def prepare(
    engine: Engine,
    build: Build,
    candidate: Candidate,
    form: Model,
    look: Callable[[], Machine],
    memory_bytes: int = 0,
) -> Prepared:
    """Return a launch in places of its own, for a process that is watched and cleared by us.

    `memory_bytes` limits a container, 0 for no limit. `look` is asked for containers only.
    """
    launch = new_launch(engine, build, candidate, form)
    return prepared(engine, launch, look, memory_bytes)


def new_launch(engine: Engine, build: Build, candidate: Candidate, form: Model) -> Launch:
    """Return a launch in places of its own."""
    scratch = str(new_scratch())
    is_inside = build.kind == KIND and engine.unix_socket
    endpoint = socket_in(scratch) if is_inside else new_endpoint(engine.unix_socket)
    return Launch(build, candidate, form, endpoint, scratch)


def prepared(
    engine: Engine,
    launch: Launch,
    look: Callable[[], Machine],
    memory_bytes: int = 0,
    is_ours: bool = True,
) -> Prepared:
    """Return the command of a launch, for a process of ours or, without `is_ours`, for a shell."""
    if launch.build.kind != KIND:
        return Prepared(launch, engine.argv(launch), engine.env(launch))
    return _contained(engine, launch, look(), memory_bytes, is_ours)


def _contained(
    engine: Engine, launch: Launch, machine: Machine, memory_bytes: int, is_ours: bool
) -> Prepared:
    """Return a launch in a container: kept and marked when `is_ours`, else as for anybody's shell.

    Raises:
        ValueError: when its socket does not lie in its own folder.
    """
    program = launch.build.command[0]
    confines = Confines(
        run_id=Path(launch.scratch).name.rpartition("-")[2],
        folder=launch.scratch,
        models=(launch.model.path,),
        user=own_user(),
        gpu=gpu_access(program, machine),
        memory_bytes=memory_bytes,
        is_kept=is_ours,
        stop_signal=engine.stop_signal,
        passed_on=(MARKER,) if is_ours else (),
    )
    argv = contain(engine.argv(launch), engine.env(launch), launch.endpoint, confines)
    return Prepared(launch, argv, (), Container(program, confines.name, memory_bytes))
