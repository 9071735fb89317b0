"""`enginehouse keys` and `enginehouse requests` as a user runs them, heeded by a server."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from enginehouse.edges.request_log import NAMES, RequestRow, open_log
from tests.integration.gateways import Running, running
from tests.integration.houses import House, as_plain_user

HEAD_OF_KEYS = ["ID", "NAME", "SCOPE", "PRIORITY", "RATE", "STATE"]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return a house that nobody has used."""
    return House(tmp_path)


MANY = """
import contextlib, io, json, sys
from enginehouse.cli import cli
from enginehouse.cli_run import run
told = []
for arguments in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(cli, [*arguments, "--json"])
    told.append([code, json.loads(out.getvalue())])
print(json.dumps(told))
"""


def refusals(house: House, *commands: tuple[str, ...]) -> list[dict[str, Any]]:
    """Run commands, in one process, that must be refused as the user's fault; return the errors."""
    done = house.python("-c", MANY, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    errors = []
    for command, (code, document) in zip(commands, json.loads(done.stdout), strict=True):
        error = document["error"]
        assert (code, error["turn"]) == (2, "user"), (command, error)
        assert error["remedies"], (command, error)
        errors.append(error)
    return errors


def keys_path(house: House) -> Path:
    return house.folder / "state" / "keys.json"


# keys


def test_a_key_is_shown_once_and_kept_hashed(house: House) -> None:
    """stdout is the key and nothing else; the file is its owner's and holds no key."""
    done = house.run("keys", "create", "home-assistant", "--rate", "60", "--priority", "5")
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert key.startswith("eh-")
    assert len(key.split()) == 1
    assert "not shown again" in done.stderr
    secret = key.rpartition("-")[2]
    assert keys_path(house).stat().st_mode & 0o777 == 0o600
    for path in (house.folder / "state").rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    for shown in (house.run("keys", "list"), house.run("keys", "list", "--json")):
        assert secret not in shown.stdout + shown.stderr
    lines = house.run("keys", "list").stdout.splitlines()
    assert lines[0].split() == HEAD_OF_KEYS
    assert lines[1].split() == [key.split("-")[1], "home-assistant", "use", "5", "60", "good"]


def test_a_key_has_what_was_asked_for_it(house: House) -> None:
    """Scope, priority, rates and expiry come back from `keys list --json`; so does a revocation."""
    before = time.time()
    made = house.run_json(
        "keys", "create", "Küche", "--scope", "admin", "--priority", "-3", "--rate", "2",
        "--tokens", "900", "--expires", "1h30m",
    )  # fmt: skip
    assert (made["name"], made["scope"]) == ("Küche", "admin")
    [kept] = house.run_json("keys", "list")["keys"]
    assert before <= kept["created_at"] <= time.time()
    assert kept["expires_at"] - kept["created_at"] == pytest.approx(5400, abs=5)
    assert {name: kept[name] for name in kept if not name.endswith("_at")} == {
        "id": made["id"], "name": "Küche", "scope": "admin", "priority": -3,
        "requests_per_min": 2, "tokens_per_min": 900, "state": "good",
    }  # fmt: skip
    assert " good until 2" in house.run("keys", "list").stdout
    revoked = house.run_json("keys", "revoke", "Küche")
    assert revoked["id"] == made["id"]
    [kept] = house.run_json("keys", "list")["keys"]
    assert (kept["state"], kept["revoked_at"]) == ("revoked", revoked["revoked_at"])


def test_a_key_expires(house: House) -> None:
    """After its time a key is listed as expired."""
    house.run_json("keys", "create", "short", "--expires", "1ms")
    assert house.run_json("keys", "list")["keys"][0]["state"] == "expired"
    assert house.run("keys", "list").stdout.splitlines()[1].endswith("expired")


def test_no_keys_say_what_that_means(house: House) -> None:
    """An empty list says that everybody may ask; nothing is written for it."""
    assert house.run("keys", "list").stdout == (
        "no keys: everybody may ask who reaches the endpoint\n"
    )
    assert house.run_json("keys", "list") == {"keys": []}
    assert not keys_path(house).exists()


def test_a_key_that_cannot_be_is_refused(house: House) -> None:
    """A bad duration, rate, priority, scope or name is the user's error, and no key is made."""
    durations = ("soon", "", "0h", "-5m", "5 days", "1h-30m", "9" * 400, "nan", "inf", "²h", "1e9h")
    options = ("--rate=0", "--rate=many", "--tokens=-1", f"--rate={'9' * 30}",
               f"--priority={'9' * 30}", "--scope=root")  # fmt: skip
    names = ("", " ", "a\nb", "\x1b[31mred", "x" * 65, " x")
    for id, commands in (
        ("keys.expires", [("x", f"--expires={one}") for one in durations]),
        ("usage", [("x", option) for option in options]),
        ("keys.name", [(name,) for name in names]),
    ):
        errors = refusals(house, *(("keys", "create", *command) for command in commands))
        assert {error["id"] for error in errors} == {id}
    assert house.run("keys", "create", "x", "--expires", "soon").returncode == 2
    assert not keys_path(house).exists()


def test_a_key_that_is_unknown_cannot_be_revoked(house: House) -> None:
    """Unknown, revoked already, or one of several of a name: told, and nothing is changed."""
    assert refusals(house, ("keys", "revoke", "nobody"))[0]["evidence"] == ["not revoked: none"]
    first = house.run_json("keys", "create", "ci")
    second = house.run_json("keys", "create", "ci")
    [error] = refusals(house, ("keys", "revoke", "ci"))
    assert error["id"] == "keys.ambiguous"
    assert first["id"] in error["evidence"][0]
    assert second["id"] in error["evidence"][0]
    assert house.run("keys", "revoke", first["id"]).stdout == (
        f"the key ci ({first['id']}) is revoked\n"
    )
    assert house.run_json("keys", "revoke", "ci")["id"] == second["id"]
    [error] = refusals(house, ("keys", "revoke", "ci"))
    assert (error["id"], error["evidence"]) == ("keys.unknown", ["not revoked: none"])


def test_a_file_of_keys_that_cannot_be_read_is_told(house: House) -> None:
    """A broken file is the machine's error at every command, and is never written over."""
    for broken in (b"", b"{}", b"[1]", b'[{"id": "x"}]', b"\xff", b"[[[["):
        keys_path(house).write_bytes(broken)
        commands = (("keys", "list"), ("keys", "create", "x"), ("keys", "revoke", "x"))
        done = house.python("-c", MANY, json.dumps(commands))
        told = [document["error"]["id"] for _, document in json.loads(done.stdout)]
        assert told == ["keys.unreadable"] * 3, broken
        assert keys_path(house).read_bytes() == broken


def test_a_folder_that_may_not_be_written_is_told(house: House) -> None:
    """Where no key can be kept none is shown."""
    (house.folder / "state").chmod(0o500)
    done = house.run("keys", "create", "x", prefix=as_plain_user())
    (house.folder / "state").chmod(0o700)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "disk.cannot_write" in done.stderr


def test_keys_made_at_once_are_all_kept(house: House) -> None:
    """Commands that run at the same time do not lose each other's keys."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "enginehouse", "keys", "create", f"k{n}"],
            env=house.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=house.folder,
        )
        for n in range(4)
    ]  # fmt: skip
    assert {child.communicate(timeout=60)[0][:3] for child in children} == {b"eh-"}
    kept = house.run_json("keys", "list")["keys"]
    assert sorted(key["name"] for key in kept) == ["k0", "k1", "k2", "k3"]


def wait_status(gateway: Running, key: str, status: int) -> None:
    """Ask until the gateway answers so; it looks at the keys once a second."""
    ends = time.monotonic() + 10
    while (said := gateway.chat(key)) != status:
        assert time.monotonic() < ends, said
        time.sleep(0.1)


def test_a_running_server_heeds_its_keys(house: House) -> None:
    """The first key closes it, each key opens it, and a revoked or broken one no longer does."""
    with running(house) as gateway:
        assert gateway.chat() == 200
        one = house.run("keys", "create", "one").stdout.strip()
        wait_status(gateway, "", 401)
        assert gateway.chat(one) == 200
        short = house.run("keys", "create", "short", "--expires", "2s").stdout.strip()
        wait_status(gateway, short, 200)
        two = house.run("keys", "create", "two", "--scope", "admin").stdout.strip()
        wait_status(gateway, two, 200)
        wait_status(gateway, short, 401)
        assert house.run("keys", "revoke", "one").returncode == 0
        wait_status(gateway, one, 401)
        assert gateway.chat(two) == 200
        kept = keys_path(house).read_bytes()
        keys_path(house).write_bytes(b"broken")
        wait_status(gateway, two, 503)
        said = gateway.ask("/metrics")
        assert (said.status, said.lines[0]["error"]["code"]) == (503, "keys.unreadable")
        assert gateway.ask("/health").status == 200
        keys_path(house).write_bytes(kept)
        wait_status(gateway, two, 200)
        house.run("keys", "revoke", "two")
        wait_status(gateway, two, 401)  # without a good key nobody is let in, not everybody
        assert gateway.chat() == 401
    rows = house.run_json("requests", "list")["requests"]
    assert {row["error"] for row in rows} == {"", "auth.missing", "auth.unknown", "keys.unreadable"}
    assert one.split("-")[1] in {row["key"] for row in rows}
    assert one not in (house.folder / "state" / "requests.sqlite").read_bytes().decode("latin-1")


# requests


def write_rows(house: House, *rows: dict[str, Any]) -> Path:
    """Write a log of requests, the oldest first."""
    path = house.folder / "state" / "requests.sqlite"
    database = open_log(path)
    with database:
        for n, row in enumerate(rows):
            whole = RequestRow(
                f"r{n}", time.time(), "", "openai", "chat", "m", "llama.cpp", 200, "served", "",
                7, 3, 0, 0.0, 0.0, 0.012, 0.5, 0, 0,
            )  # fmt: skip
            values = {name: row.get(name, getattr(whole, name)) for name in NAMES}
            database.execute(
                f"INSERT INTO requests VALUES ({', '.join('?' * len(NAMES))})",
                [values[name] for name in NAMES],
            )
    database.close()
    return path


def test_an_empty_log_is_told(house: House) -> None:
    """No log, an empty file and a log without rows list nothing, and make nothing."""
    path = house.folder / "state" / "requests.sqlite"
    for _ in range(2):
        assert house.run("requests", "list").stdout == "no requests are logged\n"
        assert house.run_json("requests", "list") == {"requests": []}
        path.touch()
    path.unlink()
    write_rows(house)
    assert house.run_json("requests", "list", "--since", "1h") == {"requests": []}


def test_requests_are_listed_newest_first(house: House) -> None:
    """A row a request, with its times, tokens and what went wrong; --json has every field."""
    path = write_rows(
        house,
        {"model": "old"},
        {"outcome": "failed", "error": "engine.broke_off", "status": 502, "model": "m" * 40},
    )
    head, newest, oldest = house.run("requests", "list").stdout.splitlines()
    assert head.split() == ["AT", "DIALECT", "OPERATION", "MODEL", "STATUS", "IN", "OUT", "TTFT",
                            "TOTAL", "OUTCOME"]  # fmt: skip
    assert newest.split()[2:] == ["openai", "chat", "m" * 20, "502", "7", "3", "12", "ms",
                                  "0.50", "s", "failed", "(engine.broke_off)"]  # fmt: skip
    assert oldest.split()[4] == "old"
    rows = house.run_json("requests", "list")["requests"]
    assert [row["id"] for row in rows] == ["r1", "r0"]
    assert set(rows[0]) == set(NAMES)
    assert path.stat().st_mode & 0o777 == 0o600


def test_requests_are_filtered(house: House) -> None:
    """By model, by age and by number, and by all of them."""
    now = time.time()
    write_rows(
        house,
        {"model": "a", "at": now - 7200},
        {"model": "b", "at": now - 1800},
        {"model": "a", "at": now - 1200},
        {"model": "a", "at": now - 600},
    )

    def ids(*options: str) -> list[str]:
        return [row["id"] for row in house.run_json("requests", "list", *options)["requests"]]

    assert ids() == ["r3", "r2", "r1", "r0"]
    assert ids("--model", "a") == ["r3", "r2", "r0"]
    assert ids("--since", "1h") == ["r3", "r2", "r1"]
    assert ids("--limit", "1") == ["r3"]
    assert ids("--model", "a", "--since", "1h", "--limit", "5") == ["r3", "r2"]
    assert ids("--model", "' OR 1=1 --") == []


def test_a_filter_that_cannot_be_is_refused(house: House) -> None:
    """A bad duration or number is the user's error."""
    for id, options in (
        ("requests.since", ("--since=yesterday", "--since=", f"--since={'9' * 400}")),
        ("usage", ("--limit=0", f"--limit={'9' * 30}", "--limit=all")),
    ):
        errors = refusals(house, *(("requests", "list", option) for option in options))
        assert {error["id"] for error in errors} == {id}


def test_a_log_that_cannot_be_read_is_told(house: House) -> None:
    """What is no database, or has no such table, is told by id with the path."""
    path = house.folder / "state" / "requests.sqlite"
    path.write_bytes(b"this is no database, and long enough to be looked at" * 20)
    for _ in range(2):
        done = house.run("requests", "list", "--json")
        error = json.loads(done.stdout)["error"]
        assert (error["id"], error["turn"]) == ("requests.unreadable", "machine")
        assert str(path) in error["evidence"][0]
        path.unlink()
        sqlite3.connect(path).execute("CREATE TABLE other (x)").connection.close()
