"""What is noted of one request on its way: counted, logged, and watched for stalls."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from enginehouse.core.chat import Usage
from enginehouse.core.errors import ErrorReport
from enginehouse.edges.request_log import RequestRow
from enginehouse.edges.telemetry import Finished
from enginehouse.gateway.gate import ANYONE, Caller


@dataclass(eq=False)
class Journey:
    """One request; it ends as exactly one outcome. Times in seconds."""

    dialect: str
    operation: str
    request_id: str = ""
    traceparent: str = ""
    caller: Caller = ANYONE
    asked: str = ""
    model: str = ""
    engine: str = ""
    outcome: str = ""
    status: int = 0
    error_id: str = ""
    load_s: float = 0.0
    queue_s: float = 0.0
    first_byte_s: float = 0.0
    chunks: int = 0
    usage: Usage | None = None
    is_held: bool = False
    is_truncated: bool = False
    warning: str = ""
    has_fallen_back: bool = False
    began: float = field(default_factory=time.perf_counter)
    sending_since: float = 0.0
    ended_by: ErrorReport | None = None
    is_gone: bool = False
    prompt: str | None = None
    answer: list[bytes] = field(default_factory=list)
    task: asyncio.Future[Any] | None = None

    @property
    def total_s(self) -> float:
        """The time since its arrival."""
        return time.perf_counter() - self.began

    def leave(self) -> None:
        """End it since the client has gone away."""
        self.is_gone = True
        if self.task is not None:
            self.task.cancel()

    def end_early(self, report: ErrorReport) -> None:
        """End it from outside, for a reason."""
        self.ended_by = report
        if self.task is not None:
            self.task.cancel()


def row_of(journey: Journey, now: float) -> RequestRow:
    """Return a request that has ended as a row of the log."""
    usage = journey.usage or Usage()
    return RequestRow(
        id=journey.request_id,
        at=now - journey.total_s,
        key=journey.caller.key,
        dialect=journey.dialect,
        operation=journey.operation,
        model=journey.model,
        engine=journey.engine,
        status=journey.status,
        outcome=journey.outcome,
        error=journey.error_id,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        queue_s=journey.queue_s,
        load_s=journey.load_s,
        first_byte_s=journey.first_byte_s,
        total_s=journey.total_s,
        truncated=int(journey.is_truncated),
        fell_back=int(journey.has_fallen_back),
        prompt=journey.prompt,
        answer=b"".join(journey.answer).decode("utf-8", "replace") if journey.answer else None,
    )


def finished_of(journey: Journey, row: RequestRow) -> Finished:
    """Return a request that has ended as telemetry takes it."""
    return Finished(row, journey.asked, journey.traceparent, journey.chunks > 0)
