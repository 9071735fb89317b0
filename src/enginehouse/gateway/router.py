"""The router: which models are offered, which are loaded, and who makes room for whom.

`core.placement` decides; this loads and unloads, one change at a time. A request asks for a server
with `ready()` and never looks at the state itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from enginehouse.core.catalog import Served, find_served, plain_name
from enginehouse.core.errors import EnginehouseError, MachineError, UserError
from enginehouse.core.lifecycle import State
from enginehouse.core.placement import Held, Room, place
from enginehouse.edges.leases import LeaseBook
from enginehouse.gateway.server import Server
from enginehouse.gateway.supervisor import ServerPlan

WATCH_S = 1.0
DRAIN_S = 120.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One step of a model's fallback chain: how to start it, or another model to ask instead.

    `plan` makes a server's plan for a context of so many tokens (None: as it was chosen);
    `needed_bytes` is the prediction.
    """

    label: str
    plan: Callable[[int | None], ServerPlan] | None = None
    needed_bytes: int = 0
    served_context: int = 0
    other_model: str = ""


@dataclass(frozen=True)
class Offer:
    """A model that can be served: how it is shown, and its chain of ways to serve it.

    `has_own_tools` tells that its template and engine know tool calls (else `core.tools` does), and
    `tells_length` that its engine says where an answer ended at its limit (else `core.length`).
    """

    served: Served
    steps: tuple[Step, ...]
    is_pinned: bool = False
    keep_alive_s: float | None = None
    request_names: Mapping[str, str] = field(default_factory=dict)
    tokens_api: str = ""
    has_own_tools: bool = True
    tells_length: bool = True


@dataclass
class Limits:
    """What the router keeps to; times in seconds."""

    queue_limit: int = 256
    load_wait_s: float = 300.0
    spare: int = 2
    free_bytes: Callable[[], int] = lambda: 1 << 62


