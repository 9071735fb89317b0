"""API keys: how they are made, recognised and what they may. Pure.

A key is `eh-<id>-<secret>`; the secret has 190 bits of randomness, so one SHA-256 with a salt
protects it at rest as well as a slow hash would protect a password, and costs a request nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

USE, ADMIN = "use", "admin"
SCOPES = (USE, ADMIN)
KEY = re.compile(r"eh-([0-9a-z]{8})-([0-9A-Za-z]{32})")
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class ApiKey:
    """One key as it is kept: never the key itself. Times in Unix seconds, 0 for never.

    `priority` puts its requests before those of lower ones; `requests_per_min` and
    `tokens_per_min` are 0 for no limit.
    """

    id: str
    name: str
    salt: str
    digest: str
    scope: str = USE
    priority: int = 0
    requests_per_min: int = 0
    tokens_per_min: int = 0
    created_at: float = 0.0
    expires_at: float = 0.0
    revoked_at: float = 0.0


def make_key(random: bytes) -> tuple[str, str]:
    """Return a new key and its id, of at least 40 random bytes.

    Raises:
        ValueError: for fewer bytes.
    """
    if len(random) < 40:
        raise ValueError("a key needs 40 random bytes")
    id = base64.b32encode(random[:5]).decode().lower()
    id = re.sub(r"[^0-9a-z]", "0", id)[:8]
    number = int.from_bytes(random[5:], "big")
    secret = ""
    for _ in range(32):
        number, digit = divmod(number, len(ALPHABET))
        secret += ALPHABET[digit]
    return f"eh-{id}-{secret}", id


def digest_of(key: str, salt: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(f"{salt}:{key}".encode()).hexdigest()


def key_in(headers: Mapping[str, str]) -> str:
    """Return the key that a request carries, empty where there is none.

    Read as clients send it: `Authorization: Bearer …` (OpenAI, Ollama), `x-api-key` (Anthropic),
    `api-key` (Azure), or the password of `Authorization: Basic …`.
    """
    for name in ("x-api-key", "api-key"):
        if headers.get(name):
            return headers[name].strip()
    kind, _, value = headers.get("authorization", "").strip().partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            pair = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return ""
        return pair.partition(":")[2]
    return ""


def recognise(key: str, kept: Mapping[str, ApiKey], now: float) -> ApiKey | None:
    """Return the kept key that this is, None for an unknown, expired or revoked one.

    The comparison takes the same time wherever the first difference stands.
    """
    match = KEY.fullmatch(key)
    found = kept.get(match[1]) if match else None
    salt, digest = (found.salt, found.digest) if found else ("", "0" * 64)
    is_same = hmac.compare_digest(digest_of(key, salt), digest)
    if found is None or not is_same or found.revoked_at:
        return None
    return None if found.expires_at and now >= found.expires_at else found


def may(key: ApiKey, scope: str) -> bool:
    """Whether a key allows what a route needs; an admin's key allows all."""
    return key.scope == ADMIN or scope == USE
