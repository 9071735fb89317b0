"""The contract that every engine fills, in `engines/`, one file each.

An engine descriptor is pure: it turns a candidate into the argv and environment of a process,
says how to ask that process whether it is ready, and predicts memory. It starts and reads nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from enginehouse.core.candidate import Build, Candidate, Setting, Settings
from enginehouse.core.estimate import MemoryEstimate
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.workload import Workload


@dataclass(frozen=True)
class Endpoint:
    """Where an engine listens: a unix socket's path, or a port on 127.0.0.1; never both."""

    socket_path: str = ""
    port: int = 0

    @property
    def base_url(self) -> str:
        """The URL to put before a path; with a unix socket the host name means nothing."""
        return "http://engine" if self.socket_path else f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Launch:
    """Everything an engine's argv is made of; `scratch` is a folder of its own, in memory if any.

    The folder is there while the engine runs and is removed with it.
    """

    build: Build
    candidate: Candidate
    model: Model
    endpoint: Endpoint
    scratch: str = ""


@dataclass(frozen=True)
class Tunable:
    """A setting that a candidate may hold: its name, what it does and its flag.

    `least` is given for whole numbers only; `values` are all there are, where that is known.
    """

    name: str
    summary: str
    flag: str
    least: int | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lever:
    """One step a search may take: try each of these changes on top of the best so far.

    A step changes one tunable, or several that only help together. `spare` are tried in turn only
    while nothing before them gained: it was no faster, it failed, or its answers were refused.
    `more` are values for the sampler only, once the steps have been climbed.
    """

    steps: tuple[Settings, ...]
    why: str
    more: tuple[Settings, ...] = ()
    spare: tuple[Settings, ...] = ()


def lever(
    tunable: str, values: Sequence[Setting], why: str, more: Sequence[Setting] = (),
    spare: Sequence[Setting] = (),
) -> Lever:  # fmt: skip
    """Return the lever that tries these values of one tunable."""
    steps, others, spared = (
        tuple(((tunable, value),) for value in each) for each in (values, more, spare)
    )
    return Lever(steps, why, others, spared)


def without_flags(argv: Sequence[str], flags: Collection[str]) -> tuple[str, ...]:
    """Return an argv without some flags and what follows each of them up to the next flag."""
    kept: list[str] = []
    is_left_out = False
    for word in argv:
        if word.startswith("--"):
            is_left_out = word in flags
        if not is_left_out:
            kept.append(word)
    return tuple(kept)


@dataclass(frozen=True)
class Call:
    """One HTTP request to an engine that is up: a JSON body, or a file's bytes as the body."""

    method: str
    path: str
    json: str = ""
    file: str = ""


@dataclass(frozen=True)
class Quirks:
    """What an engine's server does otherwise than all others, for who asks it.

    `exam_fields` go with each request for what is likely next. `tells_length` is false where an
    answer that its limit cut off ends with the reason `stop`.
    """

    exam_fields: Mapping[str, str] = field(default_factory=dict)
    tells_length: bool = True


NO_QUIRKS = Quirks()
PROVEN, UNPROVEN = "proven", "unproven"


@dataclass(frozen=True)
class Refusal:
    """Why something is not tried at all; `actions` are remedies by name (`core/remedies.py`)."""

    cause: str
    reason: str
    actions: tuple[str, ...] = ()


class Engine(Protocol):
    """One engine: how it is started, asked, tuned and predicted.

    `ready_path` answers 200 once the model is loaded (readiness also wants one real token).
    """

    @property
    def name(self) -> str:
        """The engine's name as the field writes it, used in settings and on the command line."""

    @property
    def status(self) -> str:
        """`proven`, or `unproven`: written from documentation, never seen on real hardware."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The model formats that it loads: gguf, safetensors."""

    @property
    def unix_socket(self) -> bool:
        """Whether it can listen on a unix socket; else it gets a port on the loopback."""

    @property
    def honours_ignore_eos(self) -> bool:
        """Whether a request may forbid an early end, so that answers have a given length."""

    @property
    def stop_signal(self) -> str:
        """The signal that asks it to end: SIGTERM or SIGINT."""

    @property
    def request_names(self) -> Mapping[str, str]:
        """How it names fields of the internal request (`core/chat.py`); "" for what it lacks."""

    @property
    def tokens_api(self) -> str:
        """Whose `/tokenize` and `/detokenize` it has: llama-server, vllm, or "" for none."""

    @property
    def quirks(self) -> Quirks:
        """What its server does otherwise than all others."""

    @property
    def tunables(self) -> tuple[Tunable, ...]:
        """The settings that a candidate of this engine may hold."""

    @property
    def ready_path(self) -> str:
        """Path that answers 200 once the model is loaded."""

    def most_choices(self, candidate: Candidate) -> int:
        """Return the most choices (`n`) that one request may ask for; 0 for no limit."""

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Build the whole argv, in the engine's own flag spelling."""

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Build the environment variables to add for the engine."""

    def setup(self, launch: Launch) -> tuple[Call, ...]:
        """Build the requests that make the model known once the engine is up; mostly none."""

    def refuse(self, model: Model, machine: Machine) -> Refusal | None:
        """Say why this engine cannot serve the model here, or None when it may."""

    def refuse_settings(self, candidate: Candidate) -> Refusal | None:
        """Say why these settings do not go together, or None when they do."""

    def shared_slots(self, candidate: Candidate) -> int:
        """Return how many slots requests are seated in so that they share prefixes, 0 for none.

        The engine then has llama-server's `/slots/N?action=save|restore` and takes `id_slot`.
        """

    def minimal(self, build: Build, model: Model, workload: Workload) -> Candidate:
        """Return the smallest candidate that serves the workload at all."""

    def levers(self, machine: Machine, model: Model, workload: Workload) -> tuple[Lever, ...]:
        """Return the steps worth trying for the workload, the most promising first."""

    def estimate_memory(
        self, model: Model, candidate: Candidate, machine: Machine | None = None
    ) -> MemoryEstimate:
        """Predict the memory the engine will hold, part by part, on a machine when it is given."""
