"""What the trials of one search share: the bench, how one of them measures, what they learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enginehouse.core.candidate import Build, Candidate, Settings
from enginehouse.core.diagnose_scan import Book
from enginehouse.core.engine import Engine
from enginehouse.core.forms import Forms
from enginehouse.core.machine import Machine
from enginehouse.core.measurement import Limits
from enginehouse.core.model import Model
from enginehouse.core.pace import Pace
from enginehouse.core.propose import Place
from enginehouse.core.quality import QualityLimits, QualityTrace
from enginehouse.core.throttling import CoolDown
from enginehouse.core.trial import Deadlines
from enginehouse.core.workload import Workload
from enginehouse.edges.cgroups import NO_FENCE, Fence, raise_fence
from enginehouse.edges.launches import KIND
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.page_cache import drop_page_cache
from enginehouse.edges.probes import read_available_bytes
from enginehouse.edges.records import Records
from enginehouse.edges.throttling import Cooler
from enginehouse.trials.load import Window

LEAST_ROOM_BYTES = 64 << 20
"""With less room no cgroup is made: its limit would end the engine before the guard could say why.
"""


@dataclass(frozen=True)
class Bench:
    """What all trials of one search share."""

    run_id: str
    engines: Mapping[str, Engine]
    forms: Forms
    workload: Workload
    records: Records
    leases: LeaseBook
    log_folder: Path
    deadlines: Deadlines
    memory_reserve_bytes: int
    prefix_limit_bytes: int
    bandwidth_bytes_per_s: float | None
    passages: tuple[str, ...]
    questions: tuple[str, ...]
    book: Book
    look: Callable[[], Machine]
    asked: Settings = ()
    may_drop_page_cache: bool = False
    may_use_cgroups: bool = True
    limits: Limits | None = None
    quality: QualityLimits = field(default_factory=QualityLimits)
    cooler: Cooler = field(default_factory=Cooler)

    @property
    def model(self) -> Model:
        """The model that was asked for."""
        return self.forms.model

    def engine_of(self, build: Build) -> Engine:
        """Return the descriptor of a build's engine."""
        return self.engines[build.engine]

    def minimal(self, build: Build) -> Candidate:
        """Return the build's minimal candidate, with the settings that the user asked for.

        What the engine has no such setting for is left out.
        """
        engine = self.engine_of(build)
        minimal = engine.minimal(build, self.forms.of(engine), self.workload)
        known = {tunable.name for tunable in engine.tunables}
        return minimal.with_settings(**{n: v for n, v in self.asked if n in known})

    def place(self, build: Build) -> Place:
        """Return what proposals for a build rest on, with the machine as it is now."""
        return Place(
            self.engine_of(build), self.look(), self.forms, self.workload,
            self.memory_reserve_bytes, self.may_drop_page_cache,
        )  # fmt: skip

    def room_bytes(self) -> int:
        """Return how much one trial's engine may take: all that is available but the reserve.

        0 when nothing may bound it but the watcher.
        """
        room = read_available_bytes() - self.memory_reserve_bytes
        return room if self.may_use_cgroups and room >= LEAST_ROOM_BYTES else 0

    def fence(self, room_bytes: int, build: Build) -> Fence:
        """Bound the memory of one trial: by the container's own limit, else by a memory cgroup."""
        if not room_bytes:
            return NO_FENCE
        return Fence(KIND, (), room_bytes) if build.kind == KIND else raise_fence(room_bytes)

    def drop_page_cache(self) -> str:
        """Empty the page cache, and say what came of it."""
        return drop_page_cache()


@dataclass(frozen=True)
class Measuring:
    """How one trial measures: for how long at least, and against whose pace it may be given up.

    With `examines` the quality gate's exam is put instead of the load, with `proves` nothing beyond
    the first token. `is_short` explores with shorter requests (`Workload.shortened`); `is_hinting`
    has a longer first answer, which tells how builds compare. `cool_down` was waited before it.
    With `examines_slow` the exam follows the load where another start would take longer than it.
    """

    window_s: float = math.inf
    pace: Pace | None = None
    purpose: str = ""
    examines: bool = False
    proves: bool = False
    is_short: bool = False
    is_hinting: bool = False
    cool_down: CoolDown | None = None
    examines_slow: bool = False

    def workload(self, whole: Workload) -> Workload:
        """Return what of a workload the trial sends."""
        return whole.shortened() if self.is_short else whole

    def window(self, workload: Workload, candidate: Candidate) -> Window:
        """Return the window of the trial's load."""
        answers = workload.least_answers
        if self.is_short:
            answers = workload.answers_to_explore(int(candidate.get("slots") or 0))
        if self.pace is None:
            return Window(self.window_s, answers=answers)
        pace, window_s = self.pace, self.window_s
        return Window(
            window_s, lambda at_s, made: pace.too_slow(at_s, made, window_s, answers), answers
        )


WHOLE_LOAD = Measuring()


@dataclass
class TokenRatio:
    """What the trials of one search learn for the next ones.

    Words per token of the model are asked once, so that every candidate gets the same prompts; the
    pace of each candidate's last load is what later ones are held against. Traces are what each
    candidate said in the exam.
    """

    words_per_token: float = 0.0
    paces: dict[str, Pace] = field(default_factory=dict)
    traces: dict[str, QualityTrace] = field(default_factory=dict)
