"""Who is let in: keys, scopes, rates, web pages, and what a log never holds."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from enginehouse.core.binding import read_origins
from enginehouse.core.errors import UserError
from enginehouse.core.keys import ApiKey
from enginehouse.edges.keys_file import KeysFile
from enginehouse.edges.tls import open_tls
from enginehouse.gateway.access import Guarded
from tests.integration.conftest import Serving

CHAT = "/v1/chat/completions"
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def keys_of(tmp_path: Path, *keys: ApiKey) -> tuple[KeysFile, list[str]]:
    """Return a file of keys and the keys themselves."""
    file = KeysFile(tmp_path / "keys.json")
    return file, [file.create(key)[0] for key in keys]


async def test_a_key_opens_what_its_scope_allows(serving: Serving, tmp_path: Path) -> None:
    """No key and a wrong one get 401, a key without the scope 403, in every dialect's shape."""
    file, [use, admin] = keys_of(
        tmp_path, ApiKey("", "u", "", ""), ApiKey("", "a", "", "", "admin")
    )
    async with serving(access=Guarded(file.keys)) as served:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer nonsense"}, 401),
            ({"Authorization": f"Bearer {use[:-1]}{'y' if use[-1] == 'x' else 'x'}"}, 401),
            ({"Authorization": f"Bearer {use}"}, 200),
            ({"x-api-key": use}, 200),
        ):
            async with served.client.post(CHAT, json=ASK, headers=headers) as answer:
                assert answer.status == status
                if status == 401:
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
        async with served.client.get("/metrics") as answer:
            assert answer.status == 401
        copy = {"source": "fake", "destination": "mine"}
        for key, status in ((use, 403), (admin, 200)):
            headers = {"Authorization": f"Bearer {key}"}
            async with served.client.post("/api/copy", json=copy, headers=headers) as answer:
                assert answer.status == status
        file.revoke("u")
        async with served.client.post(CHAT, json=ASK, headers={"x-api-key": use}) as answer:
            assert answer.status == 401
    kept = (tmp_path / "keys.json").read_text()
    assert use not in kept
    assert use[12:] not in kept
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600


async def test_a_key_has_its_rate(serving: Serving, tmp_path: Path) -> None:
    """Requests and tokens beyond a key's rate get 429 with Retry-After; other keys are served."""
    file, [few, tokens, free] = keys_of(
        tmp_path,
        ApiKey("", "few", "", "", requests_per_min=2),
        ApiKey("", "tokens", "", "", tokens_per_min=5),
        ApiKey("", "free", "", ""),
    )
    async with serving(access=Guarded(file.keys)) as served:
        for key, statuses in ((few, [200, 200, 429]), (tokens, [200, 429]), (free, [200] * 3)):
            for status in statuses:
                headers = {"Authorization": f"Bearer {key}"}
                async with served.client.post(CHAT, json=ASK, headers=headers) as answer:
                    assert answer.status == status
                    if status == 429:
                        assert int(answer.headers["Retry-After"]) > 0
                        assert (await answer.json())["error"]["code"] == "rate.limited"


async def test_an_urgent_key_and_a_quiet_one_come_first(serving: Serving, tmp_path: Path) -> None:
    """Of waiting requests the higher priority goes first, then the key with the fewest running."""
    file, [busy, quiet, urgent] = keys_of(
        tmp_path, ApiKey("", "b", "", ""), ApiKey("", "q", "", ""), ApiKey("", "u", "", "",
        priority=5),
    )  # fmt: skip
    order: list[str] = []
    async with serving("--token-s", "0.05", slots=2, access=Guarded(file.keys)) as served:

        async def ask(name: str, key: str) -> None:
            headers = {"Authorization": f"Bearer {key}"}
            async with served.client.post(CHAT, json=ASK, headers=headers) as answer:
                await answer.read()
                order.append(name)

        asked = [asyncio.ensure_future(ask("b", busy)) for _ in range(6)]
        while served.gate.waiting < 4:  # noqa: ASYNC110 - other tasks
            await asyncio.sleep(0.01)
        asked += [asyncio.ensure_future(ask(n, k)) for n, k in (("q", quiet), ("u", urgent))]
        await asyncio.gather(*asked)
    assert order[2] == "u", order
    assert "q" in order[:5], order  # before the last of the busy key's


async def test_a_strangers_page_may_not_ask(serving: Serving) -> None:
    """A page of another origin and a rebound host name get 403; allowed ones are served."""
    guarded = Guarded(dict, frozenset({"https://home.lan"}), frozenset({"box.lan"}))
    async with serving(access=guarded) as served:
        for headers, status in (
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "https://home.lan"}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Host": "box.lan:11434"}, 200),
            ({"Host": "localhost:1"}, 200),
            ({"Host": "[::1]:1"}, 200),
        ):
            async with served.client.post(CHAT, json=ASK, headers=headers) as answer:
                assert answer.status == status, headers
                allowed = answer.headers.get("Access-Control-Allow-Origin")
                assert allowed == ("https://home.lan" if "home.lan" in str(headers) else None)


PAGE = "https://home.lan"
ASKED = "authorization, content-type, x-api-key, anthropic-version, x-stainless-helper"


