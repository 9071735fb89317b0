"""Admission: one gate before one server; `core.admit` decides, this holds and releases."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from enginehouse.core.admit import Admission, Verdict, Waiting, admit, next_in_line
from enginehouse.core.errors import EngineError
from enginehouse.gateway.supervisor import Supervisor


class RejectedError(EngineError):
    """The gate rejected a request; says when to come again."""

    def __init__(self, admission: Admission, evidence: tuple[str, ...]) -> None:
        super().__init__("gateway.rejected", admission.reason, evidence=evidence)
        self.retry_after_s = admission.retry_after_s


@dataclass(frozen=True)
class Caller:
    """Whose request it is, for fairness, and how urgent."""

    key: str = ""
    priority: int = 0


ANYONE = Caller()


class Gate:
    """Lets requests pass, at most `most_in_flight` at once, in the order that `core.admit` says."""

    def __init__(self, supervisor: Supervisor, most_in_flight: int, queue_limit: int) -> None:
        self._supervisor = supervisor
        self._most_in_flight = most_in_flight
        self._queue_limit = queue_limit
        self._waiting: list[tuple[Waiting, asyncio.Future[None]]] = []
        self._by_key: Counter[str] = Counter()
        self._arrivals = 0
        supervisor.on_change = self._drain

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def enter(self, caller: Caller = ANYONE) -> bool:
        """Pass the gate, now or after waiting; return whether the request was held.

        Raises:
            RejectedError: when the queue is full or the engine cannot serve.
        """
        verdict = self._ask(len(self._waiting))
        if verdict.verdict is Verdict.SERVE:
            self._let_in(caller.key)
            return False
        if verdict.verdict is Verdict.REJECT:
            raise RejectedError(verdict, self._supervisor.evidence)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        place = (Waiting(caller.key, caller.priority, self._arrivals), turn)
        self._waiting.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(caller)
            elif place in self._waiting:
                self._waiting.remove(place)
            raise
        return True

    def leave(self, caller: Caller = ANYONE) -> None:
        """Give the place back and let the next one in."""
        self._supervisor.in_flight -= 1
        self._by_key[caller.key] -= 1
        if not self._by_key[caller.key]:
            del self._by_key[caller.key]
        self._drain()

    def _let_in(self, key: str) -> None:
        self._supervisor.in_flight += 1
        self._by_key[key] += 1

    def _ask(self, ahead: int) -> Admission:
        return admit(
            self._supervisor.state,
            self._supervisor.in_flight,
            ahead,
            self._most_in_flight,
            self._queue_limit,
        )

    def _drain(self) -> None:
        while self._waiting:
            verdict = self._ask(0)
            if verdict.verdict is Verdict.HOLD:
                return
            position = next_in_line([waiting for waiting, _ in self._waiting], self._by_key)
            waiting, turn = self._waiting.pop(position)
            if turn.done():
                continue
            if verdict.verdict is Verdict.REJECT:
                turn.set_exception(RejectedError(verdict, self._supervisor.evidence))
                continue
            self._let_in(waiting.key)
            turn.set_result(None)
