"""What a signature says, as values; `docs/diagnose.md` tells how to write one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import Enum

from enginehouse.core.trial import Outcome, Stage


class Kind(str, Enum):
    """What a match of a signature means.

    `failure`: a cause. `generic`: a cause that only counts when no failure fits. `degraded`: it
    runs, but not as wanted. `echo`: the last word of a chain, which says nothing of its cause.
    `benign`: looks fatal and is not.
    """

    FAILURE = "failure"
    GENERIC = "generic"
    DEGRADED = "degraded"
    ECHO = "echo"
    BENIGN = "benign"


class Confidence(str, Enum):
    """How sure a verdict is, surest first."""

    CERTAIN = "certain"
    LIKELY = "likely"
    LOW = "low"
    UNKNOWN = "unknown"


class Role(str, Enum):
    """What a log line is by structure.

    `exception`: the last line of a traceback, a panic or a failed assertion, with its message.
    `error`: of severity error or fatal. `warning` and `info`: of those severities. `exit`: says how
    a process ended. `kernel`: of the kernel's own log. `plain`: nothing tells.
    """

    EXCEPTION = "exception"
    ERROR = "error"
    EXIT = "exit"
    KERNEL = "kernel"
    PLAIN = "plain"
    WARNING = "warning"
    INFO = "info"


PLATFORM_TAGS = frozenset(
    """
    jetson orin xavier nano thor spark unified discrete mig vgpu container kubernetes podman wsl
    windows macos linux x86_64 arm64 nvidia amd intel ascend cpu blackwell
    """.split()  # noqa: SIM905
)
"""What may be known of a platform, from a snapshot, from the user's words or from the log itself.

`nano` is the first Jetson Nano (2019); `unified` is any GPU that shares the host's memory.
"""


@dataclass(frozen=True)
class Alternative:
    """Another cause that the same text may mean, and what would decide between them.

    `is_common`: nothing in this log speaks for it; the first cause is often confirmed to be it.
    """

    cause: str
    decide: str
    is_common: bool = False


@dataclass(frozen=True)
class When:
    """Conditions on what surrounds a log. An empty one always holds.

    `platform` wants one of its tags to be known, `not_platform` none; `l4t` is a range such as
    `>=36.4.7,<36.5`. `signals` and `exit_codes` want the ending to be known, from the caller or
    from a line of the log; either of the two is enough where both are given. `stages` and
    `outcomes` only exclude what is known to be another.
    """

    platform: tuple[str, ...] = ()
    not_platform: tuple[str, ...] = ()
    l4t: str = ""
    signals: tuple[str, ...] = ()
    exit_codes: tuple[int, ...] = ()
    stages: tuple[Stage, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a signature means where `when` holds; empty fields keep the signature's own."""

    when: When
    cause: str
    confidence: Confidence | None = None
    title: str = ""
    alternatives: tuple[Alternative, ...] | None = None
    remedies: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Misleading:
    """A line that a reader would take for the cause, and why it is not."""

    pattern: str
    says: str


@dataclass(frozen=True)
class Signature:
    """What a known failure looks like and what it means.

    `within` is the largest distance, in lines, of the other `all_of` patterns from the decisive
    one (0: no limit); `same_process` wants them from one process.
    """

    id: str
    group: str
    kind: Kind
    cause: str
    title: str
    sources: tuple[str, ...]
    status: str
    checked: date
    confidence: Confidence = Confidence.LIKELY
    all_of: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    within: int = 0
    same_process: bool = False
    when: When = When()
    contexts: tuple[Context, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    misleading: tuple[Misleading, ...] = ()
    consequence_of: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    precedence: int = 0
    recovered_by: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    evidence: str = ""
    example: str = ""
    written_from: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The stable name of a signature, `group/id`."""
        return f"{self.group}/{self.id}"
