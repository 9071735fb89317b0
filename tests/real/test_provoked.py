"""Failures of the real llama.cpp server, each provoked here and each diagnosed right.

The server is the wheel's, started as a trial starts it; the model is a small one of noise.
"""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from enginehouse.core.diagnose import diagnose
from enginehouse.core.trial import Diagnosis, Outcome, Stage
from enginehouse.edges.builds import find_builds
from enginehouse.edges.probes import look_at_machine
from enginehouse.knowledge.patterns import load_book
from tests.integration.houses import as_plain_user
from tests.real.broken import CONTEXT, WIDTH, patch, write_llama

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]
ENDS_S = 20.0
Arrange = Callable[[Path], Path]


def plain(folder: Path) -> Path:
    return write_llama(folder / "model.gguf")


def bytes_at(offset: int, data: bytes) -> Arrange:
    return lambda folder: patch(plain(folder), offset, data)


def cut(keep: Callable[[bytes], bytes]) -> Arrange:
    def arrange(folder: Path) -> Path:
        path = plain(folder)
        path.write_bytes(keep(path.read_bytes()))
        return path

    return arrange


def without(**changes: object) -> Arrange:
    """Change metadata by its last name's underscored form, such as `tokenizer__ggml__model`."""
    metadata = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda folder: write_llama(folder / "model.gguf", metadata=metadata)


def tensor(shape: tuple[int, ...] | None) -> Arrange:
    return lambda folder: write_llama(folder / "model.gguf", tensors={"blk.0.ffn_up.weight": shape})


def first_of_two(folder: Path) -> Path:
    return write_llama(folder / "m-00001-of-00002.gguf", split=(0, 2, 22))


def forbidden(folder: Path) -> Path:
    path = plain(folder)
    path.chmod(0)
    return path


def no_folder(folder: Path) -> Path:
    (folder / "run").rmdir()
    return plain(folder)


def socket_there(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "run" / "engine.sock"))
    return plain(folder)


def little_address_space() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


@dataclass(frozen=True)
class Case:
    """How a failure is provoked, and what must be said of it.

    `ends_by` is a signal that is sent from outside once the server listens.
    """

    name: str
    cause: str
    words: str
    arrange: Arrange = plain
    flags: tuple[str, ...] = ()
    ends_by: signal.Signals | None = None
    prepare: Callable[[], None] | None = None
    prefix: Callable[[], Sequence[str]] = tuple


