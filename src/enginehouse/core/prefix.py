"""Which slot of an engine a request takes, so that a shared prefix is computed once.

A prompt is seen as a chain: each message's hash includes all before it, so two prompts share as
many messages as their chains have entries in common. The first entry of a chain (a long system
prompt with the tools) is what many requests share; it is computed once, saved, and copied into
other slots. The engine still compares tokens itself, so a wrong guess costs time, never an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

SHARED_BYTES = 1024
"""A prefix shorter than this (about 256 tokens) is computed again sooner than it is copied."""


class Action(str, Enum):
    """What is done to a slot before the request goes into it."""

    KEEP = "keep"
    RESTORE = "restore"
    PRIME = "prime"
    WAIT = "wait"


@dataclass(frozen=True)
class Prompt:
    """A prompt's chain, and whether its first entry is long enough to be copied."""

    chain: tuple[str, ...] = ()
    is_shareable: bool = False

    @property
    def prefix(self) -> str:
        """The key of the part that is shared, empty when there is none."""
        return self.chain[0] if self.is_shareable else ""


@dataclass(frozen=True)
class Slot:
    """What a slot holds; `used` counts up, so that the smallest is the least recently used."""

    chain: tuple[str, ...] = ()
    is_busy: bool = False
    used: int = 0


@dataclass(frozen=True)
class Seat:
    """A slot's index and what is done to it first; with `wait` the request asks again later."""

    slot: int
    action: Action


def describe_prompt(tools: bytes, messages: Sequence[tuple[str, bytes]]) -> Prompt:
    """Return the chain of a chat's messages, given as (role, JSON text); only texts are compared.

    A prefix is shareable when the chat begins with a system (or developer) message.
    """
    texts = [text for _, text in messages]
    if not texts:
        return Prompt()
    begins_with_system = messages[0][0] in ("system", "developer") and len(messages) > 1
    size = len(tools) + len(texts[0])
    return Prompt(
        tuple(_chain([tools + texts[0], *texts[1:]])), begins_with_system and size >= SHARED_BYTES
    )


def choose_seat(
    prompt: Prompt, slots: Sequence[Slot], saved: Collection[str], priming: Collection[str]
) -> Seat:
    """Return the seat of a request: where most of its prompt is, else the least recently used.

    `saved` and `priming` hold the prefixes that can be copied, and that are being computed.
    """
    idle = [index for index, slot in enumerate(slots) if not slot.is_busy]
    if not idle:
        return Seat(-1, Action.WAIT)
    best = max(idle, key=lambda index: (_common(prompt, slots[index]), -slots[index].used))
    if _common(prompt, slots[best]) or not prompt.is_shareable:
        return Seat(best, Action.KEEP)
    if prompt.prefix in saved:
        return Seat(best, Action.RESTORE)
    if prompt.prefix in priming:
        return Seat(-1, Action.WAIT)
    return Seat(best, Action.PRIME)


def _common(prompt: Prompt, slot: Slot) -> int:
    count = 0
    for mine, held in zip(prompt.chain, slot.chain, strict=False):
        if mine != held:
            break
        count += 1
    return count


def _chain(texts: Iterable[bytes]) -> Iterable[str]:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big"))
        digest.update(text)
        yield digest.hexdigest()[:16]
