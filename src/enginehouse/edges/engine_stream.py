"""One streamed answer of an engine, on a connection of its own, handed on as its bytes arrive.

aiohttp, which does everything else here, wakes a task for every piece; at thousands of pieces a
second that is most of what a gateway costs. This gives each piece to a callback at once; httptools
parses. llama-server closes the connection after a stream anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import cast

import httptools

from enginehouse.core.engine import Endpoint

CONNECT_LIMIT_S = 5.0
REQUEST = (
    b"POST %s HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
    b"Accept: */*\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
)


class EngineStream(asyncio.Protocol):
    """The answer to one request. `headers` has lower-case names."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.status = 0
        self.headers: dict[str, str] = {}
        self._parser = httptools.HttpResponseParser(self)
        self._begun: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._some: asyncio.Future[None] = loop.create_future()
        self._early: list[bytes] = []
        self._take: Callable[[bytes], None] | None = None
        self._transport: asyncio.Transport | None = None

    # the parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Tell that the answer begins; its body waits until somebody takes it."""
        self.status = self._parser.get_status_code()
        if self.status >= 200 and not self._begun.done():
            self._begun.set_result(None)

    def on_body(self, data: bytes) -> None:
        """Hand a piece on."""
        if self._take is None:
            self._early.append(data)
            if not self._some.done():
                self._some.set_result(None)
        else:
            self._take(data)

    def on_message_complete(self) -> None:
        """Tell that the answer is whole."""
        if self.status >= 200:
            self._end()

    def _end(self) -> None:
        for future in (self._some, self._ended):
            if not future.done():
                future.set_result(None)

    # the connection's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came; whatever goes wrong with it ends the stream."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            cause = problem.__context__
            self._fail(cause if isinstance(cause, Exception) else ConnectionError(str(problem)))

    def connection_lost(self, exc: Exception | None) -> None:
        """End; without a length or chunks, the connection's end is the body's end."""
        framed = {"content-length", "transfer-encoding"} & self.headers.keys()
        if exc is None and self.status >= 200 and not framed:
            self._end()
        self._fail(exc or ConnectionResetError("the engine closed the connection"))

    def _fail(self, problem: Exception) -> None:
        for future in (self._begun, self._some, self._ended):
            if not future.done():
                future.set_exception(problem)
                future.exception()  # seen, whether or not somebody waits
        self.close()

    # the gateway's side

    async def begun(self) -> None:
        """Wait for the status and headers.

        Raises:
            OSError: when the engine gives none.
        """
        await self._begun

    async def some(self, but: bytes = b"") -> None:
        """Wait for the first piece of the body, other than those with `but` in them, or its end.

        Raises:
            OSError: when the engine breaks off before.
        """
        await self._some
        while but and all(but in piece for piece in self._early) and not self._ended.done():
            self._some = asyncio.get_running_loop().create_future()
            await self._some

    async def feed(self, take: Callable[[bytes], None]) -> None:
        """Hand each piece of the body to `take` as it arrives, until the body's end.

        Raises:
            OSError: when the engine breaks off; whatever `take` raises.
        """
        early, self._early = self._early, []
        for data in early:
            take(data)
        self._take = take
        await self._ended

    async def read(self) -> bytes:
        """Return the whole body."""
        parts: list[bytes] = []
        await self.feed(parts.append)
        return b"".join(parts)

    def pause(self) -> None:
        """Read no further for now."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the connection, which tells the engine to stop."""
        if self._transport is not None:
            self._transport.abort()

    release = close

    async def __aenter__(self) -> EngineStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


async def open_stream(endpoint: Endpoint, path: str, body: bytes) -> EngineStream:
    """Post a request and return its answer once its headers are here.

    Raises:
        ConnectionError: when the engine cannot be reached or gives no answer.
    """
    loop = asyncio.get_running_loop()
    try:
        if endpoint.socket_path:  # connects at once or never
            transport, stream = await loop.create_unix_connection(
                EngineStream, endpoint.socket_path
            )
        else:
            opening = loop.create_connection(EngineStream, "127.0.0.1", endpoint.port)
            transport, stream = await asyncio.wait_for(opening, CONNECT_LIMIT_S)
    except (OSError, asyncio.TimeoutError) as problem:
        raise ConnectionError(f"the engine cannot be reached: {problem!r}") from problem
    try:
        transport.write(REQUEST % (path.encode(), len(body)) + body)
        await stream.begun()
    except BaseException:
        stream.close()
        raise
    return stream
