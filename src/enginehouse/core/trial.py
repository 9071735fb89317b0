"""A trial and its record: what was tried, what came of it, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.conditions_of_trial import Conditions
from enginehouse.core.machine import Machine
from enginehouse.core.measurement import Measurement
from enginehouse.core.quality import Quality
from enginehouse.core.throttling import CoolDown


class Stage(str, Enum):
    """The stages of a trial, in order; every one has a deadline."""

    START = "start"
    LOAD = "load"
    FIRST_TOKEN = "first-token"
    MEASURE = "measure"
    EXAM = "exam"
    STOP = "stop"


class Outcome(str, Enum):
    """How a trial ended.

    `running` is only seen while it runs, or when Enginehouse itself was killed meanwhile; the next
    start turns it into `interrupted`. `pruned` is a load that was given up since it was far behind
    the best: its figures are those until then. `examined` put the quality gate's exam instead of a
    load. `proven` gave a token, and no load was sent: it can serve, and how fast is not known.
    """

    RUNNING = "running"
    MEASURED = "measured"
    PRUNED = "pruned"
    EXAMINED = "examined"
    PROVEN = "proven"
    EXITED = "exited"
    TIMED_OUT = "timed-out"
    GUARDED = "guarded"
    BAD_ANSWER = "bad-answer"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class MemorySample:
    """Memory at one moment, in bytes; None where the system does not say.

    `rss_bytes` and `pss_bytes` are summed over the engine's whole process group.
    """

    at_s: float
    rss_bytes: int
    pss_bytes: int | None
    available_bytes: int


@dataclass(frozen=True)
class StageEvent:
    """A stage was entered, `at_s` seconds after the trial began."""

    stage: Stage
    at_s: float


@dataclass(frozen=True)
class Evidence:
    """A line of the engine's log that decided the diagnosis."""

    line: int
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """Why a trial failed: a dotted cause of the taxonomy, None when unknown, with its evidence.

    `confidence` is certain, likely, low or empty; `alternatives` are causes that fit as well, and
    `actions` the names of what may be done about it (`core/remedies.py`).
    """

    cause: str | None
    title: str
    evidence: tuple[Evidence, ...] = ()
    remedies: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    signature: str = ""
    confidence: str = ""
    alternatives: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class AppliedRemedy:
    """The remedy that a candidate came from: what had failed, why, and what was done about it.

    `trial_id` is 0 when nothing had been tried: a prediction had ruled the earlier candidate out.
    """

    trial_id: int
    cause: str | None
    action: str
    says: str

    def describe(self) -> str:
        """Say it in one line: `after trial 3 (memory.host.insufficient): use less context`."""
        after = f"trial {self.trial_id}" if self.trial_id else "a prediction"
        return f"after {after} ({self.cause or 'unknown'}): {self.says}"


@dataclass(frozen=True)
class Deadlines:
    """How long each stage of a trial may take, in seconds."""

    start_s: float = 20.0
    load_s: float = 300.0
    first_token_s: float = 60.0
    measure_s: float = 300.0
    stop_s: float = 10.0

    def times(self, patience: float) -> Deadlines:
        """Return the deadlines with the time to load and to a first token multiplied."""
        return replace(
            self, load_s=self.load_s * patience, first_token_s=self.first_token_s * patience
        )


@dataclass(frozen=True)
class Trial:
    """The record of one trial. It always exists, whatever happened.

    `id` is 0 until the record is stored. Times: `started_at` is Unix time, the rest seconds from
    it.
    Exactly one of `exit_code` and `signal` is set once the engine has ended. `purpose` is what the
    search tried it for (`core/contest.py`); `fence` is how its memory was bounded: `cgroup v1`,
    `cgroup v2`, `systemd scope`, `container`, or `watcher` alone. `first_tok_per_s` is how fast the
    answer came that proved that there are tokens, 0 where it was too short to tell: a hint, never a
    rank.
    `cool_down` is what was waited before it because the machine throttled; its times do not hold
    that. `refused` is why its search did not let it win although it was measured.
    """

    run_id: str
    model_digest: str
    model_name: str
    workload: str
    candidate: Candidate
    build: Build
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    started_at: float
    outcome: Outcome = Outcome.RUNNING
    id: int = 0
    stages: tuple[StageEvent, ...] = ()
    duration_s: float = 0.0
    exit_code: int | None = None
    signal: str | None = None
    log_path: str = ""
    machine_before: Machine | None = None
    machine_after: Machine | None = None
    memory: tuple[MemorySample, ...] = ()
    detail: str = ""
    diagnosis: Diagnosis | None = None
    measurement: Measurement | None = None
    remedy: AppliedRemedy | None = None
    purpose: str = ""
    quality: Quality | None = None
    fence: str = ""
    conditions: Conditions | None = None
    first_tok_per_s: float = 0.0
    cool_down: CoolDown | None = None
    refused: str = ""

    @property
    def gave_a_token(self) -> bool:
        """Whether it can serve, measured or not."""
        return self.has_measurement or self.outcome is Outcome.PROVEN

    @property
    def has_measurement(self) -> bool:
        """Whether the trial can be ranked."""
        return self.outcome is Outcome.MEASURED and self.measurement is not None

    @property
    def peak_memory_bytes(self) -> int:
        """The largest memory seen: PSS where the system gives it, else RSS."""
        return max((s.pss_bytes or s.rss_bytes for s in self.memory), default=0)

    @property
    def last_stage(self) -> Stage:
        """The stage the trial was in when it ended."""
        return self.stages[-1].stage if self.stages else Stage.START
