"""Build an engine natively: source from the index or a folder, CMake, ninja, kept by what it is of.

<cache>/sources/<package>-<version>.tar.gz    the source as it was fetched
<cache>/build/<engine>/<version>-<key>/       source, objects and log of an unfinished build
<cache>/engines/<engine>/<version>-<key>/     the finished one: bin/, build.json, build.log
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from enginehouse.core.build_failure import build_failure
from enginehouse.core.diagnose_facts import facts_of_machine
from enginehouse.core.diagnose_scan import scan
from enginehouse.core.diagnose_verdict import judge
from enginehouse.core.errors import EngineError, EnginehouseError, MachineError
from enginehouse.core.machine import Machine
from enginehouse.core.native_build import (
    LLAMA_CPP,
    SERVER,
    TARGETS,
    Recipe,
    Source,
    Toolchain,
    build_number,
    choose_jobs,
    choose_recipe,
    key_of,
    name_build,
    oldest_cmake,
    read_step,
)
from enginehouse.core.package_index import Sdist, pick_sdist
from enginehouse.edges.builds_llama_cpp import cpu_name, read_build_version
from enginehouse.edges.digests import hash_file
from enginehouse.edges.fetch_sdist import PackageIndex, fetch_sdist, kept_sdists
from enginehouse.edges.installed import Installed, read_record, write_record
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.locks import hold
from enginehouse.edges.logged_child import run_logged
from enginehouse.edges.processes import Ended
from enginehouse.edges.progress import Progress
from enginehouse.edges.source_archive import unpack_part
from enginehouse.edges.source_tree import read_tree
from enginehouse.edges.toolchain import find_compiler, find_toolkit, find_tools
from enginehouse.knowledge.patterns import load_book

SOURCES = "sources"
LOG = "build.log"
LOG_BLOCK_BYTES = 1 << 16
NINJA_STATUS = "[%f/%t] "


@dataclass(frozen=True)
class Wanted:
    """What the user asks for; None and "" where Enginehouse chooses."""

    cuda: bool | None = None
    jobs: int | None = None
    version: str = ""
    tree: str = ""
    """A folder of the user's with the source, which is built in the place of a package's."""


@dataclass(frozen=True)
class Built:
    """A finished build's folder and record; `is_new` tells whether it was built just now."""

    folder: Path
    record: Installed
    why: str
    is_new: bool


