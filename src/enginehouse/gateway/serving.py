"""Where and how an endpoint listens, and whom it lets in."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from enginehouse.edges.request_log import RequestLog
from enginehouse.gateway.contracts import Access, Library, NoLibrary, Open, Rules

if TYPE_CHECKING:
    from enginehouse.edges.telemetry_sdk import Telemetry


def _endless() -> int:
    return 1 << 62


@dataclass(frozen=True)
class Serving:
    """The settings of one endpoint; times in seconds.

    `free_bytes` tells the memory that is free above the machine's reserve.
    """

    host: str
    port: int
    queue_limit: int = 256
    drain_deadline_s: float = 10.0
    load_wait_s: float = 300.0
    rules: Rules = field(default_factory=Rules)
    access: Access = field(default_factory=Open)
    library: Library = field(default_factory=NoLibrary)
    tls: ssl.SSLContext | None = None
    log: RequestLog | None = None
    telemetry: Telemetry | None = None
    free_bytes: Callable[[], int] = _endless
