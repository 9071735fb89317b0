"""Every bad input, one row each: what happened, the evidence, what to try; nothing is lost.

What a model file or a source can be wrong in by itself is in `test_models.py`, the engine's ways
to fail are in `test_trials.py`; here the whole program meets them. Ctrl-C, SIGKILL and a second
`up` on the same port, with a real engine, are in `tests/real`.
"""

from __future__ import annotations

import ast
import http.server
import json
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import enginehouse
from tests.integration.conftest import FAKE_ENGINE
from tests.integration.houses import House, as_plain_user, write_model

USER, ENGINE, MACHINE = 2, 3, 4
TURNS = {USER: "user", ENGINE: "engine", MACHINE: "machine"}
Arrange = Callable[[House], None]


@dataclass(frozen=True)
class Row:
    """One bad input: how it comes about, the command, and all that must be said about it."""

    name: str
    command: str
    code: int
    error_id: str
    says: tuple[str, ...] = ()
    arrange: Arrange = field(default=lambda house: None)
    prefix: Callable[[House], tuple[str, ...]] = field(default=lambda house: ())


def content(data: bytes, name: str = "bad.gguf") -> Arrange:
    return lambda house: ignore((house.folder / name).write_bytes(data))


def ignore(_: object) -> None:
    """Forget a value."""


def settings(text: str) -> Arrange:
    return lambda house: ignore(house.settings_file.write_text(text))


def truncated(house: House) -> None:
    path = write_model(house.folder / "bad.gguf")
    path.write_bytes(path.read_bytes()[:-100])


def forbidden(house: House) -> None:
    write_model(house.folder / "bad.gguf").chmod(0)


def short_model(house: House) -> None:
    write_model(house.folder / "short.gguf", context_length=256)


def read_only(house: House) -> None:
    (house.folder / "state").chmod(0o500)


def damaged_records(house: House) -> None:
    (house.folder / "state" / "records.sqlite").write_bytes(b"no database " * 500)


