"""Requests that mean harm: what is no HTTP, too large, too slow or no JSON is refused, at once.

Nobody else notices: after each attack the same gateway serves as before.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from enginehouse.edges.http_guard import GuardedProtocol
from tests.integration.conftest import Served, Serving
from tests.integration.wire import port_of, post, say

CHAT = "/v1/chat/completions"
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
BODY = json.dumps(ASK).encode()
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
OWN = [{"role": "user", "content": "Hi"}]
SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
READ_ROUTES = (
    "/api/chat", "/api/generate", "/api/show", "/api/embed", "/api/pull", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/responses", "/tokenize",
)  # fmt: skip


@asynccontextmanager
async def unharmed(serving: Serving, *script: str) -> AsyncIterator[tuple[Served, int]]:
    """Serve, and see that an honest request is still answered at the end."""
    async with serving(*script) as served:
        yield served, await port_of(served)
        async with served.client.post(CHAT, json=ASK) as answer:
            assert answer.status == 200
        for path in ("/health", "/api/ps", "/api/tags", "/v1/models"):
            async with served.client.get(path) as answer:
                assert answer.status == 200, path
        assert served.supervisor.restarts == 0


async def asked_of(served: Served) -> int:
    """Return how many requests the engine saw that are not its owner's own."""
    bodies = (await served.engine_state())["bodies"]
    return sum(body.get("messages") != OWN for body in bodies)


def head(*lines: bytes) -> bytes:
    """Return a chat request's head with these headers."""
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    return start + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


SMUGGLING = {
    "length and chunked": head(b"Content-Length: 5", CHUNKED) + CHUNKS + SMUGGLED,
    "chunked and length": head(CHUNKED, b"Content-Length: 5") + CHUNKS + SMUGGLED,
    "two lengths": head(LENGTH, b"Content-Length: 5") + BODY + SMUGGLED,
    "the same length twice": head(LENGTH, LENGTH) + BODY + SMUGGLED,
    "a list of lengths": head(LENGTH + b", 5") + BODY + SMUGGLED,
    "a signed length": head(b"Content-Length: +5") + BODY + SMUGGLED,
    "a negative length": head(b"Content-Length: -1") + BODY + SMUGGLED,
    "a hexadecimal length": head(b"Content-Length: 0x10") + BODY + SMUGGLED,
    "a length with a gap": head(b"Content-Length: 1 2") + BODY + SMUGGLED,
    "a length beyond 64 bits": head(b"Content-Length: 99999999999999999999") + BODY + SMUGGLED,
    "nearly chunked": head(b"Transfer-Encoding: xchunked") + CHUNKS + SMUGGLED,
    "chunked, then identity": head(b"Transfer-Encoding: chunked, identity") + CHUNKS + SMUGGLED,
    "two encodings": head(CHUNKED, b"Transfer-Encoding: identity") + CHUNKS + SMUGGLED,
    "identity": head(b"Transfer-Encoding: identity") + CHUNKS + SMUGGLED,
    "a tab within": head(b"Transfer-Encoding: \x0bchunked") + CHUNKS + SMUGGLED,
    "a space before the colon": head(b"Transfer-Encoding : chunked") + CHUNKS + SMUGGLED,
    "a folded header": head(b"Transfer-Encoding:\r\n chunked", LENGTH) + BODY + SMUGGLED,
    "a chunk beyond 64 bits": head(CHUNKED) + b"FFFFFFFFFFFFFFFFFF\r\n" + BODY + SMUGGLED,
    "a negative chunk": head(CHUNKED) + b"-5\r\n" + BODY + SMUGGLED,
    "chunks with bare line feeds": head(CHUNKED) + CHUNKS.replace(b"\r\n", b"\n") + SMUGGLED,
    "a head with bare line feeds": head(LENGTH).replace(b"\r\n", b"\n") + BODY + SMUGGLED,
    "a bare carriage return": head(b"X: a\rContent-Length: 0", LENGTH) + BODY + SMUGGLED,
    "a zero byte": head(b"X: a\x00b", LENGTH) + BODY + SMUGGLED,
    "a path that is not ASCII": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    "a tunnel": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "an unknown version": head(LENGTH).replace(b"/1.1", b"/9.9") + BODY + SMUGGLED,
    "control characters in an id": head(b"X-Request-Id: a\x01b", LENGTH) + BODY + SMUGGLED,
}


async def test_no_request_is_smuggled(serving: Serving) -> None:
    """What two readers could take for different requests is refused once, and the line is cut."""
    async with unharmed(serving) as (served, port):
        before = await asked_of(served)
        for name, data in SMUGGLING.items():
            said = await say(port, data)
            assert (said.answers, said.status, said.is_closed) == (1, 400, True), name
            assert b"enginehouse_" not in said.data, name
        assert await asked_of(served) == before


