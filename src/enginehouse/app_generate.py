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
from enginehouse.edges.launches import KIND, new_launch, prepared
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
    launch = new_launch(engine, choice.build, choice.candidate, form)
    ready = prepared(engine, launch, lambda: machine, is_ours=False)
    folder = str(ready.scratch or "")
    return Command(ready.argv, ready.env, folder, _listens_on(ready.endpoint))


def planned_argv(
    build: Build, candidate: Candidate, model: Model, machine: Machine
) -> tuple[str, ...]:
    """Return what a trial of a candidate would run, with names that stand for its own places."""
    engine = load_engines()[build.engine]
    is_inside = build.kind == KIND and engine.unix_socket
    endpoint = socket_in(PLANNED_FOLDER) if is_inside else PLANNED_ENDPOINT
    launch = Launch(build, candidate, model, endpoint, PLANNED_FOLDER)
    return prepared(engine, launch, lambda: machine, is_ours=False).argv


def _listens_on(endpoint: Endpoint) -> str:
    return endpoint.socket_path or f"http://127.0.0.1:{endpoint.port}"
