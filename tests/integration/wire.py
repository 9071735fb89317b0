"""Speak to the gateway as an attacker does: bytes on a socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from tests.integration.conftest import Served

STATUS_LINE = b"HTTP/1.1 "


@dataclass(frozen=True)
class Said:
    """What the server said to some bytes, and whether it closed the connection."""

    data: bytes
    is_closed: bool

    @property
    def answers(self) -> int:
        """How many requests were answered; a `100 Continue` is no answer."""
        return self.data.count(STATUS_LINE) - self.data.count(STATUS_LINE + b"100")

    @property
    def status(self) -> int:
        """The status of the first answer; a `100 Continue` is none."""
        answers = self.data.split(STATUS_LINE)[1:]
        return next(int(a[:3]) for a in answers if not a.startswith(b"100"))

    @property
    def code(self) -> str:
        """The error's code in whichever dialect, empty where there is none."""
        told = json.loads(self.data.partition(b"\r\n\r\n")[2])
        error = told.get("error")
        return str((error if isinstance(error, dict) else told).get("code", ""))


async def port_of(served: Served) -> int:
    """Return the port of the gateway."""
    async with served.client.get("/") as answer:
        assert answer.url.port is not None
        return answer.url.port


async def say(port: int, *parts: bytes, patience_s: float = 5.0) -> Said:
    """Send parts one after another, and read until the end or until nothing comes any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        while True:
            piece = await asyncio.wait_for(reader.read(1 << 16), patience_s)
            if not piece:
                return Said(heard, True)
            heard += piece
    except asyncio.TimeoutError:
        return Said(heard, False)
    except ConnectionError:
        return Said(heard, True)
    finally:
        writer.close()


def post(path: str, body: bytes, *headers: bytes, method: str = "POST") -> bytes:
    """Return a well-formed request on a connection of its own."""
    head = b"%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n" % (
        method.encode(), path.encode(), len(body)
    )  # fmt: skip
    return head + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body