async def test_what_is_odd_but_clear_is_served(serving: Serving) -> None:
    """Chunk extensions, `Expect`, two requests at once, and an offer to upgrade, as Java makes."""
    close = b"Connection: close"
    extended = b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAA")
    async with unharmed(serving) as (_, port):
        for data, answers in (
            (head(CHUNKED, close) + extended, 1),
            (head(LENGTH, close, b"Expect: 100-continue") + BODY, 1),
            (head(LENGTH) + BODY + head(LENGTH, close) + BODY, 2),
            (head(*offer, LENGTH) + BODY + head(LENGTH, close) + BODY, 2),
        ):
            said = await say(port, data)
            assert (said.answers, said.status) == (answers, 200), said.data
            assert said.data.count(b'"choices"') == answers


@pytest.mark.parametrize("is_in_parts", [False, True], ids=["at once", "in parts"])
async def test_headers_have_a_limit(serving: Serving, is_in_parts: bool) -> None:
    """Large, many, or without end: 431, and no more is read."""
    most = GuardedProtocol.head_limit_bytes
    async with unharmed(serving) as (_, port):
        fits = head(LENGTH, b"Connection: close", b"X: " + b"a" * (most // 2)) + BODY
        assert (await say(port, fits)).status == 200
        for data in (
            head(LENGTH, b"X: " + b"a" * most) + BODY,
            head(LENGTH, *(b"X-%d: y" % n for n in range(most // 8))) + BODY,
            head(LENGTH)[:-2] + b"X: " + b"a" * (4 * most),
        ):
            size = 1000 if is_in_parts else len(data)
            said = await say(port, *(data[i : i + size] for i in range(0, len(data), size)))
            assert said.is_closed
            assert said.data == b"" or said.status == 431  # the kernel may reset before it is read


async def test_who_sends_headers_slowly_is_cut_off(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, blank lines, half a head, the next head, the rest of a refused body: none holds."""
    monkeypatch.setattr(GuardedProtocol, "head_deadline_s", 0.5)
    async with unharmed(serving) as (_, port):
        whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        refused = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n"
        for start, drip in (
            (b"", b""),
            (b"\r\n", b"\r\n"),
            (head(LENGTH)[:-2], b"X: y\r\n"),
            (whole, b"G"),
            (refused, b"x"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            writer.write(start)
            ended = asyncio.ensure_future(reader.read())
            while not ended.done() and time.monotonic() - began < 5.0:
                await asyncio.wait({ended}, timeout=0.1)
                writer.write(drip)
            assert ended.done(), start
            assert time.monotonic() - began < 4.0
            await asyncio.gather(ended, return_exceptions=True)
            writer.close()


async def test_a_slow_body_is_cut_off_and_an_honest_wait_is_not(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline on headers does not touch a request that is being answered."""
    monkeypatch.setattr(GuardedProtocol, "head_deadline_s", 0.5)
    async with unharmed(serving, "--token-s", "0.5") as (served, port):
        slow = ASK | {"max_tokens": 4}
        async with served.client.post(CHAT, json=slow) as answer:
            assert answer.status == 200
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(LENGTH) + BODY[:10])
        served.proxy.rules = type(served.proxy.rules)(body_limit_s=0.5)
        reader_2, writer_2 = await asyncio.open_connection("127.0.0.1", port)
        writer_2.write(head(LENGTH) + BODY[:10])
        assert b" 408 " in await asyncio.wait_for(reader_2.readline(), 5)
        writer.close()
        writer_2.close()


async def test_a_thousand_half_requests_leave_nothing_behind(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they hang an honest client is served; afterwards every descriptor is free again."""
    monkeypatch.setattr(GuardedProtocol, "head_deadline_s", 1.5)
    async with unharmed(serving) as (served, port):
        before = psutil.Process().num_fds()
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
        for _, writer in lines:
            writer.write(head(LENGTH)[:-2])
        async with served.client.post(CHAT, json=ASK) as answer:
            assert answer.status == 200
        await asyncio.gather(*(reader.read() for reader, _ in lines))
        for _, writer in lines:
            writer.close()
            await writer.wait_closed()
        for _ in range(100):
            if psutil.Process().num_fds() <= before + 2:
                break
            await asyncio.sleep(0.05)
        assert psutil.Process().num_fds() <= before + 2


def nested(depth: int) -> bytes:
    """Return arrays in arrays."""
    return b"[" * depth + b"]" * depth


FILLED = (
    b'{"model": "fake:latest", "max_tokens": 2, "stream": false, "input": "x%(text)s", '
    b'"prompt": "y%(text)s", "content": "z", "messages": [{"role": "user", "content": "%(text)s"}],'
    b' "options": {"num_ctx": %(number)s, "num_predict": 2}, "top_logprobs": %(number)s, '
    b'"logprobs": true, "seed": %(number)s, "tools": %(deep)s, "%(text)s": 1}'
)


def filled(text: bytes = b"t", number: bytes = b"1", deep: bytes = b"[]") -> bytes:
    """Return a body that every route can read, with these parts in it."""
    return FILLED % {b"text": text, b"number": number, b"deep": deep}


BAD_BODIES = {
    "nested 300 deep": filled(deep=nested(300)),
    "nested 950 deep": filled(deep=nested(950)),
    "nested 100,000 deep": filled(deep=nested(100_000)),
    "half a surrogate pair": filled(text=b"\\ud800"),
    "a pair the wrong way round": filled(text=b"\\udc00\\ud800"),
    "no UTF-8": filled(text=b"\xff\xfe"),
    "an encoded surrogate": filled(text=b"\xed\xa0\x80"),
    "an overlong slash": filled(text=b"\xc0\xaf"),
    "cut off within a character": BODY[:-30] + b"\xe2\x80",
    "beyond a double": filled(number=b"1e400"),
    "below a double": filled(number=b"-1e400"),
    "5,000 digits": filled(number=b"9" * 5000),
    "not a number": filled(number=b"NaN"),
    "infinity": filled(number=b"-Infinity"),
    "a zero byte": b'{"model": "fa\x00ke"}',
    "two values": BODY + BODY,
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "an array": b"[1]",
    "nothing": b"",
}


@pytest.mark.parametrize("path", READ_ROUTES)
async def test_bodies_that_could_not_be_sent_on_are_refused(serving: Serving, path: str) -> None:
    """Too deep, no text, no number: 400 in the dialect's shape; the engine sees none of them."""
    async with unharmed(serving) as (served, port):
        before = await asked_of(served)
        for name, body in BAD_BODIES.items():
            said = await say(port, post(path, body))
            assert (said.status, said.code) == (400, "request.not_json"), (name, said.data)
        assert await asked_of(served) == before


FORWARD_BODIES = ("nested 950 deep", "nested 100,000 deep", "no UTF-8", "an encoded surrogate",
                  "an overlong slash", "cut off within a character", "half a surrogate pair",
                  "beyond a double", "5,000 digits")  # fmt: skip


@pytest.mark.parametrize("name", FORWARD_BODIES)
async def test_forwarded_bodies_are_read_as_strictly(serving: Serving, name: str) -> None:
    """By an alias, where the gateway writes the body anew: the same refusals."""
    async with unharmed(serving) as (_, port):
        said = await say(port, post(CHAT, BAD_BODIES[name]))
        assert (said.status, said.code) == (400, "request.not_json"), said.data


async def test_forwarded_as_they_are_bodies_never_break_the_gateway(serving: Serving) -> None:
    """By the model's own name: what has no depth or encoding to be read by is refused too."""
    async with unharmed(serving) as (_, port):
        for name in FORWARD_BODIES[:6]:
            body = BAD_BODIES[name].replace(b"fake:latest", b"fake")
            said = await say(port, post(CHAT, body))
            assert (said.status, said.code) == (400, "request.not_json"), (name, said.data)


async def test_huge_times_and_sizes_are_only_numbers(serving: Serving) -> None:
    """A `keep_alive` or context beyond all bounds breaks neither this answer nor `/api/ps`."""
    async with unharmed(serving) as (_, port):
        for value in (b"1e308", b"-1e308", b'"99999999999h"', b"9" * 30, b"1e17"):
            body = b'{"model": "fake", "stream": false, "keep_alive": %s}' % value
            said = await say(port, post("/api/generate", body))
            assert said.status in (200, 400), said.data
            said = await say(port, post("/api/ps", b"", method="GET"))
            assert said.status == 200, (value, said.data)


TRAVERSALS = ("../../../etc/passwd", "/etc/passwd", "..%2f..%2fetc%2fpasswd", "a/../../b",
              "file:///etc/passwd", "http://127.0.0.1:1/x", "\\\\host\\share", "fake\u0000",
              "fake:../../x", "~/.ssh/id_rsa", "$(id)", "-rf", "a" * 5000)  # fmt: skip


async def test_a_models_name_is_never_a_path(serving: Serving) -> None:
    """Asked, shown, pulled, deleted, or in the address: not found, and nothing of it is read."""
    async with unharmed(serving) as (served, port):
        for name in TRAVERSALS:
            for path, method in (
                (CHAT, "POST"), ("/api/show", "POST"), ("/api/pull", "POST"),
                ("/api/delete", "DELETE"), ("/v1/messages", "POST"),
            ):  # fmt: skip
                body = json.dumps(ASK | {"model": name}).encode()
                said = await say(port, post(path, body, method=method))
                assert (said.status, said.code) == (404, "model_not_found"), (path, said.data)
                assert b"root:" not in said.data
                assert len(said.data) < 2000
        for shown in ("/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fetc", "/v1/models/%00"):
            said = await say(port, post(shown, b"", method="GET"))
            assert (said.status, said.code) == (404, "model_not_found")
        body = b'{"source": "fake", "destination": "../../x"}'
        assert (await say(port, post("/api/copy", body))).status == 400
        assert not served.router.aliases
