"""Whether an endpoint may listen where it is asked to. Pure."""

from __future__ import annotations

import ipaddress

from enginehouse.core.errors import UserError


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
