"""HTTP to one engine, over its unix socket or its loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from enginehouse.core.engine import Call, Endpoint

READ_BUFFER_BYTES = 1 << 16
FILE_BLOCK_BYTES = 1 << 20


def open_session(endpoint: Endpoint, *, keep_alive: bool = True) -> aiohttp.ClientSession:
    """Open a client session to an engine, without a total time limit and without a pool limit."""
    connector: aiohttp.BaseConnector
    if endpoint.socket_path:
        connector = aiohttp.UnixConnector(
            path=endpoint.socket_path, limit=0, force_close=not keep_alive
        )
    else:
        connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    return aiohttp.ClientSession(
        endpoint.base_url,
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
        read_bufsize=READ_BUFFER_BYTES,
        auto_decompress=False,
    )


async def make_call(session: aiohttp.ClientSession, call: Call) -> str:
    """Send one request to an engine; say what went wrong, empty when it was taken."""
    body: object = _blocks(call.file) if call.file else call.json
    headers = {} if call.file else {"Content-Type": "application/json"}
    try:
        async with session.request(call.method, call.path, data=body, headers=headers) as answer:
            text = (await answer.text()).strip()
            if answer.status < 300 and '"error"' not in text:
                return ""
            return f"{call.method} {call.path} answered {answer.status}: {text[:300]}"
    except (aiohttp.ClientError, OSError) as problem:
        return f"{call.method} {call.path} failed: {type(problem).__name__}: {problem}"


async def _blocks(path: str) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(Path(path).open, "rb") as file:
        while block := await asyncio.to_thread(file.read, FILE_BLOCK_BYTES):
            yield block
