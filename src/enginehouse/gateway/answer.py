"""The client's side of one request: read its body, write its answer."""

from __future__ import annotations

import asyncio
import re
import socket
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope, Send

from enginehouse.core.dialect import Rendered
from enginehouse.core.errors import ErrorReport
from enginehouse.edges.http_guard import LINE, Line

Headers = list[tuple[bytes, bytes]]
MOST_NOTES = 12
UNSAFE = re.compile(r"[^0-9A-Za-z_.-]")
INTERNET = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True)
class RequestError(Exception):
    """A request that cannot be served, with the HTTP status to say so."""

    report: ErrorReport
    status: int
    retry_after_s: int = 0


class Answer:
    """The answer to one request, on its way out. `extra` are headers to send besides.

    `line` is uvicorn's own end of it: with it `push` writes to the socket without a task's turn.
    """

    def __init__(self, send: Send, request_id: str, line: Line) -> None:
        self._send = send
        self.line = line
        self.request_id = request_id
        self.has_started = False
        self.status = 0
        self._is_held = False
        self.copy: list[bytes] | None = None
        self.extra: Headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]

    def note(self, name: bytes, values: Iterable[str]) -> None:
        """Send a header of several notes, in plain characters."""
        texts = list(values)[:MOST_NOTES]
        if texts:
            joined = "; ".join(texts).encode("ascii", "replace")[:1000]
            told = bytes(c if 32 <= c < 127 else 63 for c in joined)
            earlier = [value for known, value in self.extra if known == name]
            self.extra = [header for header in self.extra if header[0] != name]
            self.extra.append((name, b"; ".join((*earlier, told))))

    def name_id(self, header: str) -> None:
        """Send the request's id under another name too."""
        told = {name for name, _ in self.extra}
        if header.encode() not in told:
            self.extra.append((header.encode(), self.extra[0][1]))

    async def begin(self, status: int, kind: bytes, length: int | None = None) -> None:
        """Send the status and headers; of a stream where no length is given."""
        self.has_started = True
        self.status = status
        headers = [(b"content-type", kind)]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        else:
            headers.append((b"cache-control", b"no-cache"))
            headers.append((b"x-accel-buffering", b"no"))
        self._hold(True)
        message: Message = {
            "type": "http.response.start", "status": status, "headers": headers + self.extra
        }  # fmt: skip
        await self._send(message)

    def _hold(self, is_held: bool) -> None:
        """Let the kernel gather the headers and what comes first: one packet wakes the client once.

        A client that is woken by the headers alone takes the processor from whom it waits for. The
        kernel holds nothing longer than 200 ms.
        """
        raw = self.line.cycle.transport.get_extra_info("socket")
        if raw is not None and raw.family in INTERNET:
            self._is_held = is_held
            with suppress(OSError):  # the client has gone
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, is_held)

    async def chunk(self, data: bytes) -> None:
        """Send a part of the body."""
        if self.copy is not None:
            self.copy.append(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if self._is_held:
            self._hold(False)

    def push(self, data: bytes) -> bool:
        """Send a part of the body at once; False when `drained` has to be awaited before more."""
        if self.copy is not None:
            self.copy.append(data)
        cycle = self.line.cycle
        if cycle.disconnected:
            return True
        framed = b"%x\r\n%b\r\n" % (len(data), data) if cycle.chunked_encoding else data
        cycle.transport.write(framed)
        if self._is_held:
            self._hold(False)
        return not cycle.flow.write_paused

    async def drained(self) -> None:
        """Wait until the client has read enough of what was pushed."""
        await self.line.cycle.flow.drain()

    async def finish(self, data: bytes = b"") -> None:
        """Send the last part of the body."""
        if self.copy is not None and data:
            self.copy.append(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})
        if self._is_held:
            self._hold(False)

    async def whole(self, status: int, body: bytes, kind: bytes = b"application/json") -> None:
        """Send a whole answer."""
        await self.begin(status, kind, len(body))
        await self.finish(body)

    async def render(self, rendered: Rendered, retry_after_s: int = 0) -> None:
        """Send what a dialect rendered."""
        if retry_after_s:
            self.extra.append((b"retry-after", b"%d" % retry_after_s))
        await self.whole(rendered.status, rendered.body, rendered.content_type.encode())


async def read_body(receive: Receive, line: Line, limit_bytes: int, limit_s: float = 0.0) -> bytes:
    """Read a request's whole body, for at most `limit_s` seconds where that is not 0.

    Raises:
        RequestError: 413 when it is larger than the limit, 408 when it comes too slowly.
    """
    if not line.cycle.more_body:
        return _arrived_body(line, limit_bytes)
    if not limit_s:
        return await _read_body(receive, limit_bytes)
    try:
        return await asyncio.wait_for(_read_body(receive, limit_bytes), limit_s)
    except asyncio.TimeoutError as problem:
        report = ErrorReport(
            "request.too_slow", f"the body did not arrive within {limit_s:g} s",
            remedies=("send it faster", "raise gateway.body_limit"), turn="user",
        )  # fmt: skip
        raise RequestError(report, 408) from problem


def _arrived_body(line: Line, limit_bytes: int) -> bytes:
    """Return a body that has come whole already, as nearly all do: nothing to wait for."""
    cycle = line.cycle
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.message_event.clear()
    cycle.flow.resume_reading()
    if len(body) > limit_bytes:
        raise _too_large(limit_bytes)
    return body


def _too_large(limit_bytes: int) -> RequestError:
    report = ErrorReport(
        "request.too_large",
        f"the body is larger than {limit_bytes:,} bytes",
        remedies=("raise gateway.request_limit",),
        turn="user",
    )
    return RequestError(report, 413)


async def _read_body(receive: Receive, limit_bytes: int) -> bytes:
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def request_id_of(scope: Scope) -> str:
    """Return the client's x-request-id, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and 0 < len(value) <= 128 and value.isascii():
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex


def answer_id_of(scope: Scope, request_id: str) -> str:
    """Return an id that no other answer has, of characters that a path may have.

    A client may give the same x-request-id twice, and must not get the other answer for it.
    """
    if header_of(scope, b"x-request-id") != request_id:
        return request_id
    return f"{UNSAFE.sub('_', request_id)}_{uuid.uuid4().hex[:12]}"


def line_of(scope: Scope) -> Line:
    """Take uvicorn's end of a request from where `edges.http_guard` left it."""
    line: Line = scope["extensions"].pop(LINE)
    return line


def header_of(scope: Scope, wanted: bytes) -> str:
    """Return a request's header, empty where there is none."""
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return ""
