"""HTTP to one engine, over its unix socket or its loopback port."""

from __future__ import annotations

import aiohttp

from enginehouse.core.engine import Endpoint

READ_BUFFER_BYTES = 1 << 16


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