CASES = (
    # the model's file
    Case("not GGUF", "model.corrupt", "invalid magic", bytes_at(0, b"<htm")),
    Case("empty file", "model.corrupt", "failed to read magic", cut(lambda data: b"")),
    Case("weights cut off", "model.corrupt", "not within the file bounds",
         cut(lambda data: data[:-5000])),
    Case("header cut off", "model.corrupt", "failed to read key-value pairs",
         cut(lambda data: data[:2000])),
    Case("no file", "model.file_missing", "No such file", lambda folder: folder / "no.gguf"),
    Case("forbidden", "permission.filesystem", "Permission denied", forbidden,
         prefix=as_plain_user),
    Case("GGUF 1", "model.format_too_old", "GGUFv1 is no longer supported",
         bytes_at(4, b"\x01\0\0\0")),
    Case("GGUF 99", "engine.too_old_for_file_format", "version 99", bytes_at(4, b"\x63\0\0\0")),
    Case("big-endian", "model.wrong_byte_order", "extremely large", bytes_at(4, b"\0\0\0\x03")),
    Case("a part is missing", "model.split_parts_missing", "00002-of-00002", first_of_two),
    # what is in it
    Case("unknown architecture", "model.unknown_architecture", "nonesuch",
         lambda folder: write_llama(folder / "model.gguf", architecture="nonesuch")),
    Case("a tensor is missing", "engine.too_old_for_model", "ffn_up.weight' not found",
         tensor(None)),
    Case("a tensor's shape is wrong", "engine.too_old_for_model", "has wrong shape",
         tensor((WIDTH // 2, WIDTH))),
    Case("a size is missing", "engine.too_old_for_model", "key not found in model",
         without(llama__embedding_length=None)),
    Case("no tokenizer", "engine.too_old_for_model", "tokenizer.ggml.model",
         without(tokenizer__ggml__model=None)),
    Case("unknown tokenizer", "engine.too_old_for_model", "unknown tokenizer",
         without(tokenizer__ggml__model="weird")),
    Case("unknown pre-tokenizer", "engine.too_old_for_model", "unknown pre-tokenizer",
         without(tokenizer__ggml__pre="weird")),
    Case("no merges", "model.conversion_broken", "merges", without(tokenizer__ggml__merges=None)),
    Case("bad chat template", "model.chat_template", "Unexpected token",
         without(tokenizer__chat_template="{% for x in %}{{")),
    # flags
    Case("unknown flag", "config.unknown_flag", "--nonesuch", flags=("--nonesuch",)),
    Case("no number", "config.invalid_value", "invalid int value", flags=("--threads", "many")),
    Case("no value", "config.invalid_value", "expected one argument", flags=("--threads",)),
    Case("unknown choice", "config.invalid_value", "invalid choice", flags=("--spec-type", "no")),
    Case("unknown cache type", "config.unknown_flag", "Unsupported cache type",
         flags=("--cache-type-k", "q9_9")),
    Case("cache type does not fit", "config.model_incompatible_option", "does not divide",
         flags=("--cache-type-k", "q4_K")),
    Case("quantized V without flash attention", "config.missing_flag",
         "requires flash_attn", flags=("--cache-type-v", "q8_0", "--flash-attn", "off")),
    # the machine
    Case("no memory for it", "memory.host.insufficient", "failed to allocate",
         without(llama__context_length=1 << 24), ("--ctx-size", str(1 << 23)),
         prepare=little_address_space),
    Case("the socket's folder is missing", "config.missing_directory", "couldn't bind", no_folder),
    Case("the socket is there", "config.port_in_use", "couldn't bind", socket_there),
    # ended from outside
    Case("SIGSEGV", "engine.bug", "listening", ends_by=signal.SIGSEGV),
    Case("SIGABRT", "engine.bug", "listening", ends_by=signal.SIGABRT),
    Case("SIGILL", "cpu.isa_unsupported", "listening", ends_by=signal.SIGILL),
    Case("SIGKILL", "memory.host.oom_killed", "", ends_by=signal.SIGKILL),
)  # fmt: skip
NOT_ONE = {"no memory for it", "the socket is there", "SIGSEGV", "SIGABRT", "SIGKILL"}
"""The text cannot tell: the cause must be named, first or as what it may also be."""


def start(folder: Path, argv: Sequence[str], case: Case) -> tuple[int, str]:
    """Run the server until it ends; return its return code and log."""
    log = folder / "engine.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*case.prefix(), *argv], stdout=out, stderr=out, preexec_fn=case.prepare
        )
    try:
        if case.ends_by is not None:
            wait_for(lambda: "listening on" in log.read_text(errors="replace"))
            process.send_signal(case.ends_by)
        return process.wait(ENDS_S), log.read_text(errors="replace")
    finally:
        process.kill()
        process.wait()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDS_S
    while not holds():
        assert time.monotonic() < deadline, "the server did not get to listen"
        time.sleep(0.02)


def diagnosis_of(code: int, log: str) -> Diagnosis:
    return diagnose(
        outcome=Outcome.EXITED,
        exit_code=code if code >= 0 else None,
        signal=signal.Signals(-code).name if code < 0 else None,
        stage=Stage.LOAD,
        log=log.splitlines(),
        memory=(),
        machine=look_at_machine(),
        book=load_book(),
        detail="",
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_provoked_failure_is_diagnosed(tmp_path: Path, case: Case) -> None:
    """The cause is the one that was provoked, with the line that says so as evidence."""
    (tmp_path / "run").mkdir()
    model = case.arrange(tmp_path)
    build = find_builds()[0]
    sock = tmp_path / "run" / "engine.sock"
    argv = [*build.command, "--model", str(model), "--host", str(sock), "--fit", "off"]
    argv += ["--ctx-size", str(CONTEXT), "--parallel", "1", "--no-webui", *case.flags]
    found = diagnosis_of(*start(tmp_path, argv, case))
    named = {found.cause, *(found.alternatives if case.name in NOT_ONE else ())}
    assert case.cause in named, found
    assert case.words in "\n".join(evidence.text for evidence in found.evidence)
    assert case.name not in NOT_ONE or found.confidence != "certain"
    assert found.remedies


def test_a_taken_port_is_diagnosed(tmp_path: Path) -> None:
    """The same for a TCP port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        argv = [*find_builds()[0].command, "--model", str(plain(tmp_path)), "--port", port]
        code, log = start(tmp_path, [*argv, "--fit", "off"], Case("port", "", ""))
    found = diagnosis_of(code, log)
    assert found.cause == "config.port_in_use"
    assert port in "\n".join(evidence.text for evidence in found.evidence)