def newer_records(house: House) -> None:
    with closing(sqlite3.connect(house.folder / "state" / "records.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")


def plain_user(house: House) -> tuple[str, ...]:
    return as_plain_user()


def small_disk(house: House) -> tuple[str, ...]:
    """Run with a state folder that is a full tmpfs of 16 KiB, in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=16k none "$0" && exec "$@"'
    prefix = ("unshare", "-rm", "sh", "-c", script, str(house.folder / "state"))
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace is permitted here")
    return prefix


def engine(script: str) -> Arrange:
    """Put a `llama-server` there that does as the script says, with short deadlines."""

    def arrange(house: House) -> None:
        write_model(house.folder / "tiny.gguf")
        program = house.folder / "llama-server"
        program.write_text(
            f"#!{sys.executable}\n"
            "import os, sys\n"
            "if '--version' in sys.argv:\n"
            "    sys.exit('version: 11434 (abcdef1)')\n"
            "host = sys.argv[sys.argv.index('--host') + 1]\n"
            f"os.execv(sys.executable, [sys.executable, {FAKE_ENGINE!r}, '--host', host,"
            f" *{script.split('|')!r}])\n"
        )
        program.chmod(0o700)
        settings(
            f"[engine.llama_cpp]\npath = '{program}'\n[trials]\nload_deadline = '3s'\n"
            "first_token_deadline = '2s'\n[find]\nbudget = '1s'\n"
        )(house)

    return arrange


FETCH_AGAIN = "fetch the file again"
ROWS = (
    # model files
    Row("missing", "find no/such.gguf", USER, "model.file.missing", ("no/such.gguf",)),
    Row("zero bytes", "find bad.gguf", USER, "model.file.empty", (FETCH_AGAIN,), content(b"")),
    Row("cut off", "find bad.gguf", USER, "model.file.truncated", ("ends too early",), truncated),
    Row("not GGUF", "find bad.gguf", USER, "model.file.not_gguf", (), content(b"<!DOCTYPE html>")),
    Row("a header cut off", "find bad.gguf", USER, "model.file.damaged", (),
        content(b"GGUF\x03\0\0\0")),
    Row("a folder", "find state/", USER, "model.file.missing",
        ("holds neither GGUF nor safetensors",)),
    Row("forbidden", "find bad.gguf", USER, "model.file.unreadable", ("Permission denied",),
        forbidden, plain_user),
    # model names and sources
    Row("misspelt name", "up smolm2-135m --port 0", USER, "model.unknown",
        ("did you mean smollm2-135m?",)),
    Row("misspelt name, shown", "models show smolm2-135m", USER, "model.unknown",
        ("did you mean smollm2-135m?",)),
    Row("removed twice", "models remove nothing", USER, "model.unknown", ("models list",)),
    Row("no package", "find pypi:==1", USER, "model.bad_spec", ("pypi:package==1.0",)),
    Row("no repository", "find hf:me", USER, "model.bad_spec", ("hf:owner/repo",)),
    # records
    Row("nothing chosen", "serve", USER, "serve.no_choice", ("enginehouse up",)),
    Row("no trial", "trials show 7", USER, "trial.unknown", ("trials list",)),
    Row("no trial's log", "trials log 7", USER, "trial.unknown", ("trials list",)),
    Row("damaged records", "trials list", MACHINE, "records.unusable", ("move",), damaged_records),
    Row("newer records", "trials list", MACHINE, "records.newer", ("schema 99",), newer_records),
    # workload, context
    Row("context too long", "find short.gguf --workload rag", USER, "context.too_long",
        ("256", "workloads that fit"), short_model),
    Row("context beyond the model", "find short.gguf --context 512", USER, "context.too_long",
        ("at most 256",), short_model),
    Row("context under the workload", "find kept.gguf --context 300", USER, "context.too_short",
        ("352",)),
    # settings of candidates
    Row("no such candidate's setting", "find kept.gguf --set kvtype=q8_0", USER,
        "settings.unknown_tunable", ("--set kv_type=q8_0",)),
    Row("no number", "up kept.gguf --port 0 --set slots=many", USER, "settings.bad_tunable",
        ("whole number from 1 on", "many")),
    Row("no such value", "find kept.gguf --set mmap=maybe", USER, "settings.bad_tunable",
        ("one of on, off",)),
    # settings: file, line, key, value, wanted type, nearest key
    Row("wrong type", "config show", USER, "settings.wrong_type",
        ("config.toml:2", "gateway.port cannot be 'x'", "wants a whole number"),
        settings("[gateway]\nport = 'x'\n")),
    Row("unknown key", "config show", USER, "settings.unknown_key",
        ("config.toml:3", "gateway.prot = 1", "did you mean gateway.port?"),
        settings("[gateway]\n\nprot = 1\n")),
    Row("unknown choice", "config show", USER, "settings.wrong_type",
        ("config.toml:2", "'chta'", "one of chat"), settings("[find]\nworkload = 'chta'\n")),
    Row("no duration", "config show", USER, "settings.wrong_type",
        ("config.toml:2", "'soon'", "a duration"), settings("[find]\nbudget = 'soon'\n")),
    Row("no TOML", "config show", USER, "settings.syntax", ("line 1", "mend the line"),
        settings("[gateway\n")),
    Row("no text", "config show", USER, "settings.unreadable", ("UTF-8",),
        lambda house: ignore(house.settings_file.write_bytes(b"\xff\xfe"))),
    Row("no settings file", "--config none.toml config show", USER, "settings.no_file",
        ("none.toml",)),
    Row("bad option", "find demo --budget soon", USER, "settings.wrong_type", ("command line",)),
    Row("bad port", "up --port abc", USER, "settings.wrong_type", ("gateway.port",)),
    Row("port too high", "up --port 70000", USER, "port.bad_address", ("127.0.0.1:70000",)),
    Row("no such host", "up --port 0 --host a..b", USER, "port.bad_address", ("127.0.0.1",)),
    # the machine
    Row("read-only state", "trials list", MACHINE, "records.not_writable",
        ("ENGINEHOUSE_STATE_DIR",), read_only, plain_user),
    Row("no space left", "trials list", MACHINE, "records.no_space", ("free some space",),
        prefix=small_disk),
    # engines; the wheel, which is tried too, cannot load the tiny model either
    Row("dies at start", "find tiny.gguf", ENGINE, "engine.none_serves",
        ("exit code 3", "trials log 1"), engine("--fail|something odd")),
    Row("hangs", "find tiny.gguf", ENGINE, "engine.none_serves",
        ("load was not done within 3 s",), engine("--never-ready")),
    Row("garbage", "find tiny.gguf", ENGINE, "engine.none_serves",
        ("load was not done within 3 s",), engine("--garbage")),
    Row("no token", "find tiny.gguf", ENGINE, "engine.none_serves",
        ("no token today",), engine("--no-token")),
    Row("ignores SIGTERM", "find tiny.gguf", ENGINE, "engine.none_serves",
        ("load was not done within 3 s",), engine("--never-ready|--ignore-sigterm|--grandchild")),
)  # fmt: skip


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return a house that nobody has used, with one model registered."""
    made = House(tmp_path)
    write_model(tmp_path / "kept.gguf")
    return made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input_is_answered_in_words(house: House, row: Row) -> None:
    """Exit code, id, evidence, what to try; no traceback, no process, and nothing is lost."""
    row.arrange(house)
    before = kept_files(house)
    done = house.run(*row.command.split(), prefix=row.prefix(house))
    (house.folder / "state").chmod(0o700)
    check_told(done, row.code, row.error_id, row.says)
    assert kept_files(house) == before
    assert leftovers(house) == []


def kept_files(house: House) -> dict[str, bytes]:
    """Return what is the user's own: models, settings, and records that are not ours to mend."""
    names = [*house.folder.glob("*.gguf"), house.settings_file]
    return {
        str(path): path.stat().st_mode.to_bytes(4, "big") + path.read_bytes()
        for path in names
        if path.is_file()
    }


def leftovers(house: House) -> list[str]:
    """Return leases, fetches and living processes of the house."""
    found = [str(p) for kind in ("state", "cache") for p in (house.folder / kind).glob("leases/*")]
    found += [str(path) for path in (house.folder / "cache").glob("fetch-*")]
    wanted = f"ENGINEHOUSE_STATE_DIR={house.folder / 'state'}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(str(entry))
        except OSError:
            continue
    return found


def check_told(
    done: subprocess.CompletedProcess[str], code: int, error_id: str, says: tuple[str, ...] = ()
) -> None:
    """The form of every error: its head, why, the evidence, what to try, and nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert "error[" not in done.stdout
    assert "Traceback" not in done.stderr
    block = done.stderr[done.stderr.index("error[") :]
    labels = re.findall(r"^  (what happened|evidence|try) +\S", block, re.MULTILINE)
    assert labels == ["what happened", "evidence", "try"], block
    assert block.startswith(f"error[{error_id}]: "), block
    for part in says:
        assert part in block


JSON_ROWS = [row for row in ROWS if row.name in ("missing", "misspelt name", "wrong type",
                                                 "damaged records")]  # fmt: skip


@pytest.mark.parametrize("row", JSON_ROWS, ids=lambda row: row.name)
def test_bad_input_is_data_on_request(house: House, row: Row) -> None:
    """With --json the same error is one document on stdout, and says whose turn it is."""
    row.arrange(house)
    done = house.run(*row.command.split(), "--json")
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"id", "what", "evidence", "remedies", "turn"}
    assert (done.returncode, error["id"], error["turn"]) == (
        row.code,
        row.error_id,
        TURNS[row.code],
    )
    assert error["evidence"]
    assert error["remedies"]


@contextmanager
def greeter(text: bytes) -> Iterator[str]:
    """Listen on a free port and answer every connection with these bytes."""

    class Greet(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(text)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield str(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


HTTP = b"HTTP/1.0 200 OK\r\n\r\n"
HELLO = b"HTTP/1.0 200 OK\r\nServer: Enginehouse\r\n\r\n"
HOLDERS = (
    ("a plain process", b"SSH-2.0-OpenSSH_9\r\n", ("python", "kill ")),
    ("Ollama", HTTP + b"Ollama is running", ("by Ollama", "systemctl stop ollama", "--port ")),
    ("Enginehouse", HELLO + b"Ollama is running", ("another Enginehouse", "it serves already")),
)


@pytest.mark.parametrize("command", ["up", "serve"])
@pytest.mark.parametrize(("holder", "answer", "says"), HOLDERS, ids=[h[0] for h in HOLDERS])
def test_a_port_in_use_is_told_with_who_has_it(
    house: House, command: str, holder: str, answer: bytes, says: tuple[str, ...]
) -> None:
    """Before a model is fetched: by whom, and the choices, whatever speaks there."""
    with greeter(answer) as port:
        done = house.run(command, "--port", port, env={"http_proxy": "http://127.0.0.1:9"})
    check_told(done, MACHINE, "port.in_use", (f"port {port} on 127.0.0.1", *says))
    assert not list((house.folder / "cache").rglob("*.gguf"))


def test_a_port_whose_holder_says_nothing_is_told_soon(house: House) -> None:
    """A listener that never answers does not hold us up."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        check_told(house.run("up", "--port", port), MACHINE, "port.in_use", (port,))


def test_every_error_has_all_its_parts() -> None:
    """Whatever error the program can build gives evidence and something to try."""
    kinds = {"UserError", "EngineError", "MachineError", "InternalError"}
    lacking = []
    for path in sorted(Path(enginehouse.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds:
                given = {keyword.arg for keyword in node.keywords}
                if not {"evidence", "remedies"} <= given:
                    lacking.append(f"{path.name}:{node.lineno}")
    assert lacking == []