class Router:
    """Holds the offers and the loaded servers."""

    def __init__(self, offers: tuple[Offer, ...], leases: LeaseBook, limits: Limits) -> None:
        self._offers = {offer.served.name: offer for offer in offers}
        self.aliases: dict[str, str] = {}
        self._leases = leases
        self.limits = limits
        self._servers: dict[str, Server] = {}
        self._step: dict[str, int] = {}
        self._changing = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._unloading: set[asyncio.Task[None]] = set()
        self._names: dict[str, str] = {}
        self.on_fallback: Callable[[str, str], None] = lambda model, label: None
        self.observed: dict[str, int] = {}

    # what is offered

    @property
    def default(self) -> Offer | None:
        """The model that a request means which names none: the first."""
        return next(iter(self._offers.values()), None)

    def offer(self, name: str) -> Offer | None:
        """Return the offer that a request's model name means; an empty one means the first."""
        if not name:
            return self.default
        known = self._names.get(name)
        if known is not None:
            return self._offers[known]
        found = find_served(self.catalog(with_memory=False), name)
        if found is None:
            return None
        if len(self._names) < 4096:
            self._names[name] = found.name
        return self._offers[found.name]

    def catalog(self, with_memory: bool = True) -> tuple[Served, ...]:
        """Return all offers as they stand now; reading what they hold takes milliseconds."""
        return tuple(self._shown(offer, with_memory) for offer in self._offers.values())

    def _shown(self, offer: Offer, with_memory: bool) -> Served:
        name = offer.served.name
        aliases = tuple(a for a, target in self.aliases.items() if target == name)
        step = offer.steps[min(self._step.get(name, 0), len(offer.steps) - 1)]
        shown = dataclasses.replace(
            offer.served,
            aliases=(*offer.served.aliases, *aliases),
            served_context=step.served_context or offer.served.served_context,
        )
        server = self._servers.get(name)
        if server is None or not server.is_ready:
            return shown
        ends = server.expires_at(offer.keep_alive_s)
        return dataclasses.replace(
            shown,
            is_loaded=True,
            memory_bytes=server.supervisor.memory() if with_memory else 0,
            served_context=server.plan.context_tokens or shown.served_context,
            expires_at=None if ends is None else time.time() + ends - time.monotonic(),
        )

    def add(self, offer: Offer) -> None:
        """Offer a model besides."""
        self._offers[offer.served.name] = offer
        self._names.clear()

    def alias(self, source: str, destination: str) -> None:
        """Give a model another name besides.

        Raises:
            UserError: `model_not_found`.
        """
        offer = self.require(source)
        self.aliases[plain_name(destination)] = offer.served.name
        self._names.clear()

    async def remove(self, name: str) -> bool:
        """Take a name away: an alias, or a model, which is unloaded; say whether it was a model."""
        self._names.clear()
        if self.aliases.pop(plain_name(name), None):
            return False
        offer = self.require(name)
        await self.unload(offer.served.name)
        del self._offers[offer.served.name]
        for alias in [a for a, target in self.aliases.items() if target == offer.served.name]:
            del self.aliases[alias]
        self._names.clear()
        return True

    def require(self, name: str) -> Offer:
        """Return the offer of a name.

        Raises:
            UserError: `model_not_found`, naming what is served.
        """
        offer = self.offer(name)
        if offer is None:
            raise unknown_model(name, tuple(self._offers))
        return offer

    # what is loaded

    @property
    def servers(self) -> Mapping[str, Server]:
        """The servers that are loaded or loading, by model."""
        return self._servers

    def loaded(self, offer: Offer, context: int | None = None) -> Server | None:
        """Return the model's server when nothing needs to change for it."""
        server = self._servers.get(offer.served.name)
        if server is None or server.supervisor.has_failed_long():
            return None
        if context and 0 < server.plan.context_tokens < self._wanted(offer, context):
            return None
        return server

    def standing(self, offer: Offer) -> tuple[Offer, Server | None]:
        """Return who answers for a model as its chain stands now, and the server where loaded."""
        step = offer.steps[self._step.get(offer.served.name, 0)]
        other = self.offer(step.other_model) if step.other_model else None
        if other is not None:
            return self.standing(other)
        return offer, self._servers.get(offer.served.name)

    async def find(self, name: str, context: int | None = None) -> tuple[Offer, Server]:
        """Return a server of the model, started if need be; others may have to make room.

        Raises:
            UserError: `model_not_found`; MachineError: `memory.no_room`.
        """
        offer = self.require(name)
        step = offer.steps[self._step.get(offer.served.name, 0)]
        if step.other_model:
            return await self.find(step.other_model, context)
        return offer, self.loaded(offer, context) or await self._load(offer, context)

    async def preload(self, offer: Offer) -> str:
        """Load a model beside those that are loaded; return why it could not be, else nothing.

        Nothing is unloaded for it: it is not asked for yet.

        Raises:
            EnginehouseError: when it cannot be started.
        """
        name = offer.served.name
        step = offer.steps[self._step.get(name, 0)]
        wanted, free = self.observed.get(name) or step.needed_bytes, self.limits.free_bytes()
        if self.loaded(offer) is None and wanted > free:
            return f"it needs about {wanted:,} bytes; {max(0, free):,} are free above the reserve"
        limit_s = self.limits.load_wait_s
        try:
            return await asyncio.wait_for(self._preload(offer), limit_s)
        except asyncio.TimeoutError:
            return f"it was not loaded within {limit_s:g} s"

    async def _preload(self, offer: Offer) -> str:
        while True:
            answering, server = await self.find(offer.served.name)
            if await server.supervisor.wait_settled() is State.READY:
                return ""
            if not await self.fall_back(answering, server):
                return server.supervisor.reason

    async def fall_back(self, offer: Offer, failed: Server) -> bool:
        """Go on with the next step of a model's chain, after its server failed for good.

        False when there is no further step.
        """
        name = offer.served.name
        async with self._changing:
            if self._servers.get(name) is not failed:
                return True  # another request was first
            here = self._step.get(name, 0)
            if here + 1 >= len(offer.steps):
                return False
            self._step[name] = here + 1
            label = offer.steps[here + 1].label
            self.on_fallback(name, label)
            log.warning("%s falls back to %s: %s", name, label, failed.supervisor.reason)
            del self._servers[name]
            await failed.stop()
            return True

    async def _load(self, offer: Offer, context: int | None) -> Server:
        """Start a model's server; one change at a time."""
        ends = time.monotonic() + self.limits.load_wait_s
        while True:
            async with self._changing:
                server = self.loaded(offer, context)
                if server is not None:
                    return server
                step = offer.steps[self._step.get(offer.served.name, 0)]
                old = self._servers.pop(offer.served.name, None)
                if old is not None:
                    await old.stop(DRAIN_S)
                if await self._make_room(offer, step):
                    wanted = self._wanted(offer, context) if context else None
                    return self._start(offer, step, wanted)
            if time.monotonic() > ends:
                raise MachineError(
                    "memory.no_room",
                    f"no room for {offer.served.name} within {self.limits.load_wait_s:g} s",
                    evidence=("the models that could make room are answering requests",),
                    remedies=("ask again later", "pin fewer models"),
                )
            await asyncio.sleep(0.2)

    def _wanted(self, offer: Offer, context: int) -> int:
        """Return the context to serve for one that is asked for: at most the model's own limit."""
        most = offer.served.context_length
        return min(context, most) if most else context

    def _start(self, offer: Offer, step: Step, context: int | None) -> Server:
        assert step.plan is not None
        larger = context if context and context > step.served_context else None
        plan = step.plan(larger)
        if len(offer.steps) > 1:
            plan = dataclasses.replace(plan, most_failures=2)
        server = Server(plan, self._leases, self.limits.queue_limit, self.limits.spare)
        self._servers[offer.served.name] = server
        server.start()
        return server

    async def _make_room(self, offer: Offer, step: Step) -> bool:
        """Unload what has to make room; False when busy models have to be waited for.

        Raises:
            MachineError: `memory.no_room`, when even all others would not make room.
        """
        wanted = self.observed.get(offer.served.name) or step.needed_bytes
        held = [self._held(name, server) for name, server in self._servers.items()]
        decision = place(wanted, self.limits.free_bytes(), held)
        if decision.room is Room.REFUSE:
            raise MachineError(
                "memory.no_room",
                f"{offer.served.name} cannot be loaded",
                evidence=(decision.reason,),
                remedies=("pin fewer models", "lower trials.memory_reserve", "enginehouse fit"),
            )
        for name in decision.evict:
            log.info("%s is unloaded to make room for %s", name, offer.served.name)
            await self._stop(name)
        return decision.room is Room.LOAD

    def _held(self, name: str, server: Server) -> Held:
        offer = self._offers.get(name)
        predicted = offer.steps[0].needed_bytes if offer else 0
        return Held(
            name,
            server.supervisor.memory(0.0) or predicted,
            server.in_flight,
            bool(offer and offer.is_pinned),
            server.load_s or 1.0,
            time.monotonic() - server.last_used_at,
        )

    async def unload(self, name: str, drain_s: float = DRAIN_S) -> None:
        """Unload a model once its requests have ended."""
        async with self._changing:
            server = self._servers.get(name)
            if server is not None:
                del self._servers[name]
                self._step.pop(name, None)  # next time its chain is begun anew
                await server.stop(drain_s)

    def unload_soon(self, name: str) -> None:
        """Unload a model in the background, once its requests have ended."""
        task = asyncio.ensure_future(self.unload(name))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _stop(self, name: str) -> None:
        server = self._servers.pop(name)
        self.observed[name] = max(self.observed.get(name, 0), server.supervisor.memory(0.0))
        await server.stop()

    # life

    def start(self) -> None:
        """Watch for models that were idle long enough."""
        self._watcher = asyncio.ensure_future(self._watch())

    async def stop(self, drain_s: float = 0.0) -> None:
        """End all engines."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        servers = list(self._servers.values())
        self._servers.clear()
        await asyncio.gather(*(server.stop(drain_s) for server in servers))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for name, server in list(self._servers.items()):
                offer = self._offers.get(name)
                ends = server.expires_at(offer.keep_alive_s if offer else None)
                if ends is None or now < ends or server.in_flight or not server.is_ready:
                    continue
                log.info("%s is unloaded: no request for a while", name)
                with suppress(EnginehouseError):
                    await self.unload(name)


def unknown_model(name: str, served: tuple[str, ...]) -> UserError:
    """Report a model that is not served, naming those that are."""
    return UserError(
        "model_not_found",
        f"model '{name[:100]}' not found",
        evidence=(f"served: {', '.join(served) or 'none'}",),
        remedies=(*(f"ask for {one}" for one in served[:1]), f"enginehouse up {name[:100]}"),
    )
