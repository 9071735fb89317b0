"""Whether an endpoint may listen where it is asked to. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from enginehouse.core.errors import UserError

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
OWN_PORTS = {"http": ":80", "https": ":443"}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_binding(host: str, has_keys: bool, is_forced: bool) -> None:
    """Refuse to listen wider than the loopback while anybody may ask.

    Raises:
        UserError: `gateway.open`.
    """
    if is_loopback(host) or has_keys or is_forced:
        return
    raise UserError(
        "gateway.open",
        f"the endpoint would be open to everybody who reaches {host}: there is no API key",
        evidence=(f"gateway.host is {host}, and no key is kept",),
        remedies=(
            "enginehouse keys create NAME",
            "listen on 127.0.0.1 behind a proxy that asks for keys",
            "set gateway.insecure to yes, if the network itself is trusted",
        ),
    )


def read_origins(names: Iterable[str]) -> frozenset[str]:
    """Return the origins of web pages as browsers write them; "*" stands for all.

    Raises:
        UserError: `gateway.origins`, for what no browser would send.
    """
    found = set()
    for name in names:
        origin = name.lower().removesuffix("/")
        if name != "*" and not ORIGIN.fullmatch(origin):
            raise UserError(
                "gateway.origins",
                f"gateway.origins cannot hold {name[:100]}",
                evidence=("an origin is a scheme, a host and perhaps a port, or * for all pages",),
                remedies=("write https://home.lan, or http://localhost:3000",),
            )
        own = OWN_PORTS.get(origin.partition("://")[0])
        found.add(origin.removesuffix(own) if own else origin)
    return frozenset(found)