@dataclass(frozen=True)
class NativeBuild:
    """One build, ready to be made or to go on."""

    source: Source
    recipe: Recipe
    toolchain: Toolchain
    sdist: Sdist
    machine: Machine
    key: str
    jobs: int
    cache: Path
    index: PackageIndex
    progress: Progress
    tree: Path | None = None

    @property
    def version(self) -> str:
        """What the build will be called."""
        return name_build(self.sdist.version, self.recipe)

    @property
    def target(self) -> Path:
        """The folder of the finished build."""
        return self.cache / "engines" / self.source.engine / f"{self.version}-{self.key}"

    @property
    def work(self) -> Path:
        """The folder of the unfinished one."""
        return self.cache / "build" / self.source.engine / f"{self.version}-{self.key}"

    @property
    def folder(self) -> Path:
        """The folder that holds the source: the user's, or what is unpacked for the build."""
        return self.tree or self.work / "source"

    def make(self) -> Built:
        """Build it, going on with what an interrupted build left, unless it is there already.

        Raises:
            EngineError: the cause of a failed build, or `build.failed`.
            MachineError: `disk.full`, `work.under_way`.
        """
        if record := read_record(self.target):
            return Built(self.target, record, self.recipe.why, False)
        lock = self.work.with_name(f"{self.work.name}.lock")
        with hold(lock, f"the build of {self.source.engine} {self.version}"):
            if record := read_record(self.target):
                return Built(self.target, record, self.recipe.why, False)
            self.work.mkdir(parents=True, exist_ok=True)
            self._check_room()
            if self.tree is None:
                self._prepare_source()
            self._set_old_log_aside()
            self._compile()
            record = self._install()
            shutil.rmtree(self.work, ignore_errors=True)
        return Built(self.target, record, self.recipe.why, True)

    def _check_room(self) -> None:
        done = sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())
        needed = max(self.recipe.disk_bytes - done, 64 << 20)
        free = shutil.disk_usage(self.work).free
        if free < needed:
            raise MachineError(
                "disk.full",
                f"there is no room to build {self.source.engine}",
                evidence=(
                    f"{needed >> 20} MiB are needed, {free >> 20} MiB are free: {self.work}",
                ),
                remedies=("free some space, or set ENGINEHOUSE_CACHE_DIR to another disk",),
            )

    def _prepare_source(self) -> None:
        if not self.folder.exists():
            archive = fetch_source(self.sdist, self.cache, self.index, self.progress)
            self.progress.begin(f"unpacking {archive.name}", None)
            unpack_part(archive, self.source.folder, self.folder)
        for name, text in self.source.files:
            path = self.folder / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def _set_old_log_aside(self) -> None:
        """Keep an interrupted or failed build's log apart, so that it explains nothing of this."""
        if (log := self.work / LOG).exists():
            log.replace(self.work / f"{LOG}.old")

    def _compile(self) -> None:
        objects = self.work / "objects"
        number = build_number(self.sdist.version)
        configure = (
            self.toolchain.cmake, "-S", str(self.folder), "-B", str(objects),
            "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={self.toolchain.ninja}",
            *self.recipe.defines,
            *((f"-DLLAMA_BUILD_NUMBER={number}",) if number else ()),
        )  # fmt: skip
        self._run(configure, "configuring the build")
        ninja = (self.toolchain.ninja, "-C", str(objects), f"-j{self.jobs}", *TARGETS)
        self._run(ninja, f"building {self.source.engine} {self.version}")

    def _run(self, argv: tuple[str, ...], label: str) -> None:
        is_started = False

        def follow(line: str) -> None:
            nonlocal is_started
            if step := read_step(line):
                if not is_started:
                    self.progress.begin(label, step[1], unit="steps")
                    is_started = True
                self.progress.advance_to(step[0])

        log = self.work / LOG
        with log.open("ab") as file:
            file.write(f"$ {' '.join(argv)}\n".encode())
        leases = LeaseBook(self.cache / "leases")
        env = {"NINJA_STATUS": NINJA_STATUS, "LC_ALL": "C"}
        try:
            ended = run_logged(argv, log, leases, env=env, on_line=follow)
        finally:
            if is_started:
                self.progress.end()
        if ended.exit_code != 0:
            raise self._failure(label, ended)

    def _failure(self, label: str, ended: Ended) -> EnginehouseError:
        """Explain a failed step by the log."""
        log, book = self.work / LOG, load_book()
        with log.open("rb") as file:
            digest = scan(iter(lambda: file.read(LOG_BLOCK_BYTES), b""), book)
        facts = replace(
            facts_of_machine(self.machine), exit_code=ended.exit_code, signal=ended.signal or ""
        )
        return build_failure(label, ended.describe(), judge(book, digest, facts), str(log))

    def _install(self) -> Installed:
        """Put the programs where they are found; the folder appears only when whole."""
        draft = self.target.with_name(f".{self.target.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "bin").mkdir(parents=True)
        for name in TARGETS:
            shutil.copy2(self.work / "objects" / "bin" / name, draft / "bin" / name)
        shutil.copy2(self.work / LOG, draft / LOG)
        said = read_build_version(str(draft / "bin" / SERVER))
        if said is None:
            raise EngineError(
                "build.does_not_start",
                f"the {self.source.engine} that was built does not start",
                evidence=(f"{SERVER} --version did not say its version", str(self.work / LOG)),
                remedies=(f"build it again: enginehouse engines build {self.source.engine}",),
            )
        record = Installed(
            engine=self.source.engine,
            kind="native",
            version=self.version,
            digest=hash_file(draft / "bin" / SERVER),
            command=(f"bin/{SERVER}",),
            path=f"bin/{SERVER}",
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            source=self.sdist.name,
            source_digest=self.sdist.sha256,
            flags=self.recipe.defines,
            toolchain=_words(self.toolchain),
            programs={name: f"bin/{name}" for name in TARGETS},
            cpu=cpu_name(),
        )
        write_record(draft, record)
        draft.rename(self.target)
        return record


def _words(toolchain: Toolchain) -> tuple[str, ...]:
    cmake = f"cmake {'.'.join(str(part) for part in toolchain.cmake_version)}"
    toolkit = toolchain.toolkit
    cuda = (f"CUDA {'.'.join(str(part) for part in toolkit.version)}",) if toolkit else ()
    return (toolchain.compiler, cmake, *cuda)


def prepare(
    machine: Machine,
    wanted: Wanted,
    cache: Path,
    index: PackageIndex,
    progress: Progress,
    source: Source = LLAMA_CPP,
) -> NativeBuild:
    """Look at what there is to build with and from; nothing is fetched yet but CMake, at need.

    Raises:
        UserError: `build.no_compiler`, `build.no_cuda`, `source.no_package`, `source.not_one`.
        MachineError: `build.no_tools`, `network.unreachable`.
    """
    tree = Path(wanted.tree).expanduser().absolute() if wanted.tree else None
    sdist = read_tree(tree, source.engine) if tree else None
    compiler = find_compiler()
    toolkit = None if wanted.cuda is False else find_toolkit()
    recipe = choose_recipe(machine, toolkit, wanted.cuda, source)
    tools = find_tools(oldest_cmake(recipe), cache, progress)
    used = toolkit if recipe.has_cuda else None
    toolchain = replace(tools, compiler=compiler, toolkit=used)
    sdist = sdist or find_source(wanted.version, cache, index, source.package)
    if not sdist.sha256:
        archive = fetch_source(sdist, cache, index, progress)
        sdist = replace(sdist, sha256=hash_file(archive))
    return NativeBuild(
        source=source,
        recipe=recipe,
        toolchain=toolchain,
        sdist=sdist,
        machine=machine,
        key=key_of(sdist.sha256, recipe.flags, toolchain, machine),
        jobs=wanted.jobs or choose_jobs(machine),
        cache=cache,
        index=index,
        progress=progress,
        tree=tree,
    )


def find_source(
    version: str, cache: Path, index: PackageIndex, package: str = LLAMA_CPP.package
) -> Sdist:
    """Return the source to build: the index's newest, or without network the newest kept one."""
    try:
        return index.find(package, version)
    except MachineError:
        kept = pick_sdist(kept_sdists(cache / SOURCES, package), version)
        if kept is None:
            raise
        return kept


def fetch_source(sdist: Sdist, cache: Path, index: PackageIndex, progress: Progress) -> Path:
    """Return the source's archive, fetched unless it is here."""
    folder = cache / SOURCES
    with hold(folder / f"{sdist.name}.lock", f"the fetch of {sdist.name}"):
        return fetch_sdist(sdist, folder, index, progress)
