"""Install a Python engine into an environment of its own, never into Enginehouse's.

The package index is the one that the user's pip is configured for. An interrupted installation
goes on in the environment that is there; the folder counts as an engine only once its `build.json`
is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from enginehouse.core.build_failure import build_failure
from enginehouse.core.diagnose_facts import facts_of_machine
from enginehouse.core.diagnose_scan import scan
from enginehouse.core.diagnose_verdict import judge
from enginehouse.core.engine_flavour import Flavour, other_requirements, torch_requirement
from enginehouse.core.errors import EngineError, EnginehouseError, MachineError
from enginehouse.core.machine import Machine
from enginehouse.edges.installed import Installed, read_record, write_record
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.locks import hold
from enginehouse.edges.logged_child import run_logged
from enginehouse.edges.processes import Ended
from enginehouse.edges.progress import Progress
from enginehouse.knowledge.patterns import load_book

LOG = "install.log"
LOG_BLOCK_BYTES = 1 << 20
MODULE = ("-m", "vllm.entrypoints.openai.api_server")
ASK_REQUIRES = "import importlib.metadata as m, json; print(json.dumps(m.requires({name!r}) or []))"
ASK_VERSION = "import importlib.metadata as m; print(m.version({name!r}))"


@dataclass(frozen=True)
class PythonInstall:
    """An installation of vLLM that can begin; `version` is empty for the index's newest."""

    flavour: Flavour
    version: str
    cache: Path
    machine: Machine
    progress: Progress

    @property
    def folder(self) -> Path:
        """The environment's folder."""
        return self.cache / "engines" / "vllm" / f"{self.version or 'newest'}-{self.flavour.name}"

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.folder / "bin" / "python"

    def commands(self) -> tuple[tuple[str, ...], ...]:
        """Return what is run, as far as it is known before the distribution's requirements are."""
        wanted = self.flavour.distribution + (f"=={self.version}" if self.version else "")
        make = (base_python(), "-m", "venv", str(self.folder))
        if not self.flavour.is_stepwise:
            return make, self._pip(wanted)
        return (
            make,
            self._pip("--no-deps", wanted),
            self._pip("<the torch that it pins>"),
            self._pip("-r", "<its other requirements>"),
        )

    def make(self) -> tuple[Installed, bool]:
        """Install it, unless it is there; return its record and whether it is new.

        Raises:
            EngineError: the cause of a failed step, or `build.failed`.
            MachineError: `disk.full`, `work.under_way`.
        """
        if record := read_record(self.folder):
            return record, False
        lock = self.folder.with_name(f"{self.folder.name}.lock")
        with hold(lock, "the installation of vLLM"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_room()
            for number, argv in enumerate(self._steps(), start=1):
                self._run(argv, f"installing vLLM, step {number}")
            record = self._record()
            write_record(self.folder, record)
        return record, True

    def _steps(self) -> Iterator[tuple[str, ...]]:
        """Yield the commands, the later ones made of what the earlier ones installed."""
        make, first, *_ = self.commands()
        yield make
        yield first
        if not self.flavour.is_stepwise:
            return
        requires = json.loads(self._ask(ASK_REQUIRES))
        yield self._pip(torch_requirement(requires))
        listed = self.folder / "requirements.txt"
        listed.write_text("\n".join(other_requirements(requires)) + "\n")
        yield self._pip("-r", str(listed))

    def _pip(self, *words: str) -> tuple[str, ...]:
        quiet = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
        return (str(self.python), "-m", "pip", "install", *quiet, *words)

    def _ask(self, program: str) -> str:
        name = self.flavour.distribution
        done = subprocess.run(
            [str(self.python), "-c", program.format(name=name)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise EngineError(
                "engine.install_incomplete",
                f"{name} is not in the environment that it was installed into",
                evidence=tuple(done.stderr.strip().splitlines()[-1:]),
                remedies=(f"enginehouse engines remove {self.folder.name}", "install it again"),
            )
        return done.stdout.strip()

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < self.flavour.disk_bytes:
            raise MachineError(
                "disk.full",
                "there is no room to install vLLM",
                evidence=(
                    f"{self.flavour.disk_bytes >> 20} MiB are needed, {free >> 20} MiB are free: "
                    f"{self.folder}",
                ),
                remedies=("free some space, or set ENGINEHOUSE_CACHE_DIR to another disk",),
            )

    def _run(self, argv: tuple[str, ...], label: str) -> None:
        log = self.folder / LOG
        with log.open("ab") as file:
            file.write(f"$ {' '.join(argv)}\n".encode())
        count = 0

        def follow(line: str) -> None:
            nonlocal count
            count += line.lstrip().startswith(("Collecting", "Downloading", "Installing", "Using"))
            self.progress.advance_to(count)

        self.progress.begin(label, None, unit="steps")
        try:
            ended = run_logged(argv, log, LeaseBook(self.cache / "leases"), on_line=follow)
        finally:
            self.progress.end()
        if ended.exit_code != 0:
            raise self._failure(label, ended)

    def _failure(self, label: str, ended: Ended) -> EnginehouseError:
        log, book = self.folder / LOG, load_book()
        with log.open("rb") as file:
            digest = scan(iter(lambda: file.read(LOG_BLOCK_BYTES), b""), book)
        facts = replace(
            facts_of_machine(self.machine), exit_code=ended.exit_code, signal=ended.signal or ""
        )
        return build_failure(label, ended.describe(), judge(book, digest, facts), str(log))

    def _record(self) -> Installed:
        version = self._ask(ASK_VERSION)
        suffix = "+cpu" if self.flavour.name == "cpu" and "+" not in version else ""
        return Installed(
            engine="vllm",
            kind="environment",
            version=version + suffix,
            digest=digest_environment(self.folder),
            command=("bin/python", *MODULE),
            path="bin/python",
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            source=f"{self.flavour.distribution}=={version}",
            flags=(self.flavour.name,),
        )


def digest_environment(folder: Path) -> str:
    """Return the SHA-256 over every installed distribution's list of files with their hashes."""
    digest = hashlib.sha256()
    for record in sorted(folder.glob("lib/python3*/site-packages/*.dist-info/RECORD")):
        digest.update(record.parent.name.encode() + b"\0" + record.read_bytes())
    return digest.hexdigest()


def base_python() -> str:
    """Return the Python that Enginehouse's own environment was made of."""
    return str(getattr(sys, "_base_executable", sys.executable))
