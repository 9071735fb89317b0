"""From an engine's stream to a client's, piece by piece, no faster than the client reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from enginehouse.edges.engine_stream import EngineStream
from enginehouse.gateway.answer import Answer
from enginehouse.gateway.journey import Journey


class Pipe:
    """Joins one engine's stream to one answer; when the client is slow, the engine waits."""

    def __init__(self, stream: EngineStream, answer: Answer, journey: Journey) -> None:
        self._stream = stream
        self._answer = answer
        self._journey = journey
        self._draining: asyncio.Future[None] | None = None

    def push(self, data: bytes) -> None:
        """Send something to the client."""
        if not self._answer.push(data) and self._draining is None:
            self._stream.pause()
            self._journey.sending_since = time.perf_counter()
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._answer.drained()
        self._journey.sending_since = 0.0
        self._draining = None
        self._stream.resume()

    async def carry(self, take: Callable[[bytes], None]) -> None:
        """Give each piece of the engine's stream to `take`, which pushes what it makes of it.

        Raises:
            OSError: when the engine breaks off; whatever `take` raises.
        """
        try:
            await self._stream.feed(take)
            if self._draining is not None:
                await self._draining
        finally:
            if self._draining is not None:
                self._draining.cancel()
                await asyncio.gather(self._draining, return_exceptions=True)

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece; a client that does not read it stalls."""
        self._journey.sending_since = time.perf_counter()
        await self._answer.finish(data)
        self._journey.sending_since = 0.0
