"""One task owns one engine server: starts it, proves it alive, starts it again when it fails."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from enginehouse.core.container import Container
from enginehouse.core.engine import Call, Endpoint
from enginehouse.core.errors import EnginehouseError
from enginehouse.core.lifecycle import Event, State, backoff_s, next_state
from enginehouse.edges.http import make_call, open_session
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.processes import EngineProcess
from enginehouse.edges.scratch import names_folder
from enginehouse.edges.slots import SlotKeeper
from enginehouse.gateway.replay import Replay

FAILED_REST_S = 30.0
"""A server that failed for good may be tried anew after this long."""
STALL_S = 120.0
MEMORY_FOR_S = 3.0
"""How long a reading of the engine's memory is shown: reading it walks all its pages."""
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class ServerPlan:
    """How one server is started and held; times in seconds.

    `context_tokens` is what one request may use, 0 where that is not known.
    """

    model_name: str
    engine: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    endpoint: Endpoint
    ready_path: str
    log_path: Path
    slots: int
    scratch: Path | None = None
    calls: tuple[Call, ...] = ()
    stop_signal: str = "SIGTERM"
    container: Container | None = None
    shared_slots: int = 0
    most_choices: int = 0
    prefix_limit_bytes: int = 512 << 20
    can_embed: bool = False
    context_tokens: int = 0
    most_failures: int = 5
    load_deadline_s: float = 300.0
    first_token_deadline_s: float = 60.0
    probe_interval_s: float = 3.0
    token_interval_s: float = 15.0
    probe_deadline_s: float = 4.0

    @property
    def uses_scratch(self) -> bool:
        """Whether the engine is told of its folder."""
        return self.scratch is not None and names_folder(self.scratch, self.argv, self.env)


def new_keeper(plan: ServerPlan) -> SlotKeeper | None:
    """Return what seats the requests of one run of the engine, None where it seats them itself."""
    if not plan.shared_slots or plan.scratch is None:
        return None
    return SlotKeeper(plan.endpoint, plan.shared_slots, plan.scratch, plan.prefix_limit_bytes)


