"""What to do with a request: one function, asked at arrival and whenever the queue is drained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from enginehouse.core.lifecycle import State


class Verdict(str, Enum):
    """Serve it now, hold it in the queue, or reject it."""

    SERVE = "serve"
    HOLD = "hold"
    REJECT = "reject"


@dataclass(frozen=True)
class Admission:
    """The verdict, and for a rejection its reason and when to come again."""

    verdict: Verdict
    reason: str = ""
    retry_after_s: int = 0


def admit(
    state: State, in_flight: int, ahead: int, most_in_flight: int, queue_limit: int
) -> Admission:
    """Decide on one request with `ahead` requests waiting before it.

    Requests are held while an engine starts or restarts, in order and up to the queue's limit.
    """
    if state in (State.FAILED, State.STOPPING, State.STOPPED):
        return Admission(Verdict.REJECT, f"the engine is {state.value}", 30)
    if state is State.READY and ahead == 0 and in_flight < most_in_flight:
        return Admission(Verdict.SERVE)
    if ahead >= queue_limit:
        return Admission(Verdict.REJECT, f"{ahead} requests are waiting already", 5)
    return Admission(Verdict.HOLD)
