"""Provoke a failure in the real engine through `run_trial`, and say what was made of it.

A `Plan` says what is started, under which limits, and what is done to it meanwhile. The engine, its
log, its end and the diagnosis are real; only the cause is arranged.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from enginehouse.core.candidate import Candidate, Setting
from enginehouse.core.engine import Launch
from enginehouse.core.forms import Forms
from enginehouse.core.trial import Deadlines, Trial
from enginehouse.core.workload import Workload
from enginehouse.edges.builds import find_builds
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.model_files import read_place
from enginehouse.edges.probes import look_at_machine, read_available_bytes
from enginehouse.edges.records import Records
from enginehouse.engines.llama_cpp import LlamaCpp
from enginehouse.knowledge.loader import load_prompts
from enginehouse.knowledge.patterns import load_book
from enginehouse.trials.bench import Bench, TokenRatio
from enginehouse.trials.run import run_trial

WHEEL_WITH = Path(__file__).with_name("wheel_with.py")
SHORT = Workload("short", "two short requests", 1, 2, 0, 16, 4)
DEADLINES = Deadlines(20.0, 30.0, 20.0, 60.0, 2.0)
MIB = 1 << 20
QUIET = {"GGML_NO_BACKTRACE": "1"}
"""Else an abort starts a debugger, where there is one, and takes seconds."""


@dataclass(frozen=True)
class Plan:
    """What is started and how.

    `more` are parameters of the wheel's own (`wheel_with.py`), `prefix` the head of an argv that
    runs the engine under limits. `reserve_below` is how far under what is available now the guard's
    reserve is set. `meanwhile` gets the engine's process once `when` stands in its log.
    """

    model: Path | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    socket: str = ""
    log_folder: Path | None = None
    reserve_below: int | None = None
    deadlines: Deadlines = DEADLINES
    workload: Workload = SHORT
    meanwhile: Callable[[psutil.Process], None] | None = None
    when: str = ""


@dataclass(frozen=True)
class Provoked(LlamaCpp):
    """llama.cpp as a plan has it."""

    plan: Plan = Plan()

    def argv(self, launch: Launch) -> tuple[str, ...]:
        """Start what the plan says, on its address if it has one."""
        plan = self.plan
        argv = list(super().argv(launch))
        place = argv.index("--host")
        if plan.port:
            argv[place : place + 2] = ["--host", "127.0.0.1", "--port", str(plan.port)]
        elif plan.socket:
            argv[place + 1] = plan.socket
        for name, value in plan.more.items():
            argv += ["--with", f"{name}={json.dumps(value)}"]
        return (*plan.prefix, *argv)

    def env(self, launch: Launch) -> tuple[tuple[str, str], ...]:
        """Add the plan's environment."""
        return tuple({**QUIET, **self.plan.env}.items())


def provoke(plan: Plan, whole: Path, folder: Path) -> Trial:
    """Run a plan as one trial in a state folder, with the facts of a whole model."""
    model = dataclasses.replace(read_place(whole), name=whole.stem, digest="d" * 64)
    if plan.model is not None:
        model = dataclasses.replace(model, path=str(plan.model))
    build = next(build for build in find_builds() if build.kind == "wheel")
    build = dataclasses.replace(build, command=plan.command or (sys.executable, str(WHEEL_WITH)))
    settings = {"context": 512, "slots": 1, "threads": 1, **plan.settings}
    candidate = Candidate("llama.cpp", build.digest, tuple(sorted(settings.items())))
    records = Records(folder / "records.sqlite")
    records.open()
    passages, questions = load_prompts()
    below = plan.reserve_below
    bench = Bench(
        run_id="provoked",
        engines={"llama.cpp": Provoked(plan=plan)},
        forms=Forms((model,)),
        workload=plan.workload,
        records=records,
        leases=LeaseBook(folder / "leases"),
        log_folder=plan.log_folder or folder / "trials",
        deadlines=plan.deadlines,
        memory_reserve_bytes=0 if below is None else max(0, read_available_bytes() - below),
        prefix_limit_bytes=64 * MIB,
        bandwidth_bytes_per_s=None,
        passages=passages,
        questions=questions,
        book=load_book(),
        look=look_at_machine,
    )
    try:
        with _meddling(plan, folder):
            trial = asyncio.run(run_trial(bench, build, candidate, TokenRatio()))
        assert records.trial(trial.id) == trial
    finally:
        records.close()
    return trial


@contextmanager
def _meddling(plan: Plan, folder: Path) -> Iterator[None]:
    """Do what the plan does to the engine, once its log says that it is time."""
    over = threading.Event()
    log = folder / "trials" / "0001" / "engine.log"

    def meddle() -> None:
        while plan.meanwhile is not None and not over.wait(0.005):
            if not log.exists() or plan.when not in log.read_text(errors="replace"):
                continue
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    if "--model" in child.cmdline():
                        plan.meanwhile(child)
                        return

    helper = threading.Thread(target=meddle)
    helper.start()
    try:
        yield
    finally:
        over.set()
        helper.join()


def need(*programs: str) -> None:
    """Skip a case that cannot be provoked here for want of a program."""
    for name in programs:
        if shutil.which(name) is None:
            pytest.skip(f"there is no {name} here")


def without_right(*rights: str) -> tuple[str, ...]:
    """Return the head of an argv that takes rights from root: `without_right("dac_override")`."""
    if os.geteuid() != 0:
        return ()
    need("setpriv")
    taken = ",".join(f"-{right}" for right in rights)
    return ("setpriv", f"--bounding-set={taken}", f"--inh-caps={taken}", "--")


def limited(**limits: int) -> tuple[str, ...]:
    """Return the head of an argv under resource limits: `limited(nofile=16)`."""
    need("prlimit")
    return ("prlimit", *(f"--{name}={value}" for name, value in limits.items()), "--")


@contextmanager
def cgroup(controller: str, limits: Mapping[str, Sequence[str | int]]) -> Iterator[tuple[str, ...]]:
    """Make a cgroup (v1 or v2) with one limit; give the head of an argv that enters it.

    `limits` are the limit's file name in v1 and v2, each with its value. Skips where no cgroup may
    be made.
    """
    root = Path("/sys/fs/cgroup")
    is_v1 = (root / controller / "tasks").exists()
    folder = (root / controller if is_v1 else root) / f"enginehouse-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as problem:
        pytest.skip(f"no cgroup may be made here: {problem}")
    try:
        name, value = limits["v1" if is_v1 else "v2"]
        try:
            (folder / str(name)).write_text(str(value))
        except OSError as problem:
            pytest.skip(f"no cgroup may be limited here: {problem}")
        yield ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(folder))
    finally:
        folder.rmdir()
