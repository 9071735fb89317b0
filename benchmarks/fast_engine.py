"""A fake engine that costs next to nothing: what is left to measure is what stands before it.

    python benchmarks/fast_engine.py --socket PATH --port PORT

It answers as llama-server does, on a unix socket and on a loopback port, from bytes that are made
once. The pace is set by `GET /pace?seconds=0.02`: 0 answers as fast as it can, a negative number
holds every stream after its first chunk until the pace is set anew.
"""

from __future__ import annotations

import argparse
import asyncio
import re

CHUNK = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" word"}}],'
    b'"created":1764000000,"id":"chatcmpl-0","model":"fake","system_fingerprint":"b0",'
    b'"object":"chat.completion.chunk"}\n\n'
)
LAST = (
    b'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1764000000,'
    b'"id":"chatcmpl-0","model":"fake","object":"chat.completion.chunk","usage":'
    b'{"prompt_tokens":8,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)
WHOLE = (
    b'{"choices":[{"finish_reason":"length","index":0,"message":{"role":"assistant","content":'
    b'" word"}}],"created":1764000000,"id":"chatcmpl-0","model":"fake","object":"chat.completion",'
    b'"usage":{"prompt_tokens":8,"completion_tokens":1,"total_tokens":9}}'
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
MOST = re.compile(rb'"(?:max_tokens|max_completion_tokens|n_predict)": ?(\d+)')


class Pace:
    """Seconds between the chunks of every stream; those that are held wait for `changed`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.changed = asyncio.Event()

    def set(self, seconds: float) -> None:
        self.seconds = seconds
        self.changed.set()
        self.changed = asyncio.Event()


def framed(data: bytes) -> bytes:
    """Return a part of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


FRAMED = framed(CHUNK)


class Connection(asyncio.Protocol):
    """One client; requests are answered one after the other."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._heard = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while True:
            head_end = self._heard.find(b"\r\n\r\n")
            if head_end < 0:
                return
            told = LENGTH.search(self._heard, 0, head_end + 2)
            end = head_end + 4 + (int(told[1]) if told else 0)
            if len(self._heard) < end:
                return
            request, self._heard = self._heard[:end], self._heard[end:]
            self._answer(request, head_end + 4)

    def _answer(self, request: bytes, body_at: int) -> None:
        path = request.split(b" ", 2)[1]
        if path.startswith(b"/pace"):
            self._pace.set(float(path.partition(b"=")[2]))
            self._whole(b"{}")
        elif request.startswith(b"GET "):
            self._whole(b'{"status":"ok"}')
        elif b'"stream":true' in request or b'"stream": true' in request:
            told = MOST.search(request, body_at)
            self._task = asyncio.ensure_future(self._stream(int(told[1]) if told else 16))
        else:
            self._whole(WHOLE)

    def _whole(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    async def _stream(self, most: int) -> None:
        self._transport.write(STREAM_HEAD + FRAMED)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for _ in range(most - 1):
            while self._pace.seconds < 0:
                await self._pace.changed.wait()
                due = loop.time()
            due += self._pace.seconds
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._transport.write(FRAMED)
        self._transport.write(framed(LAST % (most, most + 8)) + b"0\r\n\r\n")


async def main(socket: str, port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    pace = Pace()
    servers = []
    if socket:
        servers.append(
            await loop.create_unix_server(lambda: Connection(pace), socket, backlog=4096)
        )
    if port:
        servers.append(
            await loop.create_server(lambda: Connection(pace), "127.0.0.1", port, backlog=4096)
        )
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", default="")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(main(given.socket, given.port))
