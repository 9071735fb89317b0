"""Bind the endpoint's port, or say who holds it."""

from __future__ import annotations

import errno
import http.client
import socket
from dataclasses import dataclass

import psutil

from enginehouse.core.errors import EnginehouseError, MachineError, UserError

GREETING_LIMIT_S = 0.5


@dataclass(frozen=True)
class PortOwner:
    """Who listens on a port, as far as this user may know."""

    name: str = ""
    pid: int | None = None
    answers_as: str = ""

    @property
    def is_ollama(self) -> bool:
        """Whether it is Ollama, by name or by its greeting."""
        return "ollama" in self.name or self.answers_as == "Ollama"


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and listening.

    Raises:
        MachineError: `port.in_use`, `port.not_permitted`.
        UserError: `port.bad_address`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP, or asyncio leaves Nagle's algorithm on: a stream's first token 40 ms late
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except (OSError, OverflowError, ValueError) as problem:
        bound.close()
        raise _bind_error(host, port, problem) from problem
    bound.setblocking(False)
    return bound


def _bind_error(host: str, port: int, problem: Exception) -> EnginehouseError:
    number = getattr(problem, "errno", None)
    if number == errno.EADDRINUSE:
        return port_in_use_error(host, port)
    if number == errno.EACCES:
        return MachineError(
            "port.not_permitted",
            f"port {port} may not be opened by this user",
            evidence=(str(problem),),
            remedies=("use a port from 1024 on, for example --port 11434",),
        )
    return UserError(
        "port.bad_address",
        f"{host}:{port} is not an address of this machine",
        evidence=(str(problem),),
        remedies=("use --host 127.0.0.1 and a port from 1024 to 65535",),
    )


def port_in_use_error(host: str, port: int) -> MachineError:
    """Build the error for a taken port: by which process, and what the choices are."""
    owner = find_port_owner(host, port)
    who = "a process that this user may not see"
    if owner.name:
        who = f"{owner.name} (pid {owner.pid})"
    remedies = [f"use another port: --port {port + 1}"]
    if owner.is_ollama:
        who = f"Ollama (pid {owner.pid})" if owner.pid else "Ollama"
        remedies.insert(0, "stop Ollama, to take its place: systemctl stop ollama")
    elif owner.answers_as == "Enginehouse":
        who = f"another Enginehouse (pid {owner.pid})" if owner.pid else "another Enginehouse"
        remedies.insert(0, "it serves already: use it, or stop it with Ctrl-C or SIGTERM")
    elif owner.pid:
        remedies.insert(0, f"stop {owner.name}, if it is yours: kill {owner.pid}")
    return MachineError(
        "port.in_use",
        f"port {port} on {host} is in use by {who}",
        evidence=(f"bind to {host}:{port}: address already in use",),
        remedies=tuple(remedies),
    )


def find_port_owner(host: str, port: int) -> PortOwner:
    """Find who listens on a port; empty fields where it cannot be known."""
    name, pid = "", None
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.laddr and connection.laddr.port == port and connection.pid:
                pid = connection.pid
                name = psutil.Process(pid).name()
                break
    except (psutil.Error, OSError):
        pass
    return PortOwner(name, pid, _greeting(host, port))


def _greeting(host: str, port: int) -> str:
    """Ask who answers there, past any proxy; what is no HTTP, or slow, is nobody we know."""
    local = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(local, port, timeout=GREETING_LIMIT_S)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        text = answer.getheader("Server", "") + answer.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    return next((name for name in ("Enginehouse", "Ollama") if name in text), "")
