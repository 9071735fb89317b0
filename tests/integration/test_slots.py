"""A shared prefix is computed once and copied, over a real child process."""

from __future__ import annotations

import asyncio
import json

from enginehouse.edges.slots import name_slot
from tests.integration.conftest import Serving

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "You know this house. " * 100}


def ask(text: str, **more: object) -> dict[str, object]:
    messages = [SYSTEM, {"role": "user", "content": text}]
    return {"model": "fake", "messages": messages, "max_tokens": 8, **more}


async def test_a_prefix_is_computed_once_and_copied(serving: Serving, tmp_path: object) -> None:
    """Of four requests at once one computes the prefix; the others get it by a copy."""
    script = ("--slot-save-path", f"{tmp_path}/scratch", "--token-s", "0.02")
    async with serving(*script, shared_slots=4) as served:

        async def send(text: str) -> int:
            async with served.client.post(CHAT, json=ask(text)) as answer:
                await answer.read()
                return answer.status

        assert await asyncio.gather(*(send(f"q{n}") for n in range(4))) == [200] * 4
        asked = [line for line in (await served.engine_state())["asked"] if "Hi" not in line]
        assert [line for line in asked if "save" in line] == ["0: save"]
        assert sorted(line for line in asked if "restore" in line) == [
            "1: restore", "2: restore", "3: restore",
        ]  # fmt: skip
        assert asked[0] == "0: . (1)"
        assert await send("q9") == 200
        last = [line for line in (await served.engine_state())["asked"] if "q9 (8)" in line]
        assert len(last) == 1


async def test_an_engine_that_cannot_save_still_serves(serving: Serving) -> None:
    """A refused copy costs nothing but the copy."""
    async with serving(shared_slots=2) as served:
        for text in ("one", "two"):
            async with served.client.post(CHAT, json=ask(text)) as answer:
                assert answer.status == 200, await answer.text()


async def test_a_client_that_leaves_gives_its_slot_back(serving: Serving) -> None:
    """With one slot only, the next request is served after the first one's client went away."""
    async with serving("--token-s", "0.05", shared_slots=1, slots=1) as served:
        long = ask("long", max_tokens=1000, stream=True)
        async with served.client.post(CHAT, json=long) as answer:
            await answer.content.readline()
        async with served.client.post(CHAT, json=ask("next")) as answer:
            assert answer.status == 200


async def test_an_idle_engine_is_probed_with_what_it_holds(serving: Serving) -> None:
    """After a request the probes ask that request again, for one token."""
    async with serving() as served:
        async with served.client.post(CHAT, json=ask("remember me")) as answer:
            assert answer.status == 200
        for _ in range(200):
            asked = (await served.engine_state())["asked"]
            if asked[-1] == "-1: remember me (1)":
                return
            await asyncio.sleep(0.02)
        raise AssertionError(asked)


def test_the_slot_is_named_first_and_the_body_stays_as_it_is() -> None:
    """What the client wrote is not touched, and wins where it names a slot itself."""
    assert name_slot(b' {"a": 1.0}', 3) == b'{"id_slot":3,"a": 1.0}'
    assert json.loads(name_slot(b"{}", 3)) == {"id_slot": 3}
    assert json.loads(name_slot(b'{"id_slot": 0}', 3)) == {"id_slot": 0}
