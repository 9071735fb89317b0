"""The exact command of a choice, for a shell; nothing is started."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.choice import Choice
from enginehouse.core.container import socket_in
from enginehouse.core.engine import Endpoint, Launch
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.edges.launches import KIND, contained_launch
from enginehouse.edges.scratch import names_folder, new_endpoint, new_scratch
from enginehouse.engines import load_engines

PLANNED_FOLDER = "/run/engine"
PLANNED_ENDPOINT = Endpoint(socket_path="/run/engine.sock")


@dataclass(frozen=True)
class Command:
    """A command as it would be run: `env` comes on top of one's own environment.

    `folder` is one that must be there before, empty for none; `listens_on` is a unix socket's path
    or an address on the loopback.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    folder: str
    listens_on: str

    @property
    def shell(self) -> str:
        """The command as a line for a POSIX shell."""
        set_first = ("env", *(f"{name}={value}" for name, value in self.env)) if self.env else ()
        line = shlex.join((*set_first, *self.argv))
        return f"mkdir -p {shlex.quote(self.folder)} && {line}" if self.folder else line


def command_of(choice: Choice, model: Model, machine: Machine) -> Command:
    """Return the command that serves a choice: for a container the whole line of its runtime."""
    engine = load_engines()[choice.build.engine]
    form = dataclasses.replace(choice.form or model, name=model.name)
    scratch = new_scratch()
    is_contained = choice.build.kind == KIND
    if is_contained and engine.unix_socket:
        endpoint = socket_in(str(scratch))
    else:
        endpoint = new_endpoint(engine.unix_socket)
    launch = Launch(choice.build, choice.candidate, form, endpoint, str(scratch))
    argv, env = engine.argv(launch), engine.env(launch)
    if is_contained:
        ready = contained_launch(engine, launch, machine, is_ours=False)
        argv, env = ready.argv, ready.env
    folder = str(scratch) if names_folder(scratch, argv, env) else ""
    return Command(argv, env, folder, _listens_on(endpoint))


def planned_argv(
    build: Build, candidate: Candidate, model: Model, machine: Machine
) -> tuple[str, ...]:
    """Return what a trial of a candidate would run, with names that stand for its own places."""
    engine = load_engines()[build.engine]
    if build.kind != KIND:
        launch = Launch(build, candidate, model, PLANNED_ENDPOINT, PLANNED_FOLDER)
        return engine.argv(launch)
    endpoint = socket_in(PLANNED_FOLDER) if engine.unix_socket else PLANNED_ENDPOINT
    launch = Launch(build, candidate, model, endpoint, PLANNED_FOLDER)
    return contained_launch(engine, launch, machine, is_ours=False).argv


def _listens_on(endpoint: Endpoint) -> str:
    return endpoint.socket_path or f"http://127.0.0.1:{endpoint.port}"