class Supervisor:
    """The owner of one server. Others wait for changes and report progress; they decide nothing."""

    def __init__(self, plan: ServerPlan, leases: LeaseBook) -> None:
        self.plan = plan
        self.state = State.STOPPED
        self.reason = "not started"
        self.evidence: tuple[str, ...] = ()
        self.restarts = 0
        self.last_token_at = 0.0
        self.failed_at = 0.0
        self.in_flight = 0
        self.keeper: SlotKeeper | None = None
        self.last_progress_at = 0.0
        self._memory = 0
        self._memory_at = -math.inf
        self._replay = Replay()
        self.on_change: Callable[[], None] = lambda: None
        self._leases = leases
        self._changed = asyncio.Event()
        self._stop_wanted = asyncio.Event()
        self._process: EngineProcess | None = None

    async def run(self) -> None:
        """Hold the server until `stop`; returns when it is stopped."""
        failures = 0
        while not self._stop_wanted.is_set():
            if self.state is State.FAILED:
                await self._stop_wanted.wait()
                break
            self._move(Event.START, "the engine is starting")
            began = time.monotonic()
            event, reason = await self._hold_once()
            if self._stop_wanted.is_set():
                break
            failures = 1 if time.monotonic() - began > 60.0 else failures + 1
            self._move(event, reason)
            self.restarts += 1
            if failures >= self.plan.most_failures:
                self.failed_at = time.monotonic()
                self._move(Event.GIVE_UP, f"{reason}; it failed {failures} times in a row")
                continue
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop_wanted.wait(), backoff_s(failures))
        self._move(Event.STOP, "the engine is stopping")
        self._move(Event.STOPPED, "stopped")

    async def stop(self) -> None:
        """Ask for the end; `run` returns once the engine has ended."""
        self._stop_wanted.set()

    async def wait_change(self) -> None:
        """Wait until the state changes."""
        await self._changed.wait()

    async def wait_noticed(self, limit_s: float) -> None:
        """Wait, at most `limit_s`, until a ready server is seen not to be."""
        if self.state is State.READY:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wait_change(), limit_s)

    async def wait_settled(self) -> State:
        """Wait until the server is ready or has failed, and say which."""
        while self.state not in (State.READY, State.FAILED):
            await self.wait_change()
        return self.state

    def has_failed_long(self) -> bool:
        """Whether it failed for good a while ago, so that it may be tried anew."""
        if self.state is not State.FAILED:
            return False
        return time.monotonic() - self.failed_at > FAILED_REST_S

    def memory(self, max_age_s: float = MEMORY_FOR_S) -> int:
        """Return the engine's memory in bytes (PSS where known, else RSS), read not long ago."""
        if self._process is None:
            return 0
        now = time.monotonic()
        if now - self._memory_at >= max_age_s:
            rss, pss = self._process.memory()
            self._memory, self._memory_at = pss or rss, now
        return self._memory

    def progress(self) -> None:
        """Note that an answer's bytes came out of the engine."""
        self.last_progress_at = time.monotonic()

    def note_served(self, path: str, body: bytes) -> None:
        """Note that a request was answered whole: proof of life, and what to probe with next."""
        self.last_token_at = time.monotonic()
        self._replay.note(path, body)

    def _move(self, event: Event, reason: str) -> None:
        self.state = next_state(self.state, event)
        self.reason = reason
        self._memory_at = -math.inf
        self._changed.set()
        self._changed = asyncio.Event()
        self.on_change()

    async def _hold_once(self) -> tuple[Event, str]:
        """Start the engine and hold it until it ends, hangs, or the stop is wanted."""
        plan = self.plan
        files = (Path(plan.endpoint.socket_path),) if plan.endpoint.socket_path else ()
        process = EngineProcess(
            plan.argv,
            env=dict(plan.env),
            log_path=plan.log_path,
            leases=self._leases,
            files=files,
            scratch=plan.scratch if plan.uses_scratch else None,
            stop_signal=plan.stop_signal,
            container=plan.container,
        )
        self.keeper = new_keeper(plan)
        self._replay = Replay()
        try:
            await process.start()
        except EnginehouseError as problem:
            self.evidence = problem.report.evidence
            return Event.ENDED, problem.report.what
        self._process = process
        ended = asyncio.ensure_future(process.wait())
        alive = asyncio.ensure_future(self._stay_alive())
        stop = asyncio.ensure_future(self._stop_wanted.wait())
        try:
            await asyncio.wait({ended, alive, stop}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                self.evidence = process.log_tail(8)
                return Event.ENDED, f"the engine ended with {ended.result().describe()}"
            if alive.done():
                self.evidence = process.log_tail(8)
                process.kill()
                return Event.HUNG, alive.result()
            return Event.STOP, "stop was asked for"
        finally:
            for task in (alive, stop):
                task.cancel()
            await asyncio.gather(alive, stop, return_exceptions=True)
            await process.stop()
            await ended

    async def _stay_alive(self) -> str:
        """Prove life again and again; return why it can no longer be proven."""
        plan = self.plan
        async with open_session(plan.endpoint, keep_alive=False) as session:
            try:
                await asyncio.wait_for(self._wait_loaded(session), plan.load_deadline_s)
            except asyncio.TimeoutError:
                return f"the model was not loaded within {plan.load_deadline_s:g} s"
            for call in plan.calls:
                problem = await make_call(session, call)
                if problem:
                    return problem
            problem = await self._probe_token(session, plan.first_token_deadline_s)
            if problem:
                return f"no first token: {problem}"
            if not problem:
                self._move(Event.TOKEN, "ready: a token came out")
            while not problem:
                await asyncio.sleep(plan.probe_interval_s)
                problem = await self._probe(session)
            return f"the engine hangs: {problem}"

    async def _wait_loaded(self, session: aiohttp.ClientSession) -> None:
        while await self._probe_http(session, 5.0):  # noqa: ASYNC110 - another process is asked
            await asyncio.sleep(0.05)

    async def _probe(self, session: aiohttp.ClientSession) -> str:
        """Probe a busy engine by its HTTP threads and its streams, an idle one by real tokens."""
        problem = await self._probe_http(session, self.plan.probe_deadline_s)
        if problem:
            return problem
        if self.in_flight == 0:
            if time.monotonic() - self.last_token_at < self.plan.token_interval_s:
                return ""
            return await self._probe_token(session, self.plan.probe_deadline_s)
        quiet_s = time.monotonic() - self.last_progress_at
        if quiet_s > STALL_S:
            return f"{self.in_flight} requests have had no byte for {quiet_s:.0f} s"
        return ""

    async def _probe_http(self, session: aiohttp.ClientSession, limit_s: float) -> str:
        path = self.plan.ready_path
        try:
            async with session.get(path, timeout=aiohttp.ClientTimeout(total=limit_s)) as answer:
                return "" if answer.status == 200 else f"{path} answered {answer.status}"
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
            return f"{path} did not answer within {limit_s:g} s ({type(problem).__name__})"

    async def _probe_token(self, session: aiohttp.ClientSession, limit_s: float) -> str:
        """Ask for one real token (an embedding of an embedding model); say what went wrong."""
        path, body = self._replay.probe()
        if self.plan.can_embed:
            path, body = "/v1/embeddings", b'{"input": "Hi"}'
        if self._replay.is_first:
            limit_s = max(limit_s, self.plan.first_token_deadline_s)
        try:
            async with session.post(
                path, data=body, headers=JSON, timeout=aiohttp.ClientTimeout(total=limit_s)
            ) as answer:
                text = await answer.text()
                if answer.status != 200:
                    return f"{path} answered {answer.status}: {text}"
                self.last_token_at = time.monotonic()
                self._replay.judge(text)
                return ""
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
            if self.in_flight:
                return ""  # requests came in meanwhile and the engine is busy with them
            return f"no token within {limit_s:g} s ({type(problem).__name__})"
