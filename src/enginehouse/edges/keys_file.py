"""The API keys' file: hashed, for its owner only, read again when it changed."""

from __future__ import annotations

import math
import os
import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import msgspec

from enginehouse.core.errors import MachineError, UserError
from enginehouse.core.keys import ApiKey, digest_of, make_key
from enginehouse.edges.locks import hold

LOOK_EVERY_S = 1.0
LOCK_WAIT_S = 5.0
_KEYS = msgspec.json.Decoder(list[ApiKey])


class KeysFile:
    """The keys of one state folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, ApiKey] = {}
        self._mark: tuple[int, int] | None = None
        self._looked_at = -math.inf

    def keys(self) -> dict[str, ApiKey]:
        """Return the kept keys by id; the file is looked at once a second at most.

        Raises:
            MachineError: `keys.unreadable`; nobody is let in by a file that cannot be read.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return self._keys
        self._looked_at = now
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._keys, self._mark = {}, None
            return self._keys
        mark = (stat.st_mtime_ns, stat.st_size)
        if mark != self._mark:
            try:
                found = _KEYS.decode(self._path.read_bytes())
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as problem:
                self._looked_at = -math.inf
                raise MachineError(
                    "keys.unreadable",
                    "the file of API keys cannot be read",
                    evidence=(f"{self._path}: {problem}",),
                    remedies=("restore it from a copy", "remove it and create keys anew"),
                ) from problem
            self._keys, self._mark = {key.id: key for key in found}, mark
        return self._keys

    def create(self, key: ApiKey) -> tuple[str, ApiKey]:
        """Make a new key of this description; return it, once, and what is kept of it.

        Raises:
            MachineError: `keys.unreadable`, `work.under_way`.
        """
        with self._locked():
            return self._create(key)

    def _create(self, key: ApiKey) -> tuple[str, ApiKey]:
        kept = self._fresh()
        while True:
            text, id = make_key(secrets.token_bytes(48))
            if id not in kept:
                break
        salt = secrets.token_hex(16)
        made = replace(key, id=id, salt=salt, digest=digest_of(text, salt), created_at=time.time())
        self._write({**kept, id: made})
        return text, made

    def revoke(self, wanted: str) -> ApiKey:
        """Revoke the key of an id or a name.

        Raises:
            UserError: `keys.unknown`; `keys.ambiguous`, where several keys have the name.
            MachineError: `keys.unreadable`, `work.under_way`.
        """
        with self._locked():
            kept = self._fresh()
            key = _find(wanted, kept)
            revoked = replace(key, revoked_at=time.time())
            self._write({**kept, key.id: revoked})
            return revoked

    def _locked(self) -> AbstractContextManager[None]:
        """Let one process change the file at a time, so that none loses another's key."""
        return hold(self._path.with_suffix(".lock"), "a change of API keys", LOCK_WAIT_S)

    def _fresh(self) -> dict[str, ApiKey]:
        self._looked_at = -math.inf
        return self.keys()

    def _write(self, keys: dict[str, ApiKey]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(f".{os.getpid()}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(list(keys.values()))))
        os.replace(new, self._path)
        self._looked_at = -math.inf


def _find(wanted: str, kept: dict[str, ApiKey]) -> ApiKey:
    """Return the one key of an id or a name that is not revoked yet."""
    good = [key for key in kept.values() if not key.revoked_at]
    found = [key for key in good if key.id == wanted] or [k for k in good if k.name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            "keys.ambiguous",
            f"{len(found)} keys are named {wanted}",
            evidence=(f"their ids: {', '.join(key.id for key in found)}",),
            remedies=tuple(f"enginehouse keys revoke {key.id}" for key in found[:3]),
        )
    raise UserError(
        "keys.unknown",
        f"there is no key {wanted}",
        evidence=(f"not revoked: {', '.join(key.name for key in good) or 'none'}",),
        remedies=("enginehouse keys list",),
    )
