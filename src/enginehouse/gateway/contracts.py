"""What a proxy is given by who makes it: its rules, who may ask, and where models come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Scope

from enginehouse.core.catalog import no_model
from enginehouse.core.chat import Usage
from enginehouse.gateway.gate import Caller
from enginehouse.gateway.kept import KeepLimits
from enginehouse.gateway.router import Offer


@dataclass(frozen=True)
class Rules:
    """What every request keeps to; sizes in bytes, times in seconds, 0 for no limit."""

    request_limit_bytes: int = 64 << 20
    body_limit_s: float = 60.0
    time_limit_s: float = 0.0
    stall_limit_s: float = 60.0
    truncation: str = "error"
    is_content_logged: bool = False
    kept: KeepLimits = field(default_factory=KeepLimits)


class Access(Protocol):
    """Says who a request comes from and whether it may.

    `origins` are those of the web pages that may ask, "*" for all.
    """

    @property
    def origins(self) -> frozenset[str]:
        """The origins of web pages that may ask."""

    def check(self, scope: Scope, route_scope: str) -> Caller:
        """Return the caller.

        Raises:
            RequestError: 401, 403 or 429.
        """

    def note(self, caller: Caller, usage: Usage | None) -> None:
        """Note what a caller's request cost."""


class Open:
    """Lets everybody in: for an endpoint on the loopback without keys."""

    origins: frozenset[str] = frozenset()

    def check(self, scope: Scope, route_scope: str) -> Caller:
        """Return nobody in particular."""
        return Caller()

    def note(self, caller: Caller, usage: Usage | None) -> None:
        """Note nothing."""


class Library(Protocol):
    """Fetches models and forgets them."""

    async def fetch(self, name: str, on_progress: Callable[[str, str, int, int], None]) -> Offer:
        """Fetch a model that is not here yet; `on_progress` may be called from any thread.

        Raises:
            EnginehouseError: when it cannot be had.
        """

    async def forget(self, name: str) -> None:
        """Forget a model; its file stays."""

    def aliases(self) -> dict[str, str]:
        """Return the names that clients gave, each with the model it means."""

    def keep_aliases(self, aliases: dict[str, str]) -> None:
        """Keep the names that clients gave."""


class NoLibrary:
    """Knows only what is offered."""

    async def fetch(self, name: str, on_progress: Callable[[str, str, int, int], None]) -> Offer:
        """Refuse."""
        raise no_model(name)

    async def forget(self, name: str) -> None:
        """Do nothing."""

    def aliases(self) -> dict[str, str]:
        """Return none."""
        return {}

    def keep_aliases(self, aliases: dict[str, str]) -> None:
        """Keep nothing."""
