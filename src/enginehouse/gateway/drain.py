"""The end of serving: requests may end, what is left is ended with an error, not with a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

import uvicorn

from enginehouse.core.errors import ErrorReport
from enginehouse.gateway.journey import Journey

log = logging.getLogger(__name__)
LOOK_S = 0.05
LAST_WORD_S = 1.0
"""How long the clients of requests that are ended may take to read so."""


async def drain(
    server: uvicorn.Server, journeys: Collection[Journey], http: asyncio.Future[None],
    limit_s: float,
) -> None:  # fmt: skip
    """Take no new connection, let requests end for so long, end what is left with an error.

    Each is told so in its dialect; a client that does not read even that loses its connection. A
    second signal (`force_exit`) ends the waiting.
    """
    server.should_exit = True
    await _wait(lambda: not journeys or server.force_exit, limit_s)
    left = list(journeys)
    for journey in left:
        journey.end_early(_stopping(limit_s))
    await _wait(lambda: not journeys, LAST_WORD_S)
    if left:
        log.warning("stopping: requests that were not done in time and were told so: %d", len(left))
    await asyncio.wait({http}, timeout=LAST_WORD_S)
    for connection in list(server.server_state.connections):
        if (transport := connection.transport) is not None:
            transport.abort()


async def _wait(is_over: Callable[[], bool], limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while not is_over() and time.monotonic() < ends:  # noqa: ASYNC110 - uvicorn looks so too
        await asyncio.sleep(LOOK_S)


def _stopping(limit_s: float) -> ErrorReport:
    return ErrorReport(
        "server.stopping", "the endpoint is stopping",
        evidence=(f"the answer was not whole within {limit_s:g} s of the signal",),
        remedies=("send the request again once it is back", "raise serve.drain_deadline"),
        turn="machine",
    )  # fmt: skip
