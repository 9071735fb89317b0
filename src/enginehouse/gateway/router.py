"""Admission: one gate before one server; `core.admit` decides, this holds and releases."""

from __future__ import annotations

import asyncio
from collections import deque

from enginehouse.core.admit import Admission, Verdict, admit
from enginehouse.core.errors import EngineError
from enginehouse.gateway.supervisor import Supervisor


class RejectedError(EngineError):
    """The gate rejected a request; says when to come again."""

    def __init__(self, admission: Admission, evidence: tuple[str, ...]) -> None:
        super().__init__("gateway.rejected", admission.reason, evidence=evidence)
        self.retry_after_s = admission.retry_after_s


class Gate:
    """Lets requests pass in order of arrival, at most `most_in_flight` at once."""

    def __init__(self, supervisor: Supervisor, most_in_flight: int, queue_limit: int) -> None:
        self._supervisor = supervisor
        self._most_in_flight = most_in_flight
        self._queue_limit = queue_limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        supervisor.on_change = self._drain

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def enter(self) -> bool:
        """Pass the gate, now or after waiting; return whether the request was held.

        Raises:
            RejectedError: when the queue is full or the engine cannot serve.
        """
        verdict = self._ask(len(self._waiting))
        if verdict.verdict is Verdict.SERVE:
            self._supervisor.in_flight += 1
            return False
        if verdict.verdict is Verdict.REJECT:
            raise RejectedError(verdict, self._supervisor.evidence)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        return True

    def leave(self) -> None:
        """Give the place back and let the next one in."""
        self._supervisor.in_flight -= 1
        self._drain()

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
            turn = self._waiting.popleft()
            if turn.done():
                continue
            if verdict.verdict is Verdict.REJECT:
                turn.set_exception(RejectedError(verdict, self._supervisor.evidence))
                continue
            self._supervisor.in_flight += 1
            turn.set_result(None)
