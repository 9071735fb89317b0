"""Seat requests in llama-server's slots, and copy a shared prefix between them.

llama-server computes a prompt's prefix anew in every slot that does not hold it. It can save a
slot's state to a file and restore it in another slot, which takes milliseconds where computing
takes seconds; `core.prefix` decides, this acts. Whatever fails here, the request still goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import msgspec

from enginehouse.core.engine import Endpoint
from enginehouse.core.prefix import Action, Prompt, Seat, Slot, choose_seat, describe_prompt
from enginehouse.edges.http import open_session

CHAT_PATH = "/v1/chat/completions"
COPY_LIMIT_S = 30.0
PRIME_LIMIT_S = 600.0
log = logging.getLogger(__name__)


class _Message(msgspec.Struct):
    role: str = ""


class _Chat(msgspec.Struct):
    messages: list[msgspec.Raw] = msgspec.field(default_factory=list)
    tools: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b""))


_CHAT = msgspec.json.Decoder(_Chat)
_MESSAGE = msgspec.json.Decoder(_Message)


class SlotKeeper:
    """Seats the requests of one run of an engine; every request to it must pass here.

    `folder` is the engine's `--slot-save-path`; at most `limit_bytes` of saved prefixes stay there.
    """

    def __init__(self, endpoint: Endpoint, slots: int, folder: Path, limit_bytes: int) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._slots = [Slot()] * slots
        self._saved: dict[str, int] = {}
        self._priming: set[str] = set()
        self._changed = asyncio.Condition()
        self._uses = 0

    @asynccontextmanager
    async def seat(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """Hold a slot for a request; yield its body with the slot named in it."""
        prompt = describe_body(body) if path == CHAT_PATH else Prompt()
        seat = await self._take(prompt)
        held: tuple[str, ...] = ()
        try:
            if seat.action is Action.PRIME:
                await self._prime(seat.slot, prompt.prefix, body)
            elif seat.action is Action.RESTORE:
                await self._copy(seat.slot, "restore", prompt.prefix)
            yield name_slot(body, seat.slot)
            held = prompt.chain
        finally:
            if seat.action is Action.PRIME:
                self._priming.discard(prompt.prefix)
            self._uses += 1
            self._slots[seat.slot] = Slot(held, False, self._uses)
            await asyncio.shield(self._tell())

    async def _take(self, prompt: Prompt) -> Seat:
        async with self._changed:
            while True:
                seat = choose_seat(prompt, self._slots, self._saved, self._priming)
                if seat.action is not Action.WAIT:
                    break
                await self._changed.wait()
            self._slots[seat.slot] = Slot(is_busy=True)
            if seat.action is Action.PRIME:
                self._priming.add(prompt.prefix)
            elif seat.action is Action.RESTORE:
                self._saved[prompt.prefix] = self._saved.pop(prompt.prefix)  # the newest use last
            return seat

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _prime(self, slot: int, prefix: str, body: bytes) -> None:
        """Compute the prefix in a slot and save it; others wait for it meanwhile."""
        try:
            status, _ = await self._post(CHAT_PATH, priming_body(body, slot), PRIME_LIMIT_S)
            if status == 200 and await self._copy(slot, "save", prefix):
                self._saved[prefix] = self._size(prefix)
                self._keep_within_limit()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
            log.warning("a shared prefix could not be computed apart: %s", problem)
        self._priming.discard(prefix)
        await self._tell()

    async def _copy(self, slot: int, action: str, prefix: str) -> bool:
        name = json.dumps({"filename": f"{prefix}.slot"}).encode()
        try:
            status, text = await self._post(f"/slots/{slot}?action={action}", name, COPY_LIMIT_S)
            if status == 200:
                return True
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
            text = f"{type(problem).__name__}: {problem}"
        log.warning("a shared prefix was not copied (%s slot %d): %s", action, slot, text[:200])
        self._drop(prefix)
        return False

    async def _post(self, path: str, body: bytes, limit_s: float) -> tuple[int, str]:
        """Post JSON on a connection of its own; return the status and the answer's text."""
        async with (
            open_session(self._endpoint, keep_alive=False) as session,
            session.post(
                path,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=limit_s),
            ) as answer,
        ):
            return answer.status, await answer.text()

    def _size(self, prefix: str) -> int:
        return sum(path.stat().st_size for path in self._folder.glob(f"{prefix}.slot*"))

    def _keep_within_limit(self) -> None:
        while sum(self._saved.values()) > self._limit_bytes and self._saved:
            self._drop(next(iter(self._saved)))

    def _drop(self, prefix: str) -> None:
        self._saved.pop(prefix, None)
        for path in self._folder.glob(f"{prefix}.slot*"):
            with suppress(OSError):
                path.unlink()


def describe_body(body: bytes) -> Prompt:
    """Return the chain of a chat request's prompt; an odd body has none."""
    try:
        chat = _CHAT.decode(body)
        messages = [(_MESSAGE.decode(raw).role, bytes(raw)) for raw in chat.messages]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Prompt()
    return describe_prompt(bytes(chat.tools), messages)


def name_slot(body: bytes, slot: int) -> bytes:
    """Put the slot before the request's own fields, which win where they name one too."""
    rest = body.lstrip()[1:].lstrip()
    return b'{"id_slot":%d%s' % (slot, b"" if rest.startswith(b"}") else b",") + rest


def priming_body(body: bytes, slot: int) -> bytes:
    """Return a request that computes what the given one shares with others, and one token more."""
    request = json.loads(body)
    kept = {
        name: request[name]
        for name in ("model", "tools", "tool_choice", "chat_template_kwargs", "reasoning_format")
        if name in request
    }
    first = request["messages"][0]
    return json.dumps(
        {
            **kept,
            "messages": [first, {"role": "user", "content": "."}],
            "max_tokens": 1,
            "id_slot": slot,
        }
    ).encode()
