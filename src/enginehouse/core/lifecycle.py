"""The states of one served engine and the events that move it, as a table."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """Where a server is. Only `ready` serves."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"


class Event(str, Enum):
    """What can happen to a server."""

    START = "start"
    TOKEN = "token"
    ENDED = "ended"
    HUNG = "hung"
    GIVE_UP = "give-up"
    STOP = "stop"
    STOPPED = "stopped"


TABLE: dict[tuple[State, Event], State] = {
    (State.STOPPED, Event.START): State.STARTING,
    (State.STOPPED, Event.STOP): State.STOPPING,
    (State.STARTING, Event.TOKEN): State.READY,
    (State.STARTING, Event.ENDED): State.RESTARTING,
    (State.STARTING, Event.HUNG): State.RESTARTING,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.READY, Event.TOKEN): State.READY,
    (State.READY, Event.ENDED): State.RESTARTING,
    (State.READY, Event.HUNG): State.RESTARTING,
    (State.READY, Event.STOP): State.STOPPING,
    (State.RESTARTING, Event.START): State.STARTING,
    (State.RESTARTING, Event.GIVE_UP): State.FAILED,
    (State.RESTARTING, Event.STOP): State.STOPPING,
    (State.FAILED, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.STOPPED): State.STOPPED,
}


def next_state(state: State, event: Event) -> State:
    """Return the state after an event.

    Raises:
        ValueError: when the event cannot happen in that state.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise ValueError(f"{event.value} cannot happen to a {state.value} server") from None


def backoff_s(failures: int) -> float:
    """Return how long to wait before start number `failures` + 1: 0.5, 1, 2 … at most 30 s."""
    return min(30.0, 0.5 * 2.0 ** max(0, failures - 1))
