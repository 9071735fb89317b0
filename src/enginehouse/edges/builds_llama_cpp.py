"""Find llama.cpp's builds: the wheel, a `llama-server` on PATH, those that were built here.

And those of its fork ik_llama.cpp, whose server has the same name and other flags.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path

from enginehouse.core.candidate import Build
from enginehouse.core.errors import UserError
from enginehouse.edges.digests import digest_file
from enginehouse.edges.installed import installed
from enginehouse.edges.machine.cpu import cpu_facts
from enginehouse.edges.paths import program_path
from enginehouse.edges.seam import LiveSource, Reader
from enginehouse.engines.ik_llama_cpp import is_fork

ENGINE, FORK = "llama.cpp", "ik_llama.cpp"
SERVER = "llama-server"
ANSWER_LIMIT_S = 10
VERSION = re.compile(r"version:\s*(?:(\d+)\s*\((\w+)\)|\S+ \(build (\d+), commit (\w+)\))")
"""As llama-server prints it: `version: 11434 (abc123)`, and `version: 0.6.0 (build 11549, commit
abc123)` since llama.cpp numbers its releases."""


def find(llama_server: str = "") -> tuple[Build, ...]:
    """Return the builds: the wheel, a program named here or on PATH, native ones, the fork's last.

    Raises:
        UserError: `engine.not_usable`, when the named program cannot be one.
    """
    single = (find_wheel(), find_binary(llama_server))
    return (
        *(build for build in single if build is not None), *find_native(), *find_native(FORK)
    )  # fmt: skip


def find_wheel() -> Build | None:
    """Return the server inside the `xllamacpp` wheel, None when that is not installed."""
    try:
        distribution = importlib.metadata.distribution("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None
    libraries = [f for f in distribution.files or () if f.name.endswith(".abi3.so")]
    if not libraries:
        return None
    path = Path(str(distribution.locate_file(libraries[0])))
    return Build(
        engine=ENGINE,
        kind="wheel",
        version=distribution.version,
        digest=digest_file(path),
        command=(sys.executable, "-m", "enginehouse.edges.wheel_server"),
        path=str(path),
    )


def find_binary(named: str = "") -> Build | None:
    """Return the `llama-server` that is named, else the one on PATH, None when there is none.

    Raises:
        UserError: `engine.not_usable`, when the named program cannot be one.
    """
    program = program_path(named or SERVER)
    if program is None:
        if named:
            raise _not_usable(
                f"engine.llama_cpp.path names {named}, which is not a program",
                f"{named}: no such file, or it may not be executed",
            )
        return None
    text = _ask(program, "--version")
    version = parse_version(text)
    if version is None:
        if not named:
            return None
        raise _not_usable(
            f"{program} does not say its version as a llama-server does",
            f"`{program} --version` printed {text.strip()[:120]!r}",
        )
    return Build(
        engine=FORK if is_fork(version, lambda: _ask(program, "--help")) else ENGINE,
        kind="binary",
        version=version,
        digest=digest_file(Path(program)),
        command=(program,),
        path=program,
    )


def find_native(engine: str = ENGINE) -> tuple[Build, ...]:
    """Return what was built here for this CPU: the newest with CUDA and the newest without."""
    here = cpu_name()
    newest: dict[bool, Build] = {}
    for folder, record in installed(engine):
        if record.kind == "native" and record.cpu == here:
            has_cuda = any(flag.startswith("-DGGML_CUDA=ON") for flag in record.flags)
            digest = digest_file(folder / record.path)
            newest.setdefault(has_cuda, record.build(folder, digest))
    return tuple(newest.values())


def find_program(name: str) -> Path | None:
    """Return one of llama.cpp's programs, such as `llama-quantize`: built here, else on PATH."""
    here = cpu_name()
    for folder, record in installed(ENGINE):
        if record.kind == "native" and record.cpu == here and name in record.programs:
            return folder / record.programs[name]
    found = program_path(name)
    return Path(found) if found else None


def cpu_name() -> str:
    """Name what a native build is made for: another CPU may not run it."""
    facts = {fact.id: fact.value for fact in cpu_facts(Reader(LiveSource()))}
    isa = facts.get("cpu.isa")
    words = isa if isinstance(isa, tuple) else ()
    return f"{platform.machine()} {facts.get('cpu.model') or ''} ({' '.join(map(str, words))})"


def read_build_version(program: str) -> str | None:
    """Return what a `llama-server` says of its version, None when it does not say one."""
    return parse_version(_ask(program, "--version"))


def parse_version(text: str) -> str | None:
    """Return `b11549 (abc123)` out of what `llama-server --version` prints.

    One that was built outside a checkout does not know its commit, and has none here.
    """
    version = VERSION.search(text)
    if version is None:
        return None
    number, commit = version[1] or version[3], version[2] or version[4]
    return f"b{number}" if commit == "unknown" else f"b{number} ({commit})"


def _not_usable(what: str, evidence: str) -> UserError:
    return UserError(
        "engine.not_usable",
        what,
        evidence=(evidence,),
        remedies=("give the path of a llama-server, or remove the setting",),
    )


def _ask(program: str, flag: str) -> str:
    try:
        done = subprocess.run(
            [program, flag],
            capture_output=True,
            timeout=ANSWER_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    return (done.stdout + done.stderr).decode(errors="replace")
