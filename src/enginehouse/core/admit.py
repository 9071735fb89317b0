"""What to do with a request: one function, asked at arrival and whenever the queue is drained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Waiting:
    """A request in the queue: whose it is, how urgent (higher first), and when it came."""

    key: str = ""
    priority: int = 0
    number: int = 0


def next_in_line(waiting: Sequence[Waiting], in_flight_by_key: Mapping[str, int]) -> int:
    """Return the position of the request to serve next; `waiting` must not be empty.

    The most urgent first; among equals the key with the fewest requests at the engine, so that one
    client's hundred requests do not hold up another's first; then in order of arrival.
    """
    return min(
        range(len(waiting)),
        key=lambda i: (
            -waiting[i].priority,
            in_flight_by_key.get(waiting[i].key, 0),
            waiting[i].number,
        ),
    )
