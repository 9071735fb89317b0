"""Bind the endpoint's port, or say who holds it."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from dataclasses import dataclass

import psutil

from enginehouse.core.errors import EnginehouseError, MachineError, UserError

GREETING_LIMIT_S = 0.5
GREETING_LIMIT_BYTES = 4096
GREETINGS = {"Enginehouse serves": "Enginehouse", "Ollama is running": "Ollama"}
"""How a server's answer to `GET /` tells what it is."""


@dataclass(frozen=True)
class PortOwner:
    """Who listens on a port, as far as this user may know."""

    name: str = ""
    pid: int | None = None
    answers_as: str = ""

    @property
    def is_ollama(self) -> bool:
        """Whether it is Ollama, by the process's name or by its greeting."""
        return self.name == "ollama" or self.answers_as == "Ollama"

    @property
    def is_enginehouse(self) -> bool:
        """Whether it is an Enginehouse; by name even one that is stopped and cannot answer."""
        return self.name == "enginehouse" or self.answers_as == "Enginehouse"


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a non-blocking socket that is bound and listening.

    Raises:
        MachineError: `port.in_use`, `port.not_permitted`.
        UserError: `port.bad_address`.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if not host:  # the system would take it for every address of the machine
            raise ValueError("the host is empty")
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
    owner = describe_port_owner(host, port) or PortOwner()
    pid = f" (pid {owner.pid})" if owner.pid else ""
    remedies = [f"use another port: --port {port + 1 if port < 65535 else port - 1}"]
    if owner.is_ollama:
        who = "Ollama"
        remedies.insert(0, "stop Ollama, to take its place: systemctl stop ollama")
    elif owner.is_enginehouse:
        who = "another Enginehouse"
        remedies.insert(0, "it serves already: use it, or stop it with Ctrl-C or SIGTERM")
    else:
        who = owner.name or "another process"
        if owner.pid:
            remedies.insert(0, f"stop {who}, if it is yours: kill {owner.pid}")
    return MachineError(
        "port.in_use",
        f"port {port} on {host} is in use by {who}{pid}",
        evidence=(f"bind to {host}:{port}: address already in use",),
        remedies=tuple(remedies),
    )


def describe_port_owner(host: str, port: int) -> PortOwner | None:
    """Describe who listens on a port; None when nobody does, as far as can be seen.

    A process of another user may show neither name nor pid; on loopback its answer to `GET /` can
    still tell what it is.
    """
    name, pid, listens = "", None, False
    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr.port == port
                and _overlap(host, connection.laddr.ip)
            ):
                listens = True
                pid = connection.pid or pid
        name = _process_name(pid) if pid else ""
    except psutil.AccessDenied:
        pass
    answers_as = _greeting(host, port)
    if not (listens or answers_as):
        return None
    return PortOwner(name, pid, answers_as)


def _process_name(pid: int) -> str:
    """Return a process's name; an Enginehouse is named so, though the kernel calls it python."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()[:3]
        is_ours = any(word.rpartition("/")[2] == "enginehouse" for word in words)
        return "enginehouse" if is_ours else process.name()
    except psutil.Error:
        return ""


def _overlap(wanted: str, taken: str) -> bool:
    """Say whether listening on one address excludes listening on the other."""
    try:
        one, other = (
            getattr(ip, "ipv4_mapped", None) or ip
            for ip in map(ipaddress.ip_address, (wanted, taken))
        )
    except ValueError:  # a host's name: which address it stands for is not known here
        return True
    return one == other or one.is_unspecified or other.is_unspecified


def _greeting(host: str, port: int) -> str:
    """Ask for `/` and return who answers; only on loopback, and never longer than half a second.

    A plain socket, since what listens may speak no HTTP, send a redirect, or drip.
    """
    target = {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(host, host)
    until = time.monotonic() + GREETING_LIMIT_S
    answer = b""
    try:
        if not ipaddress.ip_address(target).is_loopback:
            return ""
        with socket.create_connection((target, port), GREETING_LIMIT_S) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            while len(answer) < GREETING_LIMIT_BYTES and (left := until - time.monotonic()) > 0:
                connection.settimeout(left)
                block = connection.recv(GREETING_LIMIT_BYTES)
                if not block:
                    break
                answer += block
    except (OSError, ValueError, OverflowError):
        pass
    text = answer.decode(errors="replace")
    return next((name for words, name in GREETINGS.items() if words in text), "")
