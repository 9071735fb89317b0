"""The HTTP parser's edge: what uvicorn leaves open to a client that means harm.

uvicorn's httptools protocol takes headers of any size (llhttp knows no limit) and waits for them
for ever; a half-sent request costs its sender nothing and holds a descriptor here. It also loses
the body of a request that offers an upgrade, as Java's HTTP client does with each first one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

LINE = "enginehouse.line"
"""The key of a scope's extension that holds the request's `Line`."""
UPGRADE = re.compile(rb"(?i)(?<=\r\n)upgrade(?=[ \t]*:)")
IGNORED = b"x-offer"
"""As long as the name it stands for; an offer to upgrade may always be passed over."""


class SeldomInvalid(logging.Filter):
    """Lets uvicorn say at most once in `every_s` that a request was no HTTP, with a count.

    It would say so of each one, without end where somebody sends nothing else.
    """

    said = "Invalid HTTP request received."
    every_s = 60.0

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._next_at = 0.0
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is shown; with the count it is written anew."""
        if record.msg != self.said:
            return True
        self._count += 1
        if self._now() < self._next_at:
            return False
        since = "" if self._count == 1 else f" ({self._count} since this was last said)"
        record.msg, record.args = f"a request was no valid HTTP and was refused{since}", ()
        self._count = 0
        self._next_at = self._now() + self.every_s
        return True


class Line:
    """uvicorn's end of one request, for who writes to it without a task's turn.

    `on_gone` is called once the client has gone away before it had its whole answer.
    """

    __slots__ = ("cycle", "on_gone")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.cycle = cycle
        self.on_gone: Callable[[], None] | None = None

    def lose(self) -> None:
        """Tell that the connection is gone."""
        if self.on_gone is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.on_gone()


class GuardedProtocol(HttpToolsProtocol):
    """One connection, on which no request is being handled for only so long.

    `head_limit_bytes` bounds a request line with its headers; `head_deadline_s` is the time from
    a connection's start, or the end of an answer, until the next headers are whole.
    """

    head_limit_bytes = 64 << 10
    head_deadline_s = 15.0
    close_deadline_s = 60.0

    _lines: tuple[Line, ...] = ()
    _head_bytes = 0
    _is_head = True
    _is_too_large = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._met()
        super().connection_lost(exc)
        for line in self._lines:
            line.lose()
        self._lines = ()

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the client was turned away already."""
        if self.transport.is_closing():
            return
        if self._is_head:
            if not self._head_bytes:
                data = _without_upgrade(data)
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_head and self._head_bytes > self.head_limit_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Begin with the request, if its headers are not too large."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.head_limit_bytes:
            self._is_too_large = True
            raise ValueError("the headers are too large")
        self._is_head = False
        self._head_bytes = 0
        super().on_headers_complete()
        line = Line(self.cycle)
        held = (one for one in self._lines if not one.cycle.response_complete)
        self._lines = (*held, line)
        self.scope["extensions"] = {LINE: line}  # type: ignore[dict-item]
        self._met()

    def on_message_complete(self) -> None:
        """Take what comes next for the next request's headers."""
        super().on_message_complete()
        self._is_head = True

    def on_response_complete(self) -> None:
        """Expect the next request, where none is waiting already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._expect()

    def send_400_response(self, msg: str) -> None:
        """Say what was wrong with the request."""
        if self._is_too_large:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            super().send_400_response(msg)

    def _expect(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_deadline_s, self._end_slow)

    def _met(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_slow(self) -> None:
        """End a connection on which no request came; what the client does not read is dropped."""
        if not self.transport.is_closing():
            if self._is_head and self._head_bytes:
                self._refuse(HTTPStatus.REQUEST_TIMEOUT)
            else:
                self.transport.close()
        self._timer = self.loop.call_later(self.close_deadline_s, self.transport.abort)

    def _refuse(self, status: HTTPStatus) -> None:
        if self.transport.is_closing():
            return
        text = status.phrase.encode()
        head = b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\n" % (status, text)
        tail = b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(text), text)
        self.transport.write(head + tail)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Return the start of a request without its offer to speak another protocol."""
    end = data.find(b"\r\n\r\n")
    found: Any = UPGRADE.search(data, 0, end if end >= 0 else len(data))
    return data if found is None else data[: found.start()] + IGNORED + data[found.end() :]
