"""Places of one engine's own: its socket, and a folder for what it saves, in memory if possible."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from enginehouse.core.engine import Endpoint

SHARED_MEMORY = Path("/dev/shm")
ROOM_BYTES = 256 << 20
"""Less shared memory than this (a container's default is 64 MiB) and the disk is used."""


def new_endpoint(unix_socket: bool = True) -> Endpoint:
    """Return a unix socket's path of our own, short enough for the kernel's 107 bytes.

    Without `unix_socket`, a port on the loopback that was free a moment ago.
    """
    if not unix_socket:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return Endpoint(port=probe.getsockname()[1])
    folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Endpoint(socket_path=str(Path(folder) / f"{_name()}.sock"))


def new_scratch() -> Path:
    """Return the path of a folder that does not exist yet, in shared memory where there is room."""
    try:
        has_room = shutil.disk_usage(SHARED_MEMORY).free >= ROOM_BYTES
    except OSError:
        has_room = False
    is_usable = has_room and os.access(SHARED_MEMORY, os.W_OK)
    return (SHARED_MEMORY if is_usable else Path(tempfile.gettempdir())) / _name()


def names_folder(folder: Path, argv: Sequence[str], env: Sequence[tuple[str, str]] = ()) -> bool:
    """Whether a command or its environment names a folder, which must then be made for it."""
    words = (*argv, *(value for _, value in env))
    return any(str(folder) in word for word in words)


def _name() -> str:
    return f"enginehouse-{uuid.uuid4().hex[:12]}"
