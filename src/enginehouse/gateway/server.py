"""One engine that serves one model: its owner, its gate, and the connections to it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import aiohttp

from enginehouse.core.lifecycle import State
from enginehouse.edges.http import open_session
from enginehouse.edges.leases import LeaseBook
from enginehouse.gateway.gate import ANYONE, Caller, Gate
from enginehouse.gateway.supervisor import ServerPlan, Supervisor

SPARE_IN_FLIGHT = 2
"""Requests beyond the slots that may wait at the engine, so that a free slot is never idle."""


class Server:
    """Starts with `start`, ends with `stop`; the router decides when."""

    def __init__(
        self, plan: ServerPlan, leases: LeaseBook, queue_limit: int, spare: int = SPARE_IN_FLIGHT
    ) -> None:
        self.plan = plan
        self.supervisor = Supervisor(plan, leases)
        self.gate = Gate(self.supervisor, plan.slots + spare, queue_limit)
        self.last_used_at = time.monotonic()
        self.keep_alive_s: float | None = None
        self.load_s = 0.0
        self._owner: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Start the engine; `supervisor` tells when it is ready."""
        self.kept = open_session(self.plan.endpoint)
        self.fresh = open_session(self.plan.endpoint, keep_alive=False)
        self._owner = asyncio.ensure_future(self._own())

    async def _own(self) -> None:
        began = time.monotonic()
        running = asyncio.ensure_future(self.supervisor.run())
        settled = asyncio.ensure_future(self.supervisor.wait_settled())
        await asyncio.wait({running, settled}, return_when=asyncio.FIRST_COMPLETED)
        self.load_s = time.monotonic() - began
        settled.cancel()
        await running

    async def stop(self, drain_s: float = 0.0) -> None:
        """Let requests end for at most `drain_s`, then end the engine."""
        if drain_s and self.in_flight:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_s)
        await self.supervisor.stop()
        if self._owner is not None:
            await self._owner
            await self.kept.close()
            await self.fresh.close()

    @property
    def in_flight(self) -> int:
        """Requests at the engine or waiting for it."""
        return self.supervisor.in_flight + self.gate.waiting

    @property
    def is_ready(self) -> bool:
        """Whether tokens come out of it."""
        return self.supervisor.state is State.READY

    def expires_at(self, default_s: float | None) -> float | None:
        """Return the `time.monotonic` at which it may be unloaded, None for never."""
        keep_s = self.keep_alive_s if self.keep_alive_s is not None else default_s
        if keep_s is None or keep_s < 0:
            return None
        return self.last_used_at + keep_s

    async def enter(self, caller: Caller = ANYONE) -> bool:
        """Take a place before the engine; return whether the request had to wait for it.

        Raises:
            RejectedError: when the queue is full or the engine cannot serve.
        """
        held = await self.gate.enter(caller)
        self._idle.clear()
        self.supervisor.progress()
        return held

    def leave(self, caller: Caller = ANYONE) -> None:
        """Give the place back."""
        self.gate.leave(caller)
        self.last_used_at = time.monotonic()
        if not self.in_flight:
            self._idle.set()

    async def get(self, path: str) -> tuple[int, str, bytes]:
        """Return the status, content type and body of a small GET to the engine."""
        limit = aiohttp.ClientTimeout(total=30.0)
        async with self.fresh.get(path, timeout=limit) as answer:
            kind = answer.headers.get("Content-Type", "application/json")
            return answer.status, kind, await answer.read()

    async def post(self, path: str, body: bytes, limit_s: float = 60.0) -> tuple[int, bytes]:
        """Return the status and body of a small POST to the engine."""
        async with self.fresh.post(
            path,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=limit_s),
        ) as answer:
            return answer.status, await answer.read()
