"""Who may ask: keys, their limits, and which web pages and host names are meant."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from enginehouse.core.binding import is_loopback
from enginehouse.core.chat import Usage
from enginehouse.core.errors import ErrorReport, MachineError
from enginehouse.core.keys import ApiKey, key_in, may, recognise
from enginehouse.core.rate_limit import Bucket, charge, full, refilled, take
from enginehouse.gateway.answer import RequestError
from enginehouse.gateway.gate import Caller

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1", "host.docker.internal"})
LOOKED_AT = frozenset({b"host", b"origin", b"authorization", b"x-api-key", b"api-key"})
"""The headers that decide who may ask."""


@dataclass
class Guarded:
    """Checks every request; without keys everybody may who reaches the endpoint.

    A web page in a browser is a stranger even on the loopback: a request with an `Origin` passes
    only when that is among `origins` or the endpoint itself, and on the loopback the `Host` must be
    a name of this machine, so that a page cannot rebind its own name to it.
    """

    keys: Callable[[], Mapping[str, ApiKey]]
    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    is_local: bool = True
    _requests: dict[str, Bucket] = field(default_factory=dict)
    _tokens: dict[str, Bucket] = field(default_factory=dict)

    def check(self, scope: Scope, route_scope: str) -> Caller:
        """Return the caller.

        Raises:
            RequestError: 401, 403 or 429.
        """
        kept = self.keys()
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in LOOKED_AT
        }
        self._check_page(headers, bool(kept))
        if not kept:
            return Caller()
        key = key_in(headers)
        if not key:
            raise _refusal(
                "auth.missing", "an API key is needed", 401, ("the request has none",),
                ("send Authorization: Bearer KEY", "enginehouse keys create NAME"),
            )  # fmt: skip
        known = recognise(key, kept, time.time())
        if known is None:
            raise _refusal(
                "auth.unknown", "the API key is not known, expired or revoked", 401,
                (f"{len(kept)} keys were made here",), ("enginehouse keys list",),
            )  # fmt: skip
        if not may(known, route_scope):
            raise _refusal(
                "auth.scope", f"the key {known.name} may not do this", 403,
                (f"its scope is {known.scope}; {route_scope} is needed",),
                (f"enginehouse keys create NAME --scope {route_scope}",),
            )  # fmt: skip
        self._check_rate(known)
        return Caller(known.id, known.priority)

    def _check_page(self, headers: Mapping[str, str], has_keys: bool) -> None:
        host = headers.get("host", "")
        origin = headers.get("origin", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.strip("[]").lower()
        is_ours = name in LOCAL_NAMES or name in self.hosts or is_loopback(name)
        if origin and origin not in self.origins and "*" not in self.origins:
            is_same = origin.partition("://")[2] == host
            if not is_same:
                raise _refusal(
                    "auth.origin", f"pages of {origin[:100]} may not ask", 403,
                    ("the request's Origin names that page",), ("set gateway.origins",),
                )  # fmt: skip
        if self.is_local and not has_keys and host and not is_ours:
            raise _refusal(
                "auth.origin", f"this endpoint is not known as {name[:100]}", 403,
                ("the request's Host names it so",), ("set gateway.hosts",),
            )  # fmt: skip

    def _check_rate(self, key: ApiKey) -> None:
        now = time.monotonic()
        waits = [0.0]
        if key.tokens_per_min:
            bucket = self._tokens.get(key.id) or full(key.tokens_per_min, now)
            bucket = refilled(bucket, key.tokens_per_min, now)
            self._tokens[key.id] = bucket
            if bucket.left <= 0:
                waits.append((1.0 - bucket.left) * 60.0 / key.tokens_per_min)
        if key.requests_per_min and not max(waits):
            bucket = self._requests.get(key.id) or full(key.requests_per_min, now)
            self._requests[key.id], wait_s = take(bucket, 1.0, key.requests_per_min, now)
            waits.append(wait_s)
        if max(waits):
            report = ErrorReport(
                "rate.limited", f"the key {key.name} has used up its rate",
                (_rates(key),), ("ask again later", "enginehouse keys create NAME --rate N"),
                turn="user",
            )  # fmt: skip
            raise RequestError(report, 429, max(1, math.ceil(max(waits))))

    def note(self, caller: Caller, usage: Usage | None) -> None:
        """Charge the tokens of an answer to its key."""
        try:
            key = self.keys().get(caller.key) if caller.key else None
        except MachineError:  # the file broke meanwhile; the next request is told
            return
        if key is None or usage is None or not key.tokens_per_min:
            return
        now = time.monotonic()
        bucket = self._tokens.get(key.id) or full(key.tokens_per_min, now)
        spent = usage.prompt_tokens + usage.output_tokens
        self._tokens[key.id] = charge(bucket, spent, key.tokens_per_min, now)


def _rates(key: ApiKey) -> str:
    """Say what a key may use in a minute."""
    told = ((key.requests_per_min, "requests"), (key.tokens_per_min, "tokens"))
    return " and ".join(f"{rate:,} {what}" for rate, what in told if rate) + " a minute"


def _refusal(
    id: str, what: str, status: int, evidence: tuple[str, ...], remedies: tuple[str, ...]
) -> RequestError:
    return RequestError(ErrorReport(id, what, evidence, remedies, turn="user"), status)
