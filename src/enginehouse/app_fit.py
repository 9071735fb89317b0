"""What the house does for `fit`: gather what is known here, and let `core.fit_model` judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.candidate import Build
from enginehouse.core.correction import correction_from
from enginehouse.core.estimate_speed import Rates, cached_names, rate_names
from enginehouse.core.fit import Correction, FitRow, rank
from enginehouse.core.fit_model import FitRequest, Known, fit_model
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.edges.records import Records

PROBED: tuple[str, ...] = (
    "Q4_0 repacked", "Q4_K repacked", "Q8_0", "Q6_K", "F16", "attention 32x8x64",
    "attention 32x8x128", "small", "products",
)  # fmt: skip
"""What most files are made of; measured when nothing says which are wanted."""


@dataclass(frozen=True)
class FitReport:
    """One model judged on one machine; `asked` is what an engine answered to a dry load."""

    model: Model
    machine_name: str
    rows: tuple[FitRow, ...]
    asked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitter:
    """What a judgement needs of the house."""

    records: Records
    look: Callable[[], Machine]
    builds: Callable[[], tuple[Build, ...]]
    models: Callable[[], tuple[Model, ...]]
    reserve_bytes: float

    def fit(
        self, model: Model, request: FitRequest, snapshot: Path | None, asks_engine: bool = False
    ) -> FitReport:
        """Judge a model on this machine, or on a recorded one."""
        request = dataclasses.replace(request, reserve_bytes=self.reserve_bytes)
        if snapshot is not None:
            from enginehouse.edges.examination import examine_recording

            found = examine_recording(snapshot)
            request = dataclasses.replace(request, has_gpu_build=bool(found.machine.gpus))
            rows = fit_model(model, found.machine, request)
            name = f"{found.name} ({found.kind})"
            return FitReport(model, name, rows)
        machine, build = self.look(), self._llama_build()
        known = Known(self._correction(model, machine, build), self._rates(model, machine, build))
        has_gpu = bool(machine.gpus) and build is not None and build.kind == "binary"
        request = dataclasses.replace(request, has_gpu_build=has_gpu)
        rows = fit_model(model, machine, request, known)
        asked = self._ask(model, request, build) if asks_engine else ()
        return FitReport(model, "this machine", rows, asked)

    def fit_all(self, request: FitRequest, snapshot: Path | None) -> tuple[FitReport, ...]:
        """Judge every registered model, its best way first, the best model first."""
        reports = [self.fit(model, request, snapshot) for model in self.models()]
        ranked = [dataclasses.replace(report, rows=rank(report.rows)) for report in reports]
        with_rows = [report for report in ranked if report.rows]
        order = rank(tuple(report.rows[0] for report in with_rows))
        places = {id(row): place for place, row in enumerate(order)}
        return tuple(sorted(with_rows, key=lambda report: places[id(report.rows[0])]))

    def measure_rates(self, model: Model | None) -> None:
        """Measure the wheel's operations that a model is made of, and keep the rates."""
        from enginehouse.edges.rates import measure_rates

        machine, build = self.look(), self._llama_build()
        if build is None:
            return
        mark = machine.fingerprint()
        names: tuple[str, ...] = PROBED
        if model is not None:
            names = tuple(sorted(_names(model, machine)))
        for name, (decode, prefill) in measure_rates(names, machine.usable_cores).items():
            self.records.store_machine_value(mark, _key(build, "decode", name), decode)
            self.records.store_machine_value(mark, _key(build, "prefill", name), prefill)

    def _llama_build(self) -> Build | None:
        return next((build for build in self.builds() if build.engine == "llama.cpp"), None)

    def _correction(self, model: Model, machine: Machine, build: Build | None) -> Correction | None:
        if build is None:
            return None
        return correction_from(
            self.records.predictions(machine.fingerprint(), build.digest, model.architecture)
        )

    def _rates(self, model: Model, machine: Machine, build: Build | None) -> Rates | None:
        if build is None or not machine.memory_bandwidth_bytes_per_s:
            return None
        decode: dict[str, float] = {}
        prefill: dict[str, float] = {}
        mark = machine.fingerprint()
        for name in _names(model, machine):
            one = self.records.machine_value(mark, _key(build, "decode", name))
            many = self.records.machine_value(mark, _key(build, "prefill", name))
            if one and many:
                decode[name], prefill[name] = one, many
        return Rates(decode, prefill, machine.memory_bandwidth_bytes_per_s, machine.usable_cores)

    def _ask(self, model: Model, request: FitRequest, build: Build | None) -> tuple[str, ...]:
        from enginehouse.edges.dry_load import ask_llama

        context = request.context_for(model)
        return ask_llama(model.path, context, request.sequences, request.kv_type, build)


def _names(model: Model, machine: Machine) -> set[str]:
    return rate_names(model, machine.isa) | cached_names(model, machine.isa)


def _key(build: Build, what: str, name: str) -> str:
    return f"rate/{build.digest[:16]}/{what}/{name}"
