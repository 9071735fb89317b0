"""Look at a running endpoint over HTTP: its health, its metrics, and what it has loaded."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from enginehouse.core.errors import EnginehouseError, MachineError, UserError
from enginehouse.core.top import (
    Key,
    Look,
    Running,
    is_enginehouse,
    read_health,
    read_running,
)

ANSWER_LIMIT_S = 10.0
ANSWER_LIMIT_BYTES = 16 << 20
RUNNING_EVERY_S = 10.0
"""How often what is loaded is asked for while no state changes: the endpoint logs each such GET."""
SHOWN_CHARS = 120
PASSING = ("endpoint.unreachable", "endpoint.rate_limited")
"""Errors that may be over at the next look."""
ELSEWHERE = "name the endpoint: --url http://HOST:PORT"


@dataclass(frozen=True)
class _Page:
    """An answer; `kind` is its path's."""

    path: str
    status: int
    text: str
    headers: Mapping[str, str]

    def document(self) -> object:
        """Return the body as JSON, None when it is not."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    def says(self) -> str:
        """Say in one line what was answered."""
        start = "".join(c if c.isprintable() else " " for c in self.text[:SHOWN_CHARS]).strip()
        return f"GET {self.path} answered {self.status}: {start or 'nothing'}"


@dataclass
class EndpointReader:
    """Reads one endpoint; open it with `async with`."""

    url: str
    key: str = ""
    _session: aiohttp.ClientSession | None = field(default=None, init=False)
    _running: Mapping[str, Running] = field(default_factory=dict, init=False)
    _models: Mapping[str, str] | None = field(default=None, init=False)
    _asked_at: float = field(default=0.0, init=False)

    async def __aenter__(self) -> EndpointReader:
        self.url = parse_endpoint(self.url)
        headers = {"Authorization": f"Bearer {_checked(self.key)}"} if self.key else {}
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def look(self) -> Look:
        """Look once.

        Raises:
            MachineError: `endpoint.unreachable`; UserError: `endpoint.key`,
                `endpoint.rate_limited`, `endpoint.refused`, `endpoint.not_enginehouse`.
        """
        page = await self._get("/health")
        health = read_health(page.document())
        if health is None:
            raise self._stranger(page)
        page = await self._get("/metrics")
        self._check(page)
        series = parse_metrics(page.text)
        if not is_enginehouse(series):
            raise self._stranger(page)
        at_s, now = time.monotonic(), time.time()
        if health.models != self._models or at_s - self._asked_at > RUNNING_EVERY_S:
            page = await self._get("/api/ps")
            self._check(page)
            self._running = read_running(page.document())
            self._models, self._asked_at = health.models, at_s
        return Look(at_s, now, series, health, self._running)

    async def _get(self, path: str) -> _Page:
        assert self._session is not None
        try:
            async with self._session.get(self.url + path, allow_redirects=False) as answer:
                body = bytearray()
                async for piece in answer.content.iter_chunked(1 << 16):
                    body += piece
                    if len(body) > ANSWER_LIMIT_BYTES:
                        break
                text = body.decode("utf-8", "replace")
                return _Page(path, answer.status, text, dict(answer.headers))
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
            raise self._unreachable(path, problem) from problem

    def _check(self, page: _Page) -> None:
        if page.status == 200:
            return
        if page.status == 401:
            raise UserError(
                "endpoint.key",
                f"{self.url} refused the API key" if self.key else f"{self.url} needs an API key",
                evidence=(page.says(),),
                remedies=(
                    "give one: --key KEY, or the environment variable ENGINEHOUSE_API_KEY",
                    "enginehouse keys list",
                    "enginehouse keys create top",
                ),
            )
        if page.status == 429:
            after = page.headers.get("Retry-After", "")
            raise UserError(
                "endpoint.rate_limited",
                f"{self.url} answers no more for now: the key has used up its rate",
                evidence=(page.says(), *([f"Retry-After: {after}"] if after else [])),
                remedies=("look less often: --interval 10s", "enginehouse keys create top"),
            )
        if page.status in (403, 421):
            raise UserError(
                "endpoint.refused",
                f"{self.url} does not answer to this name or to this key",
                evidence=(page.says(),),
                remedies=("ask by 127.0.0.1 on that machine", "set gateway.hosts there"),
            )
        raise self._stranger(page)

    def _stranger(self, page: _Page) -> EnginehouseError:
        return UserError(
            "endpoint.not_enginehouse",
            f"what answers at {self.url} is not an Enginehouse",
            evidence=(page.says(),),
            remedies=(ELSEWHERE, "see where it listens: enginehouse config show"),
        )

    def _unreachable(self, path: str, problem: Exception) -> EnginehouseError:
        remedies = ["start one: enginehouse serve", ELSEWHERE]
        why = str(problem)
        if isinstance(problem, aiohttp.ClientConnectorCertificateError):
            remedies = ["trust its certificate: SSL_CERT_FILE=CERTIFICATE.pem enginehouse top"]
        elif isinstance(problem, aiohttp.ClientSSLError):
            remedies = ["ask by http://, if it speaks no TLS", ELSEWHERE]
        elif isinstance(problem, aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError):
            remedies = ["ask by https://, if it speaks TLS", ELSEWHERE]
        elif isinstance(problem, asyncio.TimeoutError):
            why = f"no answer within {ANSWER_LIMIT_S:g} s"
        return MachineError(
            "endpoint.unreachable",
            f"no Enginehouse can be reached at {self.url}",
            evidence=(f"GET {path}: {type(problem).__name__}: {why}",),
            remedies=tuple(remedies),
        )


def parse_endpoint(url: str) -> str:
    """Return an endpoint's URL without a slash at its end; without a scheme it is http.

    Raises:
        UserError: `endpoint.bad_url`.
    """
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(full)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
        parts = urllib.parse.SplitResult("", "", "", "", "")
    if not is_good or parts.query or parts.fragment or parts.username or parts.password:
        shown = full.rpartition("@")[2]
        raise UserError(
            "endpoint.bad_url",
            f"{shown} is no address of an endpoint",
            evidence=("wanted is http(s)://HOST:PORT, with no user, query or fragment",),
            remedies=("enginehouse top --url http://127.0.0.1:11434", "give a key by --key"),
        )
    return full.rstrip("/")


def _checked(key: str) -> str:
    """Return a key that can stand in a header."""
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise UserError(
            "endpoint.bad_key",
            "the API key cannot be one",
            evidence=("it has spaces around it, line breaks, or signs beyond ASCII",),
            remedies=("copy it again, from `eh-` to its end",),
        )
    return key


def parse_metrics(text: str) -> dict[Key, float]:
    """Parse the text exposition format; empty when it is something else. NaN is left away."""
    try:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if math.isfinite(sample.value)
        }
    except (ValueError, KeyError, IndexError):
        return {}