def preflight(origin: str, method: str = "POST", headers: str = ASKED) -> dict[str, str]:
    """Return what a browser sends before a page's request."""
    return {
        "Origin": origin, "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }  # fmt: skip


async def test_a_browser_is_told_which_pages_may_ask(serving: Serving, tmp_path: Path) -> None:
    """A preflight needs no key; whole answers, streams and errors carry the page's own origin."""
    file, [key] = keys_of(tmp_path, ApiKey("", "page", "", ""))
    guarded = Guarded(file.keys, frozenset({PAGE, "http://localhost:3000"}))
    async with serving(access=guarded) as served:
        client = served.client
        for origin in (PAGE, "http://localhost:3000"):
            for path in (CHAT, "/v1/messages", "/api/chat", "/api/tags", "/v1/nothing"):
                async with client.options(path, headers=preflight(origin)) as answer:
                    assert answer.status == 200
                    assert answer.headers["Access-Control-Allow-Origin"] == origin
                    assert "Origin" in answer.headers["Vary"]
                    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
                    assert set(ASKED.split(", ")) <= set(allowed)
                    assert "DELETE" in answer.headers["Access-Control-Allow-Methods"]
                    assert "Access-Control-Allow-Credentials" not in answer.headers
        page = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
        for path, body, headers, status in (
            (CHAT, ASK, page, 200),
            (CHAT, ASK | {"stream": True}, page, 200),
            ("/api/chat", ASK, page, 200),
            ("/v1/messages", ASK | {"stream": True}, page, 200),
            (CHAT, ASK | {"model": "no"}, page, 404),
            (CHAT, ASK, {"Origin": PAGE}, 401),
            ("/v1/nothing", ASK, page, 404),
        ):
            async with client.post(path, json=body, headers=headers) as answer:
                assert answer.status == status, path
                assert answer.headers["Access-Control-Allow-Origin"] == PAGE
                assert "Origin" in answer.headers["Vary"]
                assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]
                text = await answer.text()
                assert ("data: " in text) == bool(body.get("stream"))
        for origin in ("https://evil.example", "null", f"{PAGE}.evil.example", "http://home.lan",
                       f"{PAGE}:8443", ""):  # fmt: skip
            async with client.options(CHAT, headers=preflight(origin)) as answer:
                assert answer.status == 400
                assert "Access-Control-Allow-Origin" not in answer.headers
            async with client.post(CHAT, json=ASK, headers=page | {"Origin": origin}) as answer:
                assert answer.status == (403 if origin else 200)
                assert "Access-Control-Allow-Origin" not in answer.headers
        async with client.options(CHAT, headers=preflight(PAGE, "POST", "x-sdk-new")) as answer:
            assert answer.headers["Access-Control-Allow-Headers"] == "x-sdk-new"
        async with client.options(CHAT, headers=preflight(PAGE, "PATCH")) as answer:
            assert answer.status == 400


async def test_no_page_may_ask_by_default(serving: Serving) -> None:
    """Without `gateway.origins` there is no preflight, and no answer names an origin."""
    async with serving(access=Guarded(dict)) as served:
        async with served.client.options(CHAT, headers=preflight(PAGE)) as answer:
            assert answer.status == 405
            told = set(answer.headers)
        async with served.client.post(CHAT, json=ASK, headers={"Origin": PAGE}) as answer:
            assert answer.status == 403
            told |= set(answer.headers)
        same = {"Origin": f"http://127.0.0.1:{served.client._base_url.port}"}  # type: ignore
        async with served.client.post(CHAT, json=ASK, headers=same) as answer:
            assert answer.status == 200
            told |= set(answer.headers)
        assert not [name for name in told if name.lower().startswith("access-control")]


async def test_a_star_lets_every_page_ask(serving: Serving) -> None:
    """Only the setting `*` is answered by `*`."""
    async with serving(access=Guarded(dict, frozenset({"*"}))) as served:
        async with served.client.options(CHAT, headers=preflight("https://any.lan")) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
        headers = {"Origin": "https://any.lan"}
        async with served.client.post(CHAT, json=ASK | {"stream": True}, headers=headers) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
            assert "[DONE]" in await answer.text()


def test_origins_are_what_a_browser_sends() -> None:
    """Case, a slash and the scheme's own port do not matter; what is no origin is refused."""
    assert read_origins(("https://Home.LAN/", "http://[::1]:3000", "http://a:80", "*")) == {
        "https://home.lan", "http://[::1]:3000", "http://a", "*",
    }  # fmt: skip
    assert read_origins(()) == frozenset()
    for name in ("home.lan", "https://home.lan/x", "null", "https://*", "*.lan", "https://", "a b"):
        with pytest.raises(UserError) as refused:
            read_origins((name,))
        assert refused.value.report.id == "gateway.origins"


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_tls_takes_a_pair_that_belongs_together(tmp_path: Path) -> None:
    """A pair gives a context; half a pair, a wrong key and no file are refused with the reason."""
    for name in ("one", "two"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
             "/CN=localhost", "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
    assert isinstance(open_tls(f"{tmp_path}/one.pem", f"{tmp_path}/one.key"), ssl.SSLContext)
    assert open_tls("", "") is None
    for certificate, key, id in (
        ("one.pem", "", "tls.incomplete"),
        ("one.pem", "two.key", "tls.unusable"),
        ("none.pem", "one.key", "tls.unusable"),
    ):
        with pytest.raises(UserError) as refused:
            open_tls(f"{tmp_path}/{certificate}", f"{tmp_path}/{key}" if key else "")
        assert refused.value.report.id == id
